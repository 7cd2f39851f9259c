"""training.step and engines.compiling: what a user meets when the compiler is missing, and the clock."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from pipeline.engines.compiling import Compiled
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
    lengths = torch.tensor([7, 2, 5]) if padded else None
    each = trainee.loss_of_each(QKV(*teacher), output, lengths)
    whole = replace(trainee, divergence=divergence_and_gradient).losses(QKV(*teacher), output, lengths)
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
