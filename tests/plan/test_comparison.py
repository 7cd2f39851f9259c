"""--measure: the memory model compared with a real run."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data_prep.cli import UserError
from pipeline.plan import comparison, measured
from pipeline.plan.hardware import MIB
from pipeline.plan.text import report_check
from tests.parts import tiny


def measuring_recipe(folder: Path) -> Path:
    """Models of some tens of MiB, so that a few of Python's own do not matter."""
    tiny.make_teacher(folder / "teacher", hidden=768, layers=6)
    path = tiny.make_recipe(folder)
    text = path.read_text().replace("hidden = 16", "hidden = 640\ndropout = 0.1").replace("layers = 2", "layers = 5")
    text = text.replace("length = 16", "length = 64").replace("layer = 3", "layer = 6")
    path.write_text(text.replace("batch = 8\nmicro_batch = 2", "batch = 32\nmicro_batch = 16"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, ["student.ds_config=student_zero1.json"]),
        (2, ["precision=bf16", "teacher.hosting=zero3", "student.ds_config=student_zero2.json"]),
        (1, ["precision=bf16", "arithmetic=widened", "student.ds_config=student_zero1.json"]),
    ],
)
def test_the_memory_model_is_within_a_tenth_of_a_real_run(tmp_path, ranks, overrides):
    rows = comparison.compare(str(measuring_recipe(tmp_path)), overrides, ranks)
    errors = {row.what: round(row.error, 3) for row in rows}
    assert set(errors) >= {"teacher hosted", "students' engines made", "between steps", "backward", "update", "peak"}
    assert all(row.run > 15 * MIB for row in rows), rows  # of which a process of Python gains and loses a few by itself
    assert all(abs(error) < 0.1 for error in errors.values()), errors


@pytest.mark.slow
def test_what_a_measuring_run_says_when_it_fails_is_reported(tmp_path, monkeypatch):
    path = tiny.make_recipe(tmp_path)
    with pytest.raises(UserError, match=r"--measure: the run failed: .*relation_heads = 3: the teacher's width 32"):
        comparison.compare(str(path), ["relation_heads=3", "student.hidden=24"], 1)
    monkeypatch.setattr(comparison, "_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"--measure: not done after 0\.1 s; use a smaller micro_batch"):
        comparison.compare(str(path), [], 1)


def test_measuring_needs_proc(monkeypatch):
    monkeypatch.setattr(comparison, "Path", lambda name: SimpleNamespace(exists=lambda: False))
    with pytest.raises(UserError, match="needs Linux's /proc"):
        comparison.compare("minilm_6x384", [], 1)


def test_each_rank_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--ranks 2: more than the 1 GPUs that are visible"):
        comparison.compare("minilm_6x384", [], 2)


def test_on_a_gpu_memory_is_what_torch_has_allocated(monkeypatch):
    highest = iter([0, 5, 7, 6])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: next(highest))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(highest))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3)
    device = torch.device("cuda", 0)
    peaks = measured.Peaks(device)
    for part in ("teacher", "loss"):
        with peaks(part):
            pass
    assert peaks.by_part() == {"teacher's pass": 5, "student's pass": 6, "peak": 6}
    assert measured._held(device) == 3


def test_the_check_is_printed_next_to_the_run():
    rows = [comparison.Comparison("peak", 110 * MIB, 100 * MIB)]
    assert "peak                           110.0     100.0        1.100" in report_check(rows, 1)
    assert math.isclose(rows[0].error, 0.1)
