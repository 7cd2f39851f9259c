"""What all commands share: names of commands as they are typed, and whether a bar can be seen."""

import fcntl
import os
import struct
import subprocess
import sys
import termios

import pytest

from data_prep.cli import DOOR, Parser, UserError, as_typed, run_command, shows_bars
from pipeline.__main__ import VERBS
from tests.parts.launching import ROOT


@pytest.mark.parametrize(
    ("door", "text", "typed"),
    [
        ("./run.sh", "Next: python -m pipeline.export runs/x OUT", "Next: ./run.sh export runs/x OUT"),
        ("./run.sh", "`python -m data_prep prepare --out d`", "`./run.sh prep prepare --out d`"),
        ("minilm-distil", "./run.sh distill demo", "minilm-distil distill demo"),
        (
            "python -m pipeline",
            "./run.sh trim-vocab M; ./run.sh test",
            "python -m pipeline trim-vocab M; ./run.sh test",
        ),
        ("./run.sh", "python -m pipeline.trim_vocab M", "./run.sh trim-vocab M"),
        ("./run.sh", "python -m pipeline.plan.measured r", "python -m pipeline.plan.measured r"),
        ("./run.sh", "torchrun -m pipeline.distill r", "torchrun -m pipeline.distill r"),
        ("", "python -m pipeline.export runs/x", "python -m pipeline.export runs/x"),
    ],
)
def test_a_command_is_named_as_the_user_types_it(door, text, typed, monkeypatch):
    monkeypatch.setenv(DOOR, door)
    assert as_typed(text) == typed


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_named_as_the_user_types_it(verb, monkeypatch):
    monkeypatch.setenv(DOOR, "./run.sh")
    module, _ = VERBS[verb]
    assert as_typed(f"python -m {module.removesuffix('.__main__')} x") == f"./run.sh {verb} x"


def test_errors_and_parsers_name_commands_as_typed(capsys, monkeypatch):
    monkeypatch.setenv(DOOR, "./run.sh")

    def fails():
        raise UserError("no such folder; make it with python -m data_prep prepare")

    with pytest.raises(SystemExit) as ended:
        run_command(fails)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no such folder; make it with ./run.sh prep prepare\n"
    with pytest.raises(UserError, match=r"see \./run\.sh speed --help"):
        Parser("python -m pipeline.speed").parse_args(["more"])


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        (["./run.sh", "recipe", "--help"], "usage: ./run.sh recipe"),
        ([sys.executable, "-m", "pipeline", "recipe", "--help"], "usage: python -m pipeline recipe"),
    ],
)
def test_every_door_names_itself(command, usage, monkeypatch):
    monkeypatch.delenv(DOOR, raising=False)
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.startswith(usage)


@pytest.mark.parametrize(("columns", "shown"), [(80, True), (0, False)])
def test_a_bar_needs_a_terminal_that_knows_its_width(columns, shown, monkeypatch):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 * bool(columns), columns, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert shows_bars() is shown
    os.close(ours)


def test_a_file_has_no_bar(tmp_path, monkeypatch):
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", log)
        assert not shows_bars()
