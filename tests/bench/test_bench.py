"""pipeline.bench: it compares like with like, and what it prints can be read by people and machines."""

import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig, Trainer

from data_prep.cli import UserError
from data_prep.shards import open_corpus, verify
from pipeline import relations
from pipeline.bench import __main__ as bench
from pipeline.bench import data, loss
from pipeline.bench import step as bench_step
from pipeline.bench import teacher as bench_teacher
from pipeline.bench.tools import Row, Setting
from pipeline.data.reading import order_of, training_windows
from pipeline.engines.ranks import start_ranks
from pipeline.launch.worker import unpack
from pipeline.measuring import extra_memory, interleaved_times, median_ratio, summed
from pipeline.models import precision
from pipeline.models.arithmetic import has_fast_bf16
from pipeline.models.counting import forward_flops
from pipeline.models.students import student_config
from pipeline.training import step as training_step
from pipeline.training import which_loss
from tests.parts import task_files
from tests.parts.launching import ROOT, environment
from tests.parts.literal_relations import literal_relation_loss
from tests.parts.tiny import make_teacher

TRITON = importlib.util.find_spec("triton") is not None
SMALL = ["--length", "32", "--batch", "64", "--repeats", "2", "--at", "1000000"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    data.make_corpus(folder, sources=5, tokens=60_000)
    return folder


def run(monkeypatch, capsys, *arguments) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    bench.main()
    return capsys.readouterr().out.splitlines()


def test_the_random_corpus_is_a_whole_corpus_of_very_different_sources(corpus):
    assert verify(corpus, deep=True) == []
    sizes = [source.tokens for source in open_corpus(corpus).sources.values()]
    assert len(sizes) == 5 and 60_000 <= sum(sizes) < 60_010 and 900 < max(sizes) / min(sizes) < 1100


def test_the_bare_gather_copies_the_very_rows_that_the_windows_read(corpus):
    windows = training_windows(open_corpus(corpus), 32)
    samples = order_of(windows, 0.3, 1)(10_000, 10_300)
    gather = data.BareGather(windows)
    assert np.array_equal(gather(*gather.rows(samples)), windows.read(samples.source, samples.window).numpy())


@pytest.mark.parametrize("batch", [64, 3000, 9000])
def test_each_repetition_reads_other_blocks_and_who_goes_first_alternates(corpus, monkeypatch, batch):
    seen = []

    def note(windows, order, gather, starts, bare_first):
        seen.append((starts, bare_first))
        return [2.0, 1.0]

    monkeypatch.setattr(data, "_stretch_times", note)
    windows = training_windows(open_corpus(corpus), 32)
    times = data.compare_with_bare(windows, order_of(windows, 0.3, 1), batch, 10**9, repeats=3)
    assert times.shape == (3, 2) and np.allclose(times[:, 0], 2 * times[:, 1])
    assert [bare_first for _, bare_first in seen] == [False, True] * 4
    stretches = [(starts[0], starts[-1] + batch) for starts, _ in seen]
    assert all(stop - start >= data.BLOCK for start, stop in stretches)
    blocks = [set(range(start // data.BLOCK, -(-stop // data.BLOCK))) for start, stop in stretches]
    assert sum(map(len, blocks)) == len(set.union(*blocks))
    assert seen[0][0][0] // data.BLOCK == 10**9 // data.BLOCK


def test_the_table_has_a_line_for_each_measure(corpus, monkeypatch, capsys):
    monkeypatch.setattr(data, "_STEPS", 3)
    lines = run(monkeypatch, capsys, "data", "--data", corpus, *SMALL)
    names = ["restored", "batch", "bare gather", "ratio", "reading", "training step", "data wait"]
    assert [line[:14].strip() for line in lines] == names
    assert "at sample 1000000" in lines[0] and "64 sequences × 32" in lines[1]


def test_for_machines_there_is_one_json_object_a_line_and_the_random_corpus_is_deleted(monkeypatch, capsys):
    made = []
    monkeypatch.setattr(data, "TOKENS", 30_000)
    monkeypatch.setattr(data, "training_wait", lambda windows, order, at: (0.5, 0.01))
    monkeypatch.setattr(data, "open_corpus", lambda folder: (made.append(folder), open_corpus(folder))[1])
    lines = run(monkeypatch, capsys, "data", "--sources", "3", *SMALL, "--json")
    rows = {row["measure"]: row for row in map(json.loads, lines)}
    assert len(rows) == len(lines) == 7 and all(row["bench"] == "data" for row in rows.values())
    assert rows["reading"]["value"] == pytest.approx(64 * 32 / rows["batch"]["value"] / 1e3)
    assert (rows["data wait"]["value"], rows["data wait"]["unit"]) == (1.0, "%")
    assert not made[0].exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["data", "--batch", "0"], "argument --batch: '0' is not a whole number of at least 1"),
        (["data", "--length", "two"], "argument --length: 'two' is not a whole number of at least 3"),
        (["data", "--at", "inf"], "argument --at: 'inf' is not a whole number of at least 0"),
        (["dta"], "invalid choice: 'dta' (choose from loss, step, data, teacher, finetune, kernel, gpu, all)"),
        ([], "the following arguments are required: WHAT"),
        (["data", "--data", "/no/such/corpus"], "/no/such/corpus: no such folder"),
        (["loss", "--length", "0"], "argument --length: '0' is not a whole number of at least 1"),
        (["loss", "--pairs", "qk,qx"], "argument --pairs: 'qk,qx' is not different pairs of q, k and v"),
        (["loss", "--heads", "13"], "--heads 13: does not divide the teacher's width 768; use 12 or 16"),
        (["loss", "--heads", "1000"], "--heads 1000: does not divide the teacher's width 768; use 384"),
        (["step", "--student", "6*384"], "argument --student: '6*384' is not LAYERSxWIDTH"),
        (["step", "--loss-kernel", "fast"], "argument --loss-kernel: invalid choice: 'fast'"),
        (["gpu", "--parts", "kernels"], "argument --parts: invalid choice: 'kernels'"),
        (["gpu", "--minutes", "0"], "argument --minutes: '0' is not a whole number of at least 1"),
        (["step", "--dropout", "1"], "argument --dropout: '1' is not a number from 0 to below 1"),
        (["step", "--student", "6x384", "2x100"], "--heads 12: does not divide the student 2x100's width 100; use 4"),
        (["step", "--layer", "13"], "teacher.layer = 13: must be one of the teacher's layers 1 to 12"),
        (["finetune", "--task", "rte"], "the following arguments are required: --model"),
        (["finetune", "--model", "m", "--task", "rtee"], "rtee: unknown task; did you mean rte?"),
        (
            ["finetune", "--model", "m", "--task", "rte", "--epochs", "0"],
            "argument --epochs: '0' is not a whole number",
        ),
        (["finetune", "--model", "m", "--task", "rte", "--data", "/no/such"], "--data /no/such: no such folder"),
        (["all", "--length", "5"], "unrecognized arguments: --length 5"),
    ],
)
def test_a_bad_option_is_reported_in_one_line(monkeypatch, capsys, arguments, message):
    with pytest.raises(UserError) as error:
        run(monkeypatch, capsys, *arguments)
    assert message in re.sub(r"'(\w+)'(?=[,)])", r"\1", str(error.value)) and "\n" not in str(error.value)


def test_the_command_exits_with_2_at_a_bad_option():
    command = [sys.executable, "-m", "pipeline.bench", "data", "--batch", "many"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: argument --batch: 'many' is not a whole number")


# --- loss and step ----------------------------------------------------------------------------------------------------

LOSS = ["loss", "--json", "--no-compile", "--batch", "2", "--widths", "96", "48", "--repeats", "1"]
STEP = ["step", "--json", "--compile", "none", "--teacher", "3x48", "--batch", "2", "--length", "8", "--repeats", "1"]


def json_rows(lines: list[str]) -> tuple[dict, list[dict]]:
    """The description of the machine, and the rows."""
    machine, *rows = map(json.loads, lines)
    return machine, rows


def values(rows: list[dict], **case) -> dict[str, float]:
    """The values by measure of the rows that have ``case``."""
    chosen = [row for row in rows if case.items() <= row.items()]
    assert len({row["measure"] for row in chosen}) == len(chosen) > 0
    return {row["measure"]: row["value"] for row in chosen}


@pytest.fixture
def no_memory(monkeypatch):
    """Memory of known sizes, since a process of its own for each case takes seconds."""
    monkeypatch.setattr(loss, "extra_memory", lambda make, case, device: case.length * 2**20)
    monkeypatch.setattr(loss, "runs_fused", lambda case: False)  # interpreted, so many heads take minutes


@pytest.mark.slow
def test_loss_measures_every_number_of_heads_at_every_length(monkeypatch, capsys, no_memory):
    machine, rows = json_rows(run(monkeypatch, capsys, *LOSS, "--length", "32", "16"))
    assert machine["bench"] == "machine" and machine["threads"] == torch.get_num_threads() and machine["name"]
    assert {row["bench"] for row in rows} == {"loss"}
    for heads, pairs in ((12, "qk,vv"), (48, "qq,kk,vv")):
        for length in (16, 32):
            got = values(rows, heads=heads, pairs=pairs, length=length, batch=2, widths=[96, 48])
            assert got["literal / ours"] == pytest.approx(got["literal"] / got["ours"])
            assert got["ours / products"] == pytest.approx(got["ours"] / got["products"])
            assert (got["memory of literal"], got["memory of ours"], got["memory ratio"]) == (length, length, 1)
        assert values([row for row in rows if "length" not in row], heads=heads) == {"growth of memory": 2}


def test_the_fused_loss_is_measured_where_it_runs(monkeypatch, capsys, no_memory):
    pytest.importorskip("triton")
    monkeypatch.setattr(loss, "runs_fused", lambda case: True)
    monkeypatch.setattr(relations, "reason_against", lambda *_: "")  # its proof takes as long as all else here
    few = ["--length", "16", "--heads", "2", "--pairs", "qq", "--widths", "16", "8"]
    got = values(json_rows(run(monkeypatch, capsys, *LOSS, *few))[1])
    assert got["ours / fused"] == pytest.approx(got["ours"] / got["fused"])
    assert got["fused, a sequence"] == pytest.approx(1e3 * got["fused"] / 2)  # µs of one of two sequences


def test_a_wrong_fused_loss_is_not_measured(monkeypatch, capsys):
    right = loss.relation_loss

    def wrong(*arguments):
        *usual, fused = arguments
        losses = right(*usual, False)
        return {name: value * (1.01 if fused else 1) for name, value in losses.items()}

    monkeypatch.setattr(loss, "runs_fused", lambda case: True)
    monkeypatch.setattr(loss, "relation_loss", wrong)
    with pytest.raises(RuntimeError, match="the loss differs from the literal one's by"):
        run(monkeypatch, capsys, *LOSS, "--length", "16", "--heads", "12")


def test_a_literal_loss_that_does_not_fit_the_memory_is_left_out(monkeypatch, capsys, no_memory):
    monkeypatch.setattr(loss, "free_memory", lambda device: 10_000)
    _, rows = json_rows(run(monkeypatch, capsys, *LOSS, "--length", "16", "--heads", "12"))
    assert {"ours", "products", "literal needs"} <= set(values(rows)) and "literal" not in values(rows)
    assert values(rows)["literal needs"] == pytest.approx(8 * 4 * 2 * 12 * 16**2 / 2**20)


def test_the_literal_loss_is_the_papers_formula():
    case = loss.Case(Setting(("qk", "vv"), 2), 5, 2, (8, 4), compiled=False)
    models = [[x.detach().double() for x in model] for model in loss.inputs(case)]
    wanted = literal_relation_loss(*models, ("qk", "vv"), 2, [5, 5])["loss"]
    assert loss.literal(case)()[0].item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("pairs, heads", [(("qk", "vv"), 12), (("qq", "kk", "vv"), 48), (("qk", "kq"), 3)])
def test_ours_and_the_literal_loss_agree(pairs, heads):
    case = loss.Case(Setting(pairs, heads), 40, 3, (96, 48), compiled=False)
    loss.check_agreement(case)


@pytest.mark.parametrize("what", ["loss", "gradient of v"])
def test_a_wrong_loss_is_not_measured(monkeypatch, capsys, what):
    right = loss.relation_loss

    def wrong(teacher, student, *arguments):
        losses = right(teacher, student, *arguments)
        off = (
            1.01 * losses["loss"]
            if what == "loss"
            else losses["loss"] + (x := student.v.float().sum() / 1e4) - x.detach()
        )
        return {"loss": off}

    monkeypatch.setattr(loss, "relation_loss", wrong)
    with pytest.raises(RuntimeError, match=f"the {what} differs from the literal one's by"):
        run(monkeypatch, capsys, *LOSS, "--length", "16")


@pytest.mark.slow
def test_the_literal_loss_takes_twelve_times_the_memory_of_ours_on_any_cpu():
    case = loss.Case(Setting(("qk", "vv"), 12), 512, 8, (768, 384), compiled=False)
    cpu = torch.device("cpu")
    literal, ours = (extra_memory(make, case, cpu) for make in (loss.literal, loss.ours))
    assert literal > 12 * ours and literal > 3 * 4 * 8 * 12 * 512**2  # at the least three maps at a time


def test_works_are_run_in_rotating_order_and_the_first_repetition_does_not_count():
    seen = []
    works = {name: lambda name=name: seen.append(name) for name in "abc"}
    times = interleaved_times(works, 3, torch.device("cpu"))
    assert "".join(seen) == "abc" + "bca" + "cab" + "abc" and [len(times[name]) for name in "abc"] == [3, 3, 3]
    assert median_ratio([1.0, 4.0, 9.0], [1.0, 2.0, 1.0]) == 2
    assert summed([1.0, 2.0], [3.0, 4.0]) == [4, 6]


@pytest.mark.slow
def test_step_compares_an_update_with_its_floor(monkeypatch, capsys):
    machine, rows = json_rows(run(monkeypatch, capsys, *STEP, "--student", "2x48", "--precision", "fp32"))
    assert machine["precision"] == "fp32" and {row["bench"] for row in rows} == {"step"}
    shape = student_config(BertConfig(hidden_size=48), 2, 48, 12, 192, 0.1)
    flops = 2 * (forward_flops(shape, 3, 8) + 3 * forward_flops(shape, 2, 8))
    for heads, pairs in ((12, "qk,vv"), (48, "qq,kk,vv")):
        got = values(rows, heads=heads, pairs=pairs, students=["2x48"])
        assert got["floor / step"] == pytest.approx(got["floor"] / got["step"])
        assert got["model speed"] == pytest.approx(flops / got["step"] / 1e9)
        shares = {name: value for name, value in got.items() if name.startswith("share of ")}
        assert {name[9:] for name in shares} == {"teacher", "student", "loss", "optimizer", "data wait"}
        assert sum(shares.values()) == pytest.approx(100) and min(shares.values()) > 0
        assert "together / alone" not in got
    first = values(rows, heads=12)
    got = values([row for row in rows if "heads" not in row])
    assert got["checkpoint's share"] == pytest.approx(
        100 * got["checkpoint"] / (got["checkpoint"] + 5000 * first["step"])
    )
    assert got["DeepSpeed's own"] == pytest.approx(100 * (got["DeepSpeed"] / got["plain torch"] - 1))


@pytest.mark.slow
def test_both_ways_of_bf16_products_are_compared_in_one_run(monkeypatch, capsys):
    seen = []

    def timed(works, *_):
        seen.extend(works)
        return {name: [{"step 0, native": 6.0, "step 0, widened": 4.0}.get(name, 1.0)] for name in works}

    monkeypatch.setattr(bench_step, "interleaved_times", timed)
    few = ["--student", "1x24", "--heads", "2", "--pairs", "qk,vv", "--arithmetic", "native", "widened", "native"]
    machine, rows = json_rows(run(monkeypatch, capsys, *STEP, *few))
    assert set(machine["bf16_products"]) == {"native", "widened"}
    works = ("teacher", "plain 0", "engine 0", "step 0")
    assert seen == [f"{name}, {way}" for way in ("native", "widened") for name in works]
    steps = {row["arithmetic"]: row["value"] for row in rows if row["measure"] == "step"}
    assert steps == {"native": 6.0, "widened": 4.0}
    (both,) = (row for row in rows if row["measure"] == "native / widened")
    assert both["value"] == 1.5 and "arithmetic" not in both and both["heads"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("way", ["native", "widened"])
def test_a_measured_update_takes_products_in_the_way_that_is_asked_for(way):
    arguments = [*STEP, "--student", "1x24", "--heads", "12"]
    made = bench_step.Models(bench.parser().parse_args(arguments), [Setting(("qk", "vv"), 12)], start_ranks(), way)
    kinds = {type(made.teacher.body.last.projections[0]), type(made.engines[0].module.body.last.projections[0])}
    kinds.add(type(made.plain[0]._student.body.last.projections[0]))
    assert kinds == {precision.WideLinear if way == "widened" else torch.nn.Linear}
    assert (made.teacher.body.last.projections[0].weight.dtype == torch.float32) == (way == "widened")


@pytest.mark.slow
def test_a_step_is_measured_with_what_computes_its_loss(monkeypatch, capsys):
    asked = []
    kernel = which_loss.reason_against
    monkeypatch.setattr(
        which_loss, "reason_against", lambda *words: (asked.append(words), "" if TRITON else kernel(*words))[1]
    )
    monkeypatch.setattr(relations, "reason_against", lambda *_: "")
    kinds = ["literal", "torch", *(["triton"] if TRITON else [])]
    few = ["--student", "1x24", "--heads", "2", "--pairs", "qk,vv", "--loss-kernel", *kinds]
    _, rows = json_rows(run(monkeypatch, capsys, *STEP, *few))
    notes = {row["loss_kernel"]: row["note"].partition("; the loss ")[2] for row in rows if row["measure"] == "step"}
    wanted = {"literal": "by the formula, with whole maps", "torch": "over blocks of maps", "triton": "by its kernel"}
    assert notes == {kind: wanted[kind] for kind in kinds} and len(asked) == TRITON


@pytest.mark.slow
def test_a_literal_update_that_does_not_fit_the_memory_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(bench_step, "free_memory", lambda device: 10_000)
    few = ["--student", "1x24", "--heads", "2", "--pairs", "qk,vv", "--loss-kernel", "literal", "torch"]
    _, rows = json_rows(run(monkeypatch, capsys, *STEP, *few))
    assert [row["loss_kernel"] for row in rows if row["measure"] == "step"] == ["torch"]
    assert values(rows, loss_kernel="literal") == {"literal needs": pytest.approx(8 * 4 * 2 * 2 * 8**2 / 2**20)}
    with pytest.raises(UserError, match="--loss-kernel literal: its maps do not fit the memory; use a smaller --batch"):
        run(monkeypatch, capsys, *STEP, *few[:-1])


@pytest.mark.slow
def test_the_literal_update_learns_what_ours_learns():
    arguments = [*STEP, "--student", "1x24", "--heads", "2", "--dropout", "0", "--precision", "fp32"]
    settings = [Setting(("qk", "vv"), 2, by) for by in ("literal", "torch")]
    made = bench_step.Models(bench.parser().parse_args(arguments), settings, start_ranks())
    teacher = made.teach(made.ids)
    losses = [trainees[0].losses(teacher, trainees[0].engine(made.ids), None)["loss"] for trainees in made.trainees]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5) and losses[0].requires_grad


@pytest.mark.slow
def test_several_students_are_measured_together_and_alone(monkeypatch, capsys):
    lines = run(monkeypatch, capsys, "--local_rank=0", *STEP, "--student", "2x48", "1x24", "--heads", "12")
    got = values(json_rows(lines)[1], heads=12, students=["2x48", "1x24"])
    assert got["together / alone"] == pytest.approx(got["step"] / got["each alone, summed"])


@pytest.mark.slow
def test_the_cost_of_word_embeddings_is_that_over_students_whose_own_are_not_trained(monkeypatch, capsys):
    arguments = [*STEP, "--student", "1x24", "--heads", "12", "--embeddings", "--vocabulary", "31000"]
    with monkeypatch.context() as patch:
        fake = {"step": [4.0], "frozen": [3.0]}
        patch.setattr(
            bench_step,
            "interleaved_times",
            lambda works, *_: {name: fake.get(name.split()[0], [1.0]) for name in works},
        )
        _, rows = json_rows(run(monkeypatch, capsys, *arguments))
    assert values(rows, heads=12, vocabulary=31000)["word embeddings"] == pytest.approx(25)
    made = bench_step.Models(bench.parser().parse_args(arguments), [Setting(("qk", "vv"), 12)], start_ranks())
    for trainees, trained in ((made.trainees[0], True), (made.frozen[0], False)):
        module = trainees[0].engine.module
        words, matrix = module.embeddings[0].word_embeddings.weight, module.body.last.projections[0].weight
        before = words.clone(), matrix.clone()
        trainees[0].engine.optimizer.param_groups[0]["lr"] = 1.0
        monkeypatch.setattr(training_step, "set_learning_rate", lambda *_: None)
        made.update(trainees)
        assert not torch.equal(matrix, before[1]) and torch.equal(words, before[0]) is not trained


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.slow
def test_the_floor_is_a_whole_update_in_plain_torch(precision):
    arguments = [*STEP, "--student", "2x48", "--heads", "12", "--dropout", "0", "--precision", precision]
    made = bench_step.Models(bench.parser().parse_args(arguments), [Setting(("qk", "vv"), 12)], start_ranks())
    plain, engine = made.plain[0], made.engines[0]
    names = {name: name for name, _ in engine.module.named_parameters()}

    def weights() -> torch.Tensor:
        """fp32 weights of both, [2, all]."""
        plain(made.ids)
        made.trivial_update(0)
        state = bench_step.read_state(engine, names, True)
        both = [weight.detach() for weight in plain._masters], [state[name] for name in names]
        return torch.stack([torch.cat([x.flatten() for x in one]) for one in both])

    before = weights()
    weights()
    moved, under = weights() - before
    assert moved.norm() > 0 and (moved - under).norm() < 0.05 * moved.norm()
    assert all(torch.equal(low, high.to(low.dtype)) for low, high in zip(plain._weights, plain._masters, strict=True))


def test_all_is_each_with_its_defaults(monkeypatch, capsys):
    seen = []
    kinds = ("loss", "step", "data")
    measure = {kind: lambda options, kind=kind: iter([(seen.append((kind, options)), ROW)[1]]) for kind in kinds}
    monkeypatch.setattr(bench, "_MEASUREMENTS", measure)
    lines = run(monkeypatch, capsys, "all")
    assert [kind for kind, _ in seen] == list(kinds) and [options.batch for _, options in seen] == [8, 4, 2048]
    assert f"{torch.get_num_threads()} threads" in lines[0] and sum("a note" in line for line in lines) == 3
    assert seen[0][1].length == [512] and seen[0][1].compile and seen[1][1].student == [(6, 384)]


ROW = Row("measure", 1.0, "s", "a note")


def teacher_rows(options):
    """The rows of ``bench teacher`` by what they measure."""
    command = [sys.executable, "-m", "pipeline.bench", "teacher", *options.split(), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert result.returncode == 0, result.stderr[-2000:]
    return {row["measure"]: row for row in map(json.loads, result.stdout.splitlines()) if row["bench"] == "teacher"}


@pytest.mark.slow
def test_a_sharded_teacher_is_exact_and_its_memory_and_traffic_are_those_of_the_formulas():
    rows = teacher_rows("--ranks 2 --layers 4 --width 640")
    assert rows["exact"]["value"] == 1
    assert rows["gathered / formula"]["value"] == pytest.approx(1, abs=0.01)
    assert rows["peak / bound"]["value"] < 1 and rows["forward / bound"]["value"] < 1  # with prefetching it is 2.8
    assert rows["gloo's copies"]["value"] == pytest.approx(2 * 640 * 2560 * 2 / 2**20)  # bytes of bf16
    assert (
        rows["after loading"]["value"] < 1.3 * rows["layers / ranks"]["value"]
    )  # MiB; whole it would be twice as much
    assert rows["loading"]["note"] == "by 1 of 2 ranks"


def test_the_ranks_of_a_sharded_teacher_keep_to_the_visible_devices(monkeypatch, capsys):
    started = []

    def start(command, env):
        started.append((command, env))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(bench_teacher.subprocess, "run", start)
    small = ["teacher", "--width", "80", "--layers", "2", "--vocabulary", "99"]
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, *small, "--ranks", "2")
    (command, env), *_ = started
    assert command[command.index("--include") + 1] == "localhost:0,1" and "--num_gpus" not in command
    assert "CUDA_VISIBLE_DEVICES" not in env  # the launcher sets it, and would ignore this one
    content = unpack(command[-1])
    assert content["environment"]["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert content["module"] == "pipeline.bench" and content["arguments"][:-1] == [*small, "--ranks", "2", "--folder"]
    with pytest.raises(UserError, match=r"--ranks 4: more than the 3 GPUs that are visible"):
        run(monkeypatch, capsys, *small, "--ranks", "4")


@pytest.mark.slow
def test_a_teacher_on_one_rank_gathers_nothing():
    rows = teacher_rows("--ranks 1 --layers 2 --width 80")
    assert rows["exact"]["value"] == 1 and rows["gathered"]["value"] == 0 and "gathered / formula" not in rows


def test_a_teacher_of_no_whole_heads_is_rejected(monkeypatch, capsys):
    with pytest.raises(UserError, match="--width 100: must be a multiple of 80"):
        run(monkeypatch, capsys, "teacher", "--width", "100")


# --- fine-tuning ------------------------------------------------------------------------------------------------------


@pytest.fixture
def finetune(tmp_path, monkeypatch, capsys):
    """Runs bench finetune on a small model and a small task whose first word is the label."""
    model = make_teacher(tmp_path / "small", layers=1, hidden=16, positions=160)
    task_files.write_glue(tmp_path / "data", "rte", train=160, dev=40)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["--model", model, "--task", "rte", "--data", tmp_path / "data", "--learning-rate", "1e-2", "--steps", 2]
    return lambda *more: run(monkeypatch, capsys, "finetune", "--json", *words, "--repeats", 2, *more)


@pytest.fixture
def seen(monkeypatch):
    """The batches, as rows without padding, that a plain Trainer and evaluate's were given."""
    found = {"plain": [], "ours": []}
    step = Trainer.training_step

    def recorded(self, model, inputs, *rest):
        dropouts = {type(part) for part in model.modules() if isinstance(part, torch.nn.Dropout)}
        kind = "ours" if dropouts == {precision.BulkDropout} else "plain"
        assert kind == "ours" or dropouts == {torch.nn.Dropout}
        mask = inputs["attention_mask"]
        found[kind].append([row[:n].tolist() for row, n in zip(inputs["input_ids"], mask.sum(1).tolist(), strict=True)])
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(Trainer, "training_step", recorded)
    return found


@pytest.mark.slow
def test_fine_tuning_is_compared_with_a_plain_trainer_on_the_same_batches(finetune, seen):
    machine, rows = json_rows(finetune("--epochs", 9))
    assert machine["precision"] == ("bf16" if has_fast_bf16(torch.device("cpu")) else "fp32")
    assert seen["plain"] == seen["ours"] and len(seen["plain"]) == 2 * (1 + 2)  # steps × repetitions, one warms up
    case = {"model": "small", "task": "rte", "learning_rate": 0.01, "epochs": 9, "batch": 32, "length": 128}
    got = values(rows, **case)
    assert set(got) == {"plain Trainer", "evaluate", "evaluate / plain"} and min(got.values()) > 0


@pytest.mark.slow
def test_with_seeds_the_plain_trainer_is_scored_when_it_has_trained_to_the_end(finetune, seen):
    got = values(json_rows(finetune("--epochs", "24", "--seeds", "1", "2"))[1])
    assert got["seed 1"] > 90 and got["seed 2"] > 90
    first, second = seen["plain"][-240:-120], seen["plain"][-120:]  # 24 epochs of 5 batches
    first, second = ([row for batch in each for row in batch] for each in (first, second))
    assert len(seen["ours"]) == 6 and first != second and sorted(first) == sorted(second)


@pytest.mark.slow
def test_a_plain_trainer_that_diverges_is_no_score(finetune):
    with pytest.raises(UserError, match="seed 1: the training loss is nan; try a lower learning rate"):
        finetune("--epochs", "2", "--seeds", "1", "--learning-rate", "1e30")


def test_fine_tuning_is_measured_for_one_task_at_a_time(finetune, tmp_path):
    task_files.write_glue(tmp_path / "data", "mrpc")
    with pytest.raises(UserError, match="--task rte,mrpc: measure one task at a time"):
        finetune("--task", "rte,mrpc")
