"""training.step and engines.compiling: what a user meets when the compiler is missing, and the clock."""

import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModel

from pipeline.bounds import bounds_of_lengths
from pipeline.engines import compiling
from pipeline.engines.both import fit
from pipeline.engines.compiling import Compiled
from pipeline.engines.ranks import Ranks
from pipeline.models.cut import cut_encoder
from pipeline.relations import QKV, divergence_and_gradient
from pipeline.settings.reading import load_recipe
from pipeline.training.step import Clock
from pipeline.training.trainee import Trainee
from tests.parts import launching


@pytest.mark.slow
def test_without_a_compiler_the_same_comes_out_and_one_line_says_so(tmp_path):
    code = (
        "import torch; from pipeline.engines.compiling import Compiled\n"
        "from pipeline.relations import divergence_and_gradient as d\n"
        "x, y = torch.arange(12.).view(3, 4), torch.arange(12.).flip(0).view(3, 4) ** 0.5\n"
        "w, g, e = torch.ones(3, 1), torch.empty(3, 4), torch.empty(3, 4)\n"
        "for c in (Compiled(d, 'the relation loss'), Compiled(d, 'the relation loss')):\n"
        "    for _ in range(2): assert torch.equal(c(x, y, w, None, g), d(x, y, w, None, e)) and torch.equal(g, e)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=launching.environment() | {"CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        cwd=launching.ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert notes[0].startswith("note: the relation loss cannot be compiled here and runs uncompiled, more slowly (")
    assert "install g++ (on CPUs)" in notes[0] and "compile = 'none'" in notes[0]


def test_what_fails_uncompiled_too_is_not_blamed_on_the_compiler(capsys):
    def broken(x):
        raise ValueError("no")

    function = Compiled(broken, "a broken function")
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            function(torch.zeros(2))
    assert "note:" not in capsys.readouterr().err


def broken_compiler(error):
    def compiler(graph, inputs):
        raise error

    return partial(torch.compile, backend=compiler)


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    ),
]


@pytest.mark.parametrize("error", MEMORY, ids=["device", "python", "host"])
def test_memory_that_runs_out_is_not_blamed_on_the_compiler(monkeypatch, capsys, error):
    monkeypatch.setattr(torch, "compile", broken_compiler(error))
    function = Compiled(lambda x: x + 1, "a large function")
    for _ in range(2):
        with pytest.raises(Exception, match=r"memory|MemoryError"):
            function(torch.zeros(2))
    assert "note:" not in capsys.readouterr().err


@pytest.mark.parametrize("rank, local, reports", [("0", "0", True), ("4", "0", True), ("5", "1", False)])
def test_the_first_rank_of_each_host_reports_that_its_compiler_fails(monkeypatch, capsys, rank, local, reports):
    monkeypatch.setattr(torch, "compile", broken_compiler(RuntimeError("no Triton")))
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local)
    function = Compiled(lambda x: x + 1, f"the function of rank {rank}")
    assert function(torch.zeros(2)).tolist() == [1, 1]
    line = f"note: the function of rank {rank} cannot be compiled here and runs uncompiled"
    assert (line in capsys.readouterr().err) == reports


def test_what_is_beyond_the_limit_of_the_compiler_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=False):
        monkeypatch.setattr(compiling, "_WAYS", 0)
        function = Compiled(lambda x: x + 1, "a function of many kinds")
        for kind in (torch.float32, torch.float64, torch.int32, torch.int64):
            assert function(torch.zeros(2, dtype=kind)).tolist() == [1, 1]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(lines) == 1
    assert (
        "a function of many kinds met more kinds of inputs than the 2 that torch's compiler keeps programs for"
        in lines[0]
    )


@pytest.mark.slow
def test_four_widths_and_a_teacher_are_all_compiled_in_both_layouts(monkeypatch, capsys):
    """Their layers are one function to the compiler; each meets other numbers of sequences, with gradients and without."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    recipe, ranks = load_recipe("minilm_3x384", ["compile=all", "precision=fp32"]), Ranks(0, 1, 1, torch.device("cpu"))
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # whose own programs would take a minute
    for name, width in (("teacher", 40), ("student", 8), ("student", 16), ("student", 24), ("student", 32)):
        cut = cut_encoder(AutoModel.from_config(AutoConfig.for_model("bert", hidden_size=width, **sizes)), 2)
        cut.requires_grad_(name == "student")
        fit(cut, recipe, ranks, name)
        for shape, cut.padding in (((2, 9), None), ((3, 7), 0), ((1, 5), None)):
            ids = torch.randint(5, 50, shape)
            ids[-1, -1] = 0
            with torch.no_grad():
                cut.eval()(ids)
            if name == "student":
                sum(x.sum() for x in cut.train()(ids)).backward()
    programs = counters["stats"]["unique_graphs"]
    assert not any("recompile limit" in reason for reason in counters["unimplemented"]), f"{programs} programs"
    assert 8 < programs <= 50 and "note:" not in capsys.readouterr().err


@pytest.mark.parametrize("transfer, pairs", [("last", "qk,vv"), ("layer-to-layer", "qq,v_mse")])
@pytest.mark.parametrize("padded", [False, True])
def test_the_mean_of_each_sequences_loss_is_the_loss_of_all(transfer, pairs, padded):
    recipe = load_recipe("minilm_3x384", [f"transfer={transfer}", f"pairs={pairs}"])
    layers = tuple(recipe.layers.values())
    trainee = Trainee(recipe, None, Compiled(None, "nothing"), teacher_layers=layers)
    random = torch.Generator().manual_seed(1)
    teacher, student = (
        tuple(torch.randn(3 * len(layers), 7, width, generator=random) for _ in range(count))
        for width, count in ((24, 3), (12, 3))
    )
    output = (*student, teacher[2] + 1)
    bounds = bounds_of_lengths(torch.tensor([7, 2, 5]), 7) if padded else None
    each = trainee.loss_of_each(QKV(*teacher), output, bounds)
    whole = replace(trainee, divergence=divergence_and_gradient).losses(QKV(*teacher), output, bounds)
    assert len(each) == 3 and torch.stack(each).mean().item() == pytest.approx(whole["loss"].item(), rel=1e-5)
    assert len({round(loss.item(), 6) for loss in each}) == 3


def test_the_clock_adds_up_parts_while_it_runs():
    clock = Clock(torch.device("cpu"))
    with clock("teacher"):
        time.sleep(0.01)
    assert clock.seconds() == {}
    clock.running = True
    for _ in range(2):
        with clock("teacher"):
            time.sleep(0.01)
        with clock("loss"):
            pass
    seconds = clock.seconds()
    assert list(seconds) == ["teacher", "loss"] and seconds["teacher"] >= 0.02 > seconds["loss"]
    assert clock.seconds() == {}
