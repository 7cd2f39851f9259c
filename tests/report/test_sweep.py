"""The report that lays the students of a run side by side."""

import json

import pytest

from pipeline.report.__main__ import main
from pipeline.settings.reading import load_recipes
from tests.parts.launching import run_main
from tests.report.test_kept import put_embedded
from tests.report.test_report import put_model
from tests.settings.test_sweep import sweep


@pytest.fixture
def out(tmp_path):
    """The folder of three students; the last has no losses yet."""
    path = sweep(tmp_path, "", 'pairs = ["qq", "vv"]\nteacher_layer = 2', "seed = 5\nrelation_heads = 8")
    for number, recipe in enumerate(load_recipes(path, [f"out={tmp_path / 'out'}"])):
        run = tmp_path / "out" / "abc"[number]
        (run / "checkpoints").mkdir(parents=True)
        (run / "recipe.json").write_text(json.dumps(recipe.to_dict()))
        rows = [{"step": step, "kind": "heldout", "loss": 3.0 - step / 4, recipe.pairs[0]: 1.0} for step in (0, 3, 6)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) if number < 2 else "")
    return tmp_path / "out"


def test_the_students_of_a_run_are_side_by_side(out, monkeypatch, capsys):
    code, text, _ = run_main(monkeypatch, capsys, main, out)
    assert code == 0 and (out / "report.md").read_text() in text
    for line in (
        "# out: 3 students side by side",
        "| student | pairs | relation\\_heads | teacher.layer | student.seed |",
        "| a | qk, vv | 4 | 3 | -1 |",
        "| b | qq, vv | 4 | 2 | -1 |",
        "| c | qk, vv | 8 | 3 | 5 |",
        "| student | step | held-out loss, first | last | remaining | qk | vv | qq |",
        "| a | 6 of 6 | 3.0000 | 1.5000 | 50 % | 1.0000 | – | – |",
        "| c | – | – | – | – | – | – | – |",
        f"    ./run.sh export {out / 'b'} {out / 'b'}-student",
        "![Held-out losses: losses](report-losses.svg)",
    ):
        assert line in text.splitlines(), line
    assert "are of different scales" in text
    assert b"<svg" in (out / "report-losses.svg").read_bytes()
    assert "data:image/svg+xml" in (out / "report.html").read_text()


def test_their_scores_are_shown_next_to_them(out, tmp_path, monkeypatch, capsys):
    for name, score in (("teacher", 60.0), ("a", 45.0)):
        put_model(tmp_path / "results", name)
        put_embedded(tmp_path / "results", name, "lee", "pearson", score)
    options = ("--scores", tmp_path / "results", "--teacher", "teacher")
    code, text, _ = run_main(monkeypatch, capsys, main, out, *options)
    assert code == 0 and "45.0 (75.0 %)" in text


def test_what_cannot_be_compared_is_one_line(out, monkeypatch, capsys):
    code, _, line = run_main(monkeypatch, capsys, main, out, "--all-tables")
    assert code == 2 and "--all-tables are for a results folder; leave them out" in line
    (out / "b" / "recipe.json").unlink()
    code, _, line = run_main(monkeypatch, capsys, main, out)
    assert code == 2 and line.startswith(f"error: {out / 'b' / 'recipe.json'}: missing, so this run cannot be compared")
