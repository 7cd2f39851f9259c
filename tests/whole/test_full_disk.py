"""A disk that is full under a run's own files: the work is saved first, and one line on every rank names the file."""

import json

import pytest

from pipeline.artifacts import checkpoints
from pipeline.artifacts.metrics import read_metrics
from tests.parts import launching
from tests.parts.runs import job
from tests.parts.tiny import make_recipe

pytestmark = pytest.mark.slow
LONG = ("steps=8", "checkpoint_every=8", "eval_every=8")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The folder, and for each of two ranks the errors of its runs: with either file on a full disk, and one resumed."""
    folder = make_recipe(tmp_path_factory.mktemp("full")).parent
    jobs = [job(folder, name, *LONG, full_disk=name) for name in ("_file", "_text")]
    launching.run_jobs(folder, 2, [*jobs, job(folder, "_file", *LONG)])
    return folder, [json.loads((folder / f"jobs2.json.{rank}.errors").read_text()) for rank in range(2)]


@pytest.mark.parametrize("number, name, file", [(0, "_file", "metrics.jsonl"), (1, "_text", "log.txt")])
def test_a_checkpoint_is_written_first_and_every_rank_stops_with_a_line_that_names_the_file(full, number, name, file):
    folder, of_ranks = full
    step = min(int(path.name[5:]) for path in (folder / name / "checkpoints").iterdir())
    assert 0 < step < 8
    for errors in of_ranks:
        assert errors[number] == (
            f"{folder / name / file}: No space left on device; the run has written its checkpoint of step {step} and stops: "
            "free some space and run the same command again"
        )


def test_with_space_the_same_command_resumes_it(full):
    folder, of_ranks = full
    assert [errors[2] for errors in of_ranks] == [None, None]
    assert read_metrics(folder / "_file")[-1]["step"] == checkpoints.latest(folder / "_file").step == 8
