"""training.monitor: the rows a run leaves, across interruptions."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pipeline.artifacts.metrics import read_metrics, source_rows
from pipeline.data.reading import Reading
from pipeline.relations import QKV, relation
from pipeline.training.maps import relation_image, relation_maps
from pipeline.training.monitor import Monitor
from tests.parts import launching


def write(run, start, stop):
    monitor = Monitor(run, start, 10, 100)
    for step in range(start + 1, stop + 1):
        monitor.log(step, {"loss": 1 / step}, learning_rate=0.1)
        monitor.resume()
    monitor.close()


def test_rows_after_the_step_a_run_goes_on_from_are_made_again(tmp_path):
    write(tmp_path, 0, 6)
    write(tmp_path, 4, 10)  # killed after step 6, its checkpoint was of step 4
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 11))


def test_a_run_from_the_start_forgets_an_earlier_one(tmp_path):
    write(tmp_path, 0, 6)
    write(tmp_path, 0, 2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_half_written_last_line_is_left_out(tmp_path):
    write(tmp_path, 0, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_what_was_read_of_each_source_and_its_loss_are_kept(tmp_path):
    monitor = Monitor(tmp_path, 0, 10, 100)
    for step in (0, 5):
        monitor.of_sources(
            step, {"de": Reading(30 * step, 0.6, 0.7, 0.5), "sw": Reading(20 * step, 0.4, 0.3, 2.0)}, {"sw": 0.25}
        )
    monitor.close()
    assert source_rows(tmp_path, 4) == [
        (
            0,
            {
                "de": {"tokens": 0, "share": 0.6, "planned": 0.7, "epochs": 0.5},
                "sw": {"tokens": 0, "share": 0.4, "planned": 0.3, "epochs": 2.0, "loss": 0.25},
            },
        )
    ]
    assert [step for step, _ in source_rows(tmp_path, 5)] == [0, 5]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("tokens_by_source/de")] == [0, 150]
    assert [event.value for event in board.Scalars("heldout_loss_by_source/sw")] == [0.25, 0.25]


def test_time_spent_outside_steps_does_not_slow_the_rate(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("pipeline.training.monitor.time.perf_counter", lambda: clock[0])
    monitor = Monitor(tmp_path, 0, 10, tokens_per_step=100)
    for step in (1, 2, 3, 4):
        clock[0] += 2.0
        if step % 2 == 0:
            monitor.log(step, {"loss": 1.0})
        else:
            monitor.step(step)
        clock[0] += 60.0  # an evaluation
        monitor.resume()
    monitor.close()
    assert [row["tokens_per_second"] for row in read_metrics(tmp_path)] == [50.0, 50.0]


def test_waiting_for_data_is_told_as_a_share_of_the_training_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("pipeline.training.monitor.time.perf_counter", lambda: clock[0])
    monitor = Monitor(tmp_path, 0, 10, tokens_per_step=100)
    for step in (1, 2, 3, 4):
        clock[0] += 0.1 * step
        monitor.received()
        clock[0] += 1.0
        if step % 2 == 0:
            monitor.log(step, {"loss": 1.0})
        else:
            monitor.step(step)
        clock[0] += 60.0  # an evaluation
        monitor.resume()
    monitor.close()
    assert [row["data_wait"] for row in read_metrics(tmp_path)] == pytest.approx([0.3 / 2.3, 0.7 / 2.7])


@contextlib.contextmanager
def full_disk(file):
    """No write to an open file is accepted, as the kernel does it of a full disk."""
    kept, full = os.dup(file.fileno()), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file.fileno())
    yield
    if not file.closed:
        os.dup2(kept, file.fileno())
    os.close(kept)
    os.close(full)


@pytest.mark.parametrize("attribute, name", [("_file", "metrics.jsonl"), ("_text", "log.txt")])
def test_a_full_disk_under_a_file_is_noted_and_its_rows_are_written_once_there_is_space(tmp_path, attribute, name):
    monitor = Monitor(tmp_path, 0, 10, 100)
    monitor.log(1, {"loss": 1.0})
    assert monitor.failure == ""
    with full_disk(getattr(monitor, attribute)):
        for step in (2, 3):
            monitor.log(step, {"loss": 1.0})
        assert monitor.failure == f"{tmp_path / name}: No space left on device"
    monitor.log(4, {"loss": 1.0})
    monitor.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("/")[0] for line in lines] == [f"step {step}" for step in (1, 2, 3, 4)]


def test_a_disk_that_stays_full_takes_nothing_and_raises_nothing(tmp_path):
    monitor = Monitor(tmp_path, 0, 10, 100)
    with full_disk(monitor._file), full_disk(monitor._text):
        monitor.log(1, {"loss": 1.0})
        monitor.close()
    assert monitor.failure == f"{tmp_path}/metrics.jsonl: No space left on device"
    assert read_metrics(tmp_path) == []


TENSORBOARD = """
import os, sys, time
from pathlib import Path
from pipeline.training.monitor import Monitor
run = Path(sys.argv[1])
monitor = Monitor(run, 0, 10, 100)
(events,) = (run / "tensorboard").iterdir()
monitor._board.flush()
events.unlink()
events.symlink_to("/dev/full")
if len(sys.argv) > 2:
    os.dup2(os.open("/dev/full", os.O_WRONLY), sys.stdout.fileno())
for step in range(1, 30):  # more rows than its queue has places
    monitor.log(step, {"loss": 1.0})
    time.sleep(0.01)
monitor.close()
print(monitor.failure, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize("output_too", [False, True])
def test_a_full_disk_under_tensorboard_or_the_output_neither_hangs_nor_ends_in_a_traceback(tmp_path, output_too):
    arguments = ["full"] if output_too else []
    result = subprocess.run(
        [sys.executable, "-c", TENSORBOARD, str(tmp_path), *arguments],
        env=launching.environment(), cwd=launching.ROOT, capture_output=True, text=True, timeout=launching.PATIENCE,
    )  # fmt: skip
    named = {f"{tmp_path}/tensorboard"} | ({"/dev/full"} if output_too else set())
    assert result.returncode == 0 and result.stderr in {f"{name}: No space left on device\n" for name in named}
    assert len(read_metrics(tmp_path)) == 29


def test_plain_lines_say_step_losses_rate_and_time_left(tmp_path, capsys):
    write(tmp_path, 0, 1)
    line = capsys.readouterr().out
    assert line.startswith("step 1/10  loss 1.0000  ") and "tokens/s" in line and line.endswith(" left\n")


def test_the_image_shows_each_pair_teacher_left_student_right():
    generator = torch.Generator().manual_seed(1)
    teacher, student = (QKV(*(torch.randn(1, 5, 8, generator=generator) for _ in "qkv")) for _ in "ts")
    maps = relation_maps(teacher, student, ("qk", "vv"), heads=2)
    assert torch.equal(maps[1][1], relation(student.v, student.v, 2)[0].mean(0))
    image = relation_image(maps, cell=4)
    assert image.shape == (2 * 5 * 4 + 4, 2 * 5 * 4 + 4)
    top = max(float(m.max()) for m in maps[0])
    assert int(image[0, 0]) == int(maps[0][0][0, 0] / top * 255)
    assert int(image[0, 5 * 4 + 4]) == int(maps[0][1][0, 0] / top * 255)


def test_the_recipe_is_in_tensorboard_as_text_and_as_hyper_parameters(tmp_path):
    recipe = {"steps": 10, "pairs": ["qk", "vv"], "deterministic": False, "student": {"layers": 3}}
    for start in (0, 4):
        monitor = Monitor(tmp_path, start, 10, 100)
        monitor.describe(recipe | {"steps": 10 + start})
        monitor.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    texts = [event.tensor_proto.string_val[0].decode() for event in board.Tensors("recipe/text_summary")]
    assert [f"| steps | `{steps}` |" in text for steps, text in zip((10, 14), texts, strict=True)] == [True, True]
    assert '| pairs | `["qk", "vv"]` |' in texts[0] and "| student.layers | `3` |" in texts[0]
    plugin = HParamsPluginData.FromString(board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    values = plugin.session_start_info.hparams
    assert values["steps"].number_value == 10 and values["student.layers"].number_value == 3
    assert values["pairs"].string_value == '["qk", "vv"]' and not values["deterministic"].bool_value
    experiment = HParamsPluginData.FromString(board.SummaryMetadata("_hparams_/experiment").plugin_data.content)
    assert [metric.name.tag for metric in experiment.experiment.metric_infos] == ["heldout/loss"]
