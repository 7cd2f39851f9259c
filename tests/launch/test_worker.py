"""The packed word that carries a process's module, arguments and variables past every shell."""

import os
import re
import subprocess
import sys

import psutil
import pytest

from data_prep.cli import UserError
from pipeline.launch.worker import check_folder, connection, main, pack, unpack
from tests.parts.launching import ROOT, environment

NASTY = ["out=$(touch /x);`id`", "a \"b\" 'c' \\ %n *", "é\n\t", "", "--env"]


def test_whatever_is_packed_is_one_word_that_no_shell_changes():
    packed = pack("pipeline.distill", NASTY, {"A": "$HOME 'x' %h"})
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", packed)
    content = unpack(packed)
    assert (content["module"], content["arguments"]) == ("pipeline.distill", NASTY)
    assert content["environment"] == {"A": "$HOME 'x' %h"}


def test_only_our_own_modules_are_packed():
    with pytest.raises(ValueError, match=r"http\.server: not one of"):
        pack("http.server", [], {})


@pytest.mark.parametrize(
    "packed", ["", "x", "!!!!", "e30=", "WzFd", "bnVsbA==", "eyJtb2R1bGUiOiAiaHR0cC5zZXJ2ZXIifQ=="]
)
def test_what_we_have_not_packed_is_rejected(packed):
    with pytest.raises(UserError, match=r"not packed by pipeline\.launch"):
        unpack(packed)


def test_a_process_that_starts_in_another_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_folder(str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path)
    check_folder(str(tmp_path / "link"))
    for folder in (str(ROOT), str(tmp_path / "absent")):
        with pytest.raises(UserError, match=f"the folder {folder}, where the run was started, cannot be entered here"):
            check_folder(folder)


def test_the_process_becomes_the_module_with_its_arguments_and_variables(monkeypatch):
    ran = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: ran.append(arguments))
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.delenv("DISTILL_PARENT", raising=False)
    packed = pack("pipeline.distill", NASTY, {"ADDED": "2"})
    monkeypatch.setattr(sys, "argv", ["worker", packed])
    main()
    ((program, command, variables),) = ran
    assert program == sys.executable and command == [sys.executable, "-u", "-m", "pipeline.distill", *NASTY]
    assert (variables["KEPT"], variables["ADDED"]) == ("1", "2")
    assert variables["DISTILL_PARENT"] == str(connection())


def test_a_given_parent_is_kept(monkeypatch):
    ran = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: ran.append(arguments[2]))
    monkeypatch.setattr(sys, "argv", ["worker", pack("pipeline.distill", [], {"DISTILL_PARENT": "17"})])
    main()
    assert ran[0]["DISTILL_PARENT"] == "17"


def test_over_ssh_the_run_hangs_on_its_connection_and_else_on_its_parent(monkeypatch):
    def process(number: int, name: str):
        fake = psutil.Process()
        monkeypatch.setattr(fake, "_pid", number)
        fake.name = lambda: name
        return fake

    line = [process(30, "python3"), process(20, "bash"), process(10, "sshd-session"), process(1, "sshd")]
    monkeypatch.setattr(psutil.Process, "parents", lambda self: line)
    assert connection() == 10
    monkeypatch.setattr(psutil.Process, "parents", lambda self: line[:2])
    assert connection() == os.getppid()


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_it_is_not_meant_to_be_started_by_hand(arguments):
    command = [sys.executable, "-m", "pipeline.launch.worker", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: python -m pipeline.launch.worker takes one argument, which pipeline.launch makes"
    )
