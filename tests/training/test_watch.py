"""pipeline.training.watch: what a run's rows say of its time."""

import statistics
import time

import pytest

from pipeline.artifacts.metrics import read_metrics
from pipeline.distill import distill
from pipeline.settings.reading import load_recipe
from pipeline.training.run import Run
from tests.parts.tiny import make_recipe


@pytest.mark.slow
def test_waiting_for_the_device_is_not_waiting_for_data(tmp_path, monkeypatch):
    due = Run.due

    def late(self, step):
        time.sleep(0.5)  # as a question to the device would
        return due(self, step)

    monkeypatch.setattr(Run, "due", late)
    assert distill([load_recipe(make_recipe(tmp_path))]) == 0
    waited = [row["data_wait"] for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert statistics.median(waited) < 0.1
