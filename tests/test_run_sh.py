"""run.sh: its help, its verbs from any folder, and its answer to a mistyped one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts.launching import ROOT

SCRIPT = ROOT / "run.sh"
VENV = Path(sys.prefix)


def run_sh(*arguments, cwd=None, **environment):
    return subprocess.run(
        [SCRIPT, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"VENV": str(VENV)} | environment,
    )


def test_shellcheck_is_content():
    for script in (SCRIPT, ROOT / ".ci" / "run"):
        result = subprocess.run([VENV / "bin" / "shellcheck", script], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("spelling", ["--help", "-h", "help"])
def test_help_lists_every_verb_that_exists(spelling):
    result = run_sh(spelling)
    assert result.returncode == 0
    makes = ["demo", "test", "prep", "distill", "recipe", "plan", "doctor"]
    for verb in [*makes, "export", "trim-vocab", "evaluate", "speed", "report", "rehearse", "bench"]:
        assert f"\n  {verb} " in result.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["distil"], "error: unknown verb 'distil'; ./run.sh --help lists them"),
        (["demo", "fast"], "error: demo takes no arguments"),
        (["distill"], "error: distill needs a recipe"),
    ],
)
def test_a_mistyped_command_is_one_line_and_code_2(arguments, message):
    result = run_sh(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(message) and result.stderr.count("\n") == 1


@pytest.mark.slow
def test_ranks_must_be_a_number():
    if not list(VENV.glob(".installed-*")):
        pytest.skip("this environment was not made by run.sh")
    for ranks in ("two", "0"):
        result = run_sh("distill", "demo", RANKS=ranks)
        assert result.returncode == 2
        assert result.stderr == f"error: RANKS={ranks}: must be a whole number of at least 1\n"


@pytest.mark.slow
def test_distill_shows_every_way_to_start_a_run():
    if not list(VENV.glob(".installed-*")):
        pytest.skip("this environment was not made by run.sh")
    result = run_sh("distill", "--help")
    assert result.returncode == 0
    for word in ("a laptop, or one node", "--hostfile", "--no-ssh", "distill.sbatch", "torchrun", "exit codes:"):
        assert word in result.stdout


@pytest.mark.slow
def test_an_unknown_option_of_distill_is_one_line_with_a_hint():
    if not list(VENV.glob(".installed-*")):
        pytest.skip("this environment was not made by run.sh")
    result = run_sh("distill", "demo", "--hostfiles", "hosts")
    assert result.returncode == 2
    assert result.stderr == "error: unrecognized arguments: --hostfiles hosts; did you mean --hostfile?\n"


def test_an_old_python_is_refused(tmp_path):
    result = run_sh("recipe", "demo", VENV=str(tmp_path / "venv"), PYTHON="/bin/false")
    assert result.returncode == 2
    assert "error: /bin/false is not Python 3.11 or newer" in result.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.slow
def test_it_works_from_any_folder(tmp_path):
    if not list(VENV.glob(".installed-*")):
        pytest.skip("this environment was not made by run.sh")
    result = run_sh("recipe", "minilm_6x384", "steps=7", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "steps = 7" in result.stdout
    assert list(tmp_path.iterdir()) == []
