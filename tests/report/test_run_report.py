"""pipeline.report.run on a small finished run, and by the command."""

import json
import re

import pytest
from PIL import Image

from data_prep.cli import UserError
from pipeline.artifacts.metrics import read_metrics
from pipeline.data.reading import Reading
from pipeline.report import run as run_report
from pipeline.report.__main__ import main
from pipeline.training.monitor import Monitor
from tests.parts.launching import run_main
from tests.report.test_kept import put_embedded
from tests.report.test_report import put_model


@pytest.mark.slow
def test_the_report_shows_sizes_speed_losses_and_maps(run, student):
    text = run_report.report(run, student)
    assert (run / "report.md").read_text() == text
    assert "| teacher | 4 | 32 |" in text and "| student | 2 | 16 |" in text
    assert "times faster**" in text and "batches of 8 × 16" in text
    heldout = [row for row in read_metrics(run) if row["kind"] == "heldout"]
    assert f"| vv | {heldout[0]['vv']:.4f} | {heldout[-1]['vv']:.4f} |" in text
    with Image.open(run / "relations.png") as picture:
        assert picture.width > 600 and picture.height > 600
    assert "](losses.svg)" in text and "<svg" in (run / "losses.svg").read_text()
    page = (run / "report.html").read_text()
    sources = re.findall(r'<img [^>]*src="(.{20})', page)
    assert sources == ["data:image/svg+xml;b", "data:image/png;base6"] and "<td>student</td>" in page


def test_a_runs_chart_has_its_losses_up_to_the_reported_step_and_none_without_losses(tmp_path):
    rows = [{"step": step, "kind": "heldout", "loss": 2.0, "qk": 1.0} for step in (0, 6, 12)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = []
    for step in (6, 12):
        assert run_report.linked_chart(tmp_path, step, ["qk"])[0].endswith("(losses.svg)")
        drawn.append((tmp_path / "losses.svg").read_text())
    assert drawn[0] != drawn[1] and "12" in drawn[1]
    (tmp_path / "metrics.jsonl").unlink()
    assert run_report.linked_chart(tmp_path, 12, ["qk"]) == [] and not (tmp_path / "losses.svg").exists()


@pytest.mark.slow
def test_the_report_of_a_run_has_the_scores_that_are_given(run, student, tmp_path, monkeypatch, capsys):
    for name, score in (("first", 60.0), ("second", 45.0)):
        put_model(tmp_path / "results", name)
        put_embedded(tmp_path / "results", name, "lee", "pearson", score)
    given = (run, student, "--scores", tmp_path / "results")
    code, _, line = run_main(monkeypatch, capsys, main, *given)
    assert code == 2 and "which model is the teacher? --teacher NAME says it" in line
    code, out, _ = run_main(monkeypatch, capsys, main, *given, "--teacher", "first")
    assert code == 0 and "| Lee's documents, Pearson | 60.0 | 45.0 (75.0 %) |" in out
    assert out.index("75.0 %") < out.index("| held-out loss")


@pytest.mark.slow
def test_a_report_is_of_the_runs_own_student_only(run, student, tmp_path):
    with pytest.raises(UserError, match=r"nope: no exported student there; make it with ./run.sh export"):
        run_report.report(run, tmp_path / "nope")
    with pytest.raises(UserError, match=r"teacher: not the student of .* at step 6; make it with"):
        run_report.report(run, run.parent / "teacher")


def test_values_by_their_squared_difference_are_not_in_nats(tmp_path):
    losses = {"loss": 2.0, "qk": 1.0, "v_mse": 1.0}
    rows = [{"step": step, "kind": "heldout"} | losses for step in (0, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = run_report.losses(tmp_path, 6, ["qk", "v_mse"])[0]
    assert first.startswith("| held-out loss (nats; v_mse: mean squared difference of values) |")
    assert run_report.losses(tmp_path, 6, ["qk"])[0].startswith("| held-out loss (nats) |")


def test_what_was_read_of_each_source_and_its_loss_are_a_table(tmp_path):
    assert run_report.sources(tmp_path, 10) == []
    monitor = Monitor(tmp_path, 0, 10, 100)
    monitor.of_sources(0, {"de": Reading(0, 0.0, 0.3, 0.0), "sw": Reading(0, 0.0, 0.7, 0.0)}, {"sw": 0.5, "odd": 0.75})
    monitor.of_sources(8, {"de": Reading(2048, 0.25, 0.3, 0.5), "sw": Reading(6144, 0.75, 0.7, 2.0)}, {"sw": 0.25})
    monitor.of_sources(20, {"de": Reading(9999, 0.5, 0.3, 0.5)}, {})
    monitor.close()
    assert run_report.sources(tmp_path, 10) == [
        "| source | tokens read | share | planned | epochs | held-out loss, step 0 | step 8 |",
        "|---|---|---|---|---|---|---|",
        "| sw | 6,144 | 75.00% | 70.00% | 2.00 | 0.5000 | 0.2500 |",
        "| de | 2,048 | 25.00% | 30.00% | 0.50 | – | – |",
        "",
    ]


def test_packed_rows_have_their_fill_in_the_table_of_sources(tmp_path):
    monitor = Monitor(tmp_path, 0, 10, 100)
    monitor.of_sources(8, {"de": Reading(2048, 0.25, 0.3, 0.5, 11.52, 0.984), "sw": Reading(9, 0.7, 0.7, 2, 1, 1)}, {})
    monitor.close()
    head, _, first, second, _ = run_report.sources(tmp_path, 10)
    assert head.startswith("| source | tokens read | share | planned | epochs | pieces a row | not padding | held-out")
    assert first == "| de | 2,048 | 25.00% | 30.00% | 0.50 | 11.5 | 98.4% | – | – |"
    assert second.startswith("| sw | 9 |") and "| 1.0 | 100.0% |" in second


@pytest.mark.slow
def test_the_command_with_a_student_reports_its_run(run, student, monkeypatch, capsys):
    code, out, _ = run_main(monkeypatch, capsys, main, run, student)
    assert code == 0
    assert out.startswith("# run: 6 of 6 steps") and (run / "report.md").read_text() in out


@pytest.mark.slow
def test_a_run_without_its_student_gets_the_command_that_reports_it(run, monkeypatch, capsys):
    code, _, line = run_main(monkeypatch, capsys, main, run)
    assert code == 2
    assert line == (
        f"error: {run}: the folder of a run, not of results; python -m pipeline.report {run} STUDENT_FOLDER, "
        f"or --runs {run} with a results folder\n"
    )


@pytest.mark.slow
def test_options_of_scores_do_not_go_with_a_student(run, student, monkeypatch, capsys):
    code, _, line = run_main(monkeypatch, capsys, main, run, student, "--teacher", "t")
    assert (code, line) == (
        2,
        "error: --runs, --teacher and --all-tables are for a results folder; leave the student's folder out\n",
    )
