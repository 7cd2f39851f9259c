"""bench gpu: parts that fail do not stop the others, everything ends in time, and what it runs are real commands."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.cli import UserError, run_command
from pipeline.bench import __main__ as bench
from pipeline.bench import gpu, gpu_parts, gpu_report
from pipeline.bench.gpu_parts import Part, known_gpu, parts_of
from pipeline.processes import is_alive
from pipeline.settings.reading import load_recipes
from tests.parts.launching import ROOT, environment

GIB = 2**30
CPU = {"device": "cpu", "name": "a CPU", "torch": "2.13.0", "devices": 0, "memory": 8 * GIB}
H100 = {"device": "cuda", "name": "NVIDIA H100 80GB HBM3", "torch": "2.13.0", "devices": 1, "memory": 80 * GIB}

PROGRAM = """
import json, os, subprocess, sys, time
what = sys.argv[1]
print(json.dumps({"bench": "machine", "name": "left out"}))
print(json.dumps({"bench": "loss", "heads": 2, "measure": "loss", "value": 1.5, "unit": "ms", "note": "a | note"}))
if what == "fails":
    print("warning: something else", file=sys.stderr)
    print("error: the reason", file=sys.stderr)
    print("the launcher's last line", file=sys.stderr)
    sys.exit(3)
if what == "raises":
    raise ValueError("no good value")
if what == "finds":
    print(json.dumps({"level": "FAIL", "check": "memory", "text": "none is free"}))
    sys.exit(1)
if what == "inexact":
    print(json.dumps({"bench": "teacher", "measure": "exact", "value": 0.0, "unit": "", "note": ""}))
if what == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    print(json.dumps({"child": child.pid}), flush=True)
    time.sleep(300)
"""


@pytest.fixture
def part(tmp_path):
    """Makes a part of commands that do these things."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def make(name: str, *whats: str, share: int = 1, **more) -> Part:
        path = {"PYTHONPATH": str(tmp_path)}
        return Part(name, f"about {name}", share, tuple(["program", what] for what in whats), path, **more)

    return make


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs bench gpu with these parts: its exit code, gpu.json and gpu.md."""

    def run(parts: list[Part], *arguments: str) -> tuple[int, dict, str]:
        monkeypatch.setattr(gpu, "machine_here", lambda: CPU)
        monkeypatch.setattr(gpu, "parts_of", lambda *_: parts)
        monkeypatch.setattr(gpu, "NAMES", tuple(part.name for part in parts))
        monkeypatch.setattr(sys, "argv", ["bench", "gpu", "--out", str(tmp_path / "out"), *arguments])
        with pytest.raises(SystemExit) as end:
            run_command(bench.main)
        capsys.readouterr()
        out = tmp_path / "out"
        return end.value.code, json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()

    return run


def test_a_part_that_fails_is_reported_and_the_others_run(run, part):
    names = ("fails", "raises", "finds", "inexact")
    code, document, page = run([*(part(name, name, "works") for name in names), part("last", "works", "works")])
    found = {result["part"]: result for result in document["parts"]}
    assert code == 1 and document["passed"] is False
    assert [result["state"] for result in document["parts"]] == ["failed"] * 4 + ["passed"]
    assert found["fails"]["reason"] == "the reason (exit code 3)"
    assert found["raises"]["reason"] == "ValueError: no good value (exit code 1)"
    assert found["finds"]["reason"].endswith("memory: none is free")
    assert found["inexact"]["reason"] == "the sharded teacher's q, k, v are not a replica's"
    assert (
        len(found["fails"]["commands"]) == 1 and len(found["last"]["commands"]) == 2
    )  # the next is not run after a failure
    for name in names:
        assert found[name]["reason"] in page
    assert "not all parts passed" in page


def test_a_part_that_cannot_be_started_is_reported_too(run, part, monkeypatch):
    right = subprocess.Popen

    def broken(command, **more):
        if "breaks" in command:
            raise OSError("no more processes")
        return right(command, **more)

    monkeypatch.setattr(subprocess, "Popen", broken)
    code, document, _ = run([part("first", "breaks"), part("second", "works")])
    assert code == 1 and [result["state"] for result in document["parts"]] == ["failed", "passed"]
    assert document["parts"][0]["reason"] == "OSError: no more processes"


def test_a_part_whose_time_is_over_is_ended_with_what_it_started(run, part, monkeypatch):
    monkeypatch.setattr(gpu, "_GRACE", 0.5)
    begin = time.monotonic()
    monkeypatch.setitem(gpu.MINUTES, "toy", 1 / 6)
    code, document, _ = run([part("slow", "hangs", share=2), part("other", "works", share=6)])
    slow, other = document["parts"]
    assert code == 1 and slow["state"] == "failed" and other["state"] == "passed"
    assert slow["reason"].startswith("not done after the ") and slow["reason"].endswith("s that were left for it")
    child = next(row["child"] for row in slow["rows"] if "child" in row)  # what was printed before the end is kept
    assert not is_alive(child) and time.monotonic() - begin < 60


def test_parts_that_are_skipped_say_why_and_are_no_failure(run, part):
    parts = [part("cannot", "works", skip="Triton is not installed"), part("fetches", "fails", "works", fetches=True)]
    code, document, page = run([*parts, part("works", "works")])
    assert code == 0 and document["passed"] and "all parts passed, 2 skipped" in page
    assert [result["state"] for result in document["parts"]] == ["skipped", "skipped", "passed"]
    assert document["parts"][0]["reason"] == "Triton is not installed" and document["parts"][0]["commands"] == []
    assert document["parts"][1]["reason"] == "the reason (exit code 3)"


def test_a_fetching_part_that_fails_later_has_failed(run, part):
    code, document, _ = run([part("fetches", "works", "fails", fetches=True)])
    assert code == 1 and document["parts"][0]["state"] == "failed"


def test_a_part_gets_its_share_and_what_was_left(run, part, monkeypatch):
    deadlines = []

    def noted(part, logs, deadline):
        deadlines.append(deadline)
        return gpu.Result(part.name, part.about)

    monkeypatch.setattr(gpu, "run_part", noted)
    run([part("one", share=1), part("three", share=3)], "--minutes", "2")
    first, second = deadlines
    assert second - first == pytest.approx(3 / 4 * (120 - 3 * gpu._GRACE))


def test_the_file_for_machines_has_everything(run, part):
    _, document, page = run([part("works", "works")])
    assert set(document) == {"date", "machine", "size", "minutes", "seconds", "passed", "parts"}
    (result,) = document["parts"]
    assert set(result) == {"part", "about", "state", "reason", "seconds", "commands", "rows"}
    assert result["commands"] == ["python -m program works"]
    row = {"bench": "loss", "heads": 2, "measure": "loss", "value": 1.5, "unit": "ms", "note": "a | note"}
    assert result["rows"] == [{"command": 0, **row}]
    assert document["machine"] == CPU and document["size"] == "toy" and document["minutes"] == 20
    assert "| loss | 1.5 | ms | a \\| note |" in page and "heads 2:" in page


def test_only_the_parts_that_are_named_run(run, part):
    _, document, _ = run([part("doctor", "works"), part("kernel", "works")], "--parts", "kernel")
    assert [result["part"] for result in document["parts"]] == ["kernel"]


def test_an_earlier_demo_is_removed_but_nothing_of_others(run, part, tmp_path):
    (tmp_path / "out" / "demo").mkdir(parents=True)
    with pytest.raises(UserError, match=r"--out .*: has a demo/ that is not of this command; name another folder"):
        gpu._prepare(tmp_path / "out")
    (tmp_path / "out" / "gpu.json").write_text("{}")
    run([part("works", "works")])
    assert not (tmp_path / "out" / "demo").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file/below: Not a directory; name a folder that can be written"):
        gpu._prepare(tmp_path / "file" / "below")


def test_full_size_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "machine_here", lambda: CPU)
    with pytest.raises(UserError, match="--size full: there is no GPU here; --size toy runs the same parts on a CPU"):
        gpu.gpu(bench.parser().parse_args(["gpu", "--size", "full"]))


@pytest.mark.parametrize("machine", [CPU, H100, H100 | {"devices": 4}])
@pytest.mark.parametrize("size", ["toy", "full"])
def test_every_part_is_made_of_commands_that_their_parsers_take(size, machine):
    modules = {"data_prep": "data_prep.__main__"}
    modules |= {
        f"pipeline.{verb}": f"pipeline.{verb}.__main__" for verb in ("bench", "plan", "doctor", "launch", "report")
    }
    parts = parts_of(size, machine, Path("out"))
    assert tuple(part.name for part in parts) == gpu_parts.NAMES
    for part in parts:
        for module, *words in part.commands:
            known = importlib.import_module(modules.get(module, module))
            parser = known.parser()
            mixed = module in ("pipeline.plan", "pipeline.launch")
            options = parser.parse_intermixed_args(words) if mixed else parser.parse_args(words)
            if mixed:
                load_recipes(options.recipe, options.overrides)


def test_shares_of_time_make_eight_minutes():
    assert sum(part.share for part in parts_of("full", H100, Path("out"))) == 480


def test_without_triton_a_cpu_skips_the_kernel_and_a_gpu_does_not(monkeypatch):
    monkeypatch.setattr(gpu_parts.importlib.util, "find_spec", lambda name: None)
    skipped = {part.name for part in parts_of("toy", CPU, Path("out")) if part.skip}
    assert skipped == {"kernel", "static"}
    assert not any(part.skip for part in parts_of("full", H100, Path("out")))  # there it is a failure
    step = next(part for part in parts_of("toy", CPU, Path("out")) if part.name == "step")
    assert "triton" not in step.commands[0]


@pytest.mark.parametrize(
    "name, memory, known",
    [
        ("NVIDIA H100 80GB HBM3", 79, "H100"),
        ("NVIDIA H200", 139, "H200"),
        ("NVIDIA GH200 480GB", 95, ""),
        ("NVIDIA A100-SXM4-40GB", 39, "A100-40"),
        ("NVIDIA A100 80GB PCIe", 79, "A100-80"),
        ("NVIDIA B200", 178, "B200"),
        ("NVIDIA L40S", 44, "L40S"),
        ("NVIDIA L4", 22, ""),
        ("Tesla V100-SXM2-32GB", 31, ""),  # the kernel is not compiled for it
        ("AMD Instinct MI300X", 191, ""),
    ],
)
def test_a_gpu_is_known_by_what_it_calls_itself(name, memory, known):
    assert known_gpu(name, memory * GIB) == known


def test_a_gpu_that_is_not_known_skips_the_prediction_alone():
    parts = parts_of("full", H100 | {"name": "AMD Instinct MI300X"}, Path("out"))
    assert {part.name: part.skip for part in parts if part.skip} == {
        "static": "plan knows no GPU like AMD Instinct MI300X that the kernel is compiled for"
    }


def test_predictions_stand_next_to_measurements_of_the_same_shape_only():
    shape = {"pairs": "qk,vv", "heads": 12, "length": 512, "widths": [768, 384]}
    fused = {"measure": "fused, a sequence", "value": 12.0, **shape}
    predicted = {"measure": "predicted", "gpu": "H100", "value": 8.0, **shape}
    parts = [
        {
            "part": "loss",
            "rows": [fused, fused | {"heads": 48, "value": 99.0}, {"measure": "fused", "value": 7.0, **shape}],
        },
        {"part": "static", "rows": [predicted, predicted | {"length": 64}]},
    ]
    rows = gpu_report.predictions({"parts": parts})
    assert rows == [("pairs qk,vv, heads 12, length 512, widths 768 384", "H100", "8.0", "12.0", "1.50")]


def test_plans_memory_stands_next_to_the_runs():
    rows = [{"command": 1, "what": "peak", "model": 3 * 2**20, "run": 2 * 2**20}]
    part = {"part": "memory", "commands": ["python -m pipeline.plan a", "python -m pipeline.plan b x=1"], "rows": rows}
    assert gpu_report.memory({"parts": [part]}) == [("b: peak", "3.0", "2.0", "1.50")]


def test_an_updates_times_stand_next_to_each_other_by_what_computes_the_loss():
    case = {"pairs": "qk,vv", "heads": 12, "length": 8, "teacher": "2x24", "students": ["1x24"], "batch": 2}
    step = {"measure": "step", **case}
    rows = [step | {"value": 0.2, "loss_kernel": "literal"}, step | {"value": 0.1}]
    ((shape, *times),) = gpu_report.updates({"parts": [{"part": "step", "rows": rows}]})
    assert "students 1x24" in shape and times == ["200.00", "", "100.00", ""]


@pytest.mark.parametrize(
    "errors, reason",
    [
        ("", "exit code 9"),
        ("some words\nlast words\n", "last words (exit code 9)"),
        ("[rank0]: error: bad key\nexits with return code = 2\n", "bad key (exit code 9)"),
        (
            "Traceback\ntorch.OutOfMemoryError: CUDA out of memory\n",
            "torch.OutOfMemoryError: CUDA out of memory (exit code 9)",
        ),
        ("error: one\nerror: two\n", "two (exit code 9)"),
    ],
)
def test_the_line_that_says_why_is_found(errors, reason):
    assert gpu.reason_in(errors, 9) == reason


@pytest.mark.slow
def test_it_runs_here_at_toy_size(tmp_path):
    """All parts but the demo, which fetches; ./run.sh demo runs the same commands."""
    parts = [name for name in gpu_parts.NAMES if name != "demo"]
    command = [sys.executable, "-m", "pipeline.bench", "gpu", "--out", str(tmp_path), "--parts", *parts, "--json"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment() | {"TRITON_INTERPRET": ""}
    )
    document = json.loads(result.stdout)
    states = {part["part"]: (part["state"], part["reason"]) for part in document["parts"]}
    assert result.returncode == 0 and set(states) == set(parts), states
    triton = importlib.util.find_spec("triton") is not None
    assert all(
        state == ("passed", "") for name, state in states.items() if triton or name not in ("kernel", "static")
    ), states
    assert document == json.loads((tmp_path / "gpu.json").read_text())
    page = (tmp_path / "gpu.md").read_text()
    assert ("prediction and measurement" in page) is triton and "Memory: plan and measurement" in page
    kernels = [row for part in document["parts"] if part["part"] == "kernel" for row in part["rows"]]
    assert not triton or {row["name"] for row in kernels} >= {
        "MiniLM",
        "MiniLMv2",
        "ragged",
        "one token",
        "fp16",
        "fp32",
    }
    assert (tmp_path / "logs" / "loss-1.out").is_file()
