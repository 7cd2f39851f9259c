"""pipeline.run_report on a small finished run, and by the command."""

import subprocess
import sys

import pytest
from PIL import Image

from data_prep.errors import UserError
from pipeline import export, run_report
from pipeline.monitor import read_metrics
from tests import launching
from tests.tiny import make_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    jobs = [{"recipe": str(make_recipe(folder)), "overrides": ["precision=bf16"]}]
    assert launching.run_jobs(folder, 1, jobs) == [None, True]
    return folder / "run"


@pytest.fixture(scope="module")
def student(run):
    export.export(run, run.parent / "student")
    return run.parent / "student"


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pipeline.report", *map(str, arguments)],
        capture_output=True, text=True, env=launching.environment(), cwd=launching.ROOT,
    )  # fmt: skip


def test_the_report_shows_sizes_speed_losses_and_maps(run, student):
    text = run_report.report(run, student)
    assert (run / "report.md").read_text() == text
    assert "| teacher | 4 | 32 |" in text and "| student | 2 | 16 |" in text
    assert "times faster**" in text and "batches of 8 × 16" in text
    heldout = [row for row in read_metrics(run) if row["kind"] == "heldout"]
    assert f"| vv | {heldout[0]['vv']:.4f} | {heldout[-1]['vv']:.4f} |" in text
    with Image.open(run / "relations.png") as picture:
        assert picture.width > 600 and picture.height > 600


def test_a_report_is_of_the_runs_own_student_only(run, student, tmp_path):
    with pytest.raises(UserError, match=r"nope: no exported student there; make it with ./run.sh export"):
        run_report.report(run, tmp_path / "nope")
    with pytest.raises(UserError, match=r"teacher: not the student of .* at step 6; make it with"):
        run_report.report(run, run.parent / "teacher")


def test_the_command_with_a_student_reports_its_run(run, student):
    result = command(run, student)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("# run: 6 of 6 steps") and (run / "report.md").read_text() in result.stdout


def test_a_run_without_its_student_is_told_how_to_report_it(run):
    result = command(run)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: {run}: the folder of a run, not of results; python -m pipeline.report {run} STUDENT_FOLDER, "
        f"or --runs {run} with a results folder\n"
    )


def test_options_of_scores_do_not_go_with_a_student(run, student):
    result = command(run, student, "--teacher", "t")
    assert (result.returncode, result.stderr) == (
        2,
        "error: --runs, --teacher and --all-tables are for a results folder; leave the student's folder out\n",
    )
