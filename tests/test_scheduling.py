"""tests.parts.scheduling: a worker that dies costs one test, and the suite ends."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEST = "def test_{}(): pass\n"


@pytest.mark.slow
def test_a_worker_that_dies_costs_the_test_at_which_it_died(tmp_path):
    for file in range(9):
        (tmp_path / f"test_{file}.py").write_text("".join(TEST.format(number) for number in range(3)))
    deadly = "def test_a(): pass\ndef test_deadly():\n    import os\n    os._exit(1)\n"
    (tmp_path / "test_last.py").write_text(deadly + TEST.format("b") + TEST.format("c"))
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    command += ["-p", "tests.parts.scheduling", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "test_deadly" in done.stdout, done.stdout + done.stderr
    assert re.search(r"\b1 failed, 30 passed\b", done.stdout), done.stdout
