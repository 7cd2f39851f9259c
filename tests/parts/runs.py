"""Small whole runs for tests: the jobs that tests.parts.jobs takes, and what is read from their folders and compared."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from pipeline.artifacts import checkpoints
from pipeline.artifacts.metrics import read_metrics
from tests.parts.tiny import make_recipe

STAGES = (0, 1, 2, 3)  # of ZeRO
# Relative differences of the loss that stages, hostings and numbers of ranks may make over six steps. In fp32 only the
# order of sums differs; in bf16 also where a gradient is rounded, and stage 0 adds gradients up in bf16.
TOLERANCE = {"fp32": 3e-6, "bf16": 4e-3}
DOC = ("layout=doc", "precision=fp32", "student.dropout=0.0", "teacher.hosting=zero3")
# Unequal in everything that a student may have of its own.
STUDENTS = {
    "deep": "layers = 3\nhidden = 16\ndropout = 0.1\nds_config = 'student_zero3.json'",
    "wide": "layers = 1\nhidden = 32\ndropout = 0.2\nds_config = 'student_zero1.json'",
    "plain": "layers = 2\nhidden = 16\ndropout = 0.0\nds_config = 'student_zero0.json'",
}
TIMES = ("tokens_per_second", "data_wait", "model_flops")


def make_recipe_of_several(folder: Path) -> Path:
    """several.toml: the tiny recipe with all of STUDENTS."""
    text = make_recipe(folder).read_text()
    students = (f'[[student]]\nname = "{name}"\n{keys}\nheads = 4\n' for name, keys in STUDENTS.items())
    path = folder / "several.toml"
    path.write_text(text.split("[student]")[0] + "".join(students))
    return path


def job(folder: Path, out: str, *overrides: str, recipe: str = "tiny.toml", **others) -> dict:
    """A job that trains into ``folder``/``out``; ``others`` are further keys of tests.parts.jobs."""
    return {"recipe": str(folder / recipe), "overrides": [f"out={folder / out}", *overrides], **others}


def engine_options(hosting: str, stage: int, precision: str) -> list[str]:
    return [f"teacher.hosting={hosting}", f"student.ds_config=student_zero{stage}.json", f"precision={precision}"]


def options_of(name: str) -> list[str]:
    """Overrides that make the tiny recipe's only student the one of STUDENTS."""
    return [f"student.{key}" for key in STUDENTS[name].replace(" = ", "=").splitlines()]


def losses(run: Path, kind: str = "train", names: tuple[str, ...] = ("loss", "qk", "vv")) -> np.ndarray:
    """[rows, names]."""
    return np.array([[row[name] for name in names] for row in read_metrics(run) if row["kind"] == kind])


def untimed(run: Path) -> list[dict]:
    """The rows of metrics.jsonl without what depends on the time that things took."""
    return [
        {key: value for key, value in row.items() if key not in TIMES and not key.endswith("_share")}
        for row in read_metrics(run)
    ]


def final_state(run: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "state.safetensors")


def assert_recomputed(student: Path) -> None:
    """The exported student's held-out loss was computed again and found to be the run's."""
    assert "Recomputed from this folder at step" in (student / "README.md").read_text()


def assert_same_state(run: Path, other: Path) -> None:
    """Weights and moments of both are the same, bit for bit."""
    ours, theirs = (checkpoints.latest(path).tensors() for path in (run, other))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
