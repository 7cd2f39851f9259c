"""Whoever may read by the umask may read everything that is written: corpora, runs, students, trimmed models, results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.distill import distill
from pipeline.evaluate import cells
from pipeline.export import export, export_untrained
from pipeline.report import run as run_report
from pipeline.report.__main__ import make as make_report
from pipeline.settings.reading import load_recipe, load_recipes
from pipeline.trim_vocab.__main__ import trim
from tests.parts import trimming
from tests.parts.launching import ROOT
from tests.parts.tiny import make_recipe

pytestmark = pytest.mark.slow


def write_everything(inputs: Path, out: Path) -> None:
    recipe = make_recipe(inputs, out=out / "run")
    distill(load_recipes(recipe, []))
    export(out / "run", out / "student")
    export_untrained(load_recipe(recipe, []), out / "untrained")
    run_report.report(out / "run", out / "student")

    model = trimming.make_model("bert", inputs / "model")
    trim(model, trimming.make_corpus(out / "corpus", model), out / "trimmed", ["de"], 0.9)
    (inputs / "notes.txt").write_text("der unlich keitge")
    prepare = ["prepare", "--out", out / "prepared", "--tokenizer", model, "--source", f"n=text:{inputs}/notes.txt"]
    subprocess.run([sys.executable, "-m", "data_prep", *map(str, prepare)], cwd=ROOT, check=True, capture_output=True)

    old = ROOT / "tests" / "old" / "results"
    for path in old.rglob("*.json"):
        cells.write_cell(out / "results" / path.relative_to(old), json.loads(path.read_text()))
    make_report(out / "results", [], None, False)


def test_every_file_has_the_mode_that_the_umask_gives(tmp_path):
    out = tmp_path / "out"
    previous = os.umask(0o027)
    try:
        write_everything(tmp_path / "in", out)
    finally:
        os.umask(previous)
    modes = {path: path.stat().st_mode & 0o777 for path in out.rglob("*")}
    written = {path.suffix for path in modes}
    assert written >= {".safetensors", ".json", ".jsonl", ".txt", ".npy", ".md", ".png", ".html", ".svg"}
    assert {path: oct(mode) for path, mode in modes.items() if mode != (0o750 if path.is_dir() else 0o640)} == {}
