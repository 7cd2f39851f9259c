"""python -m pipeline.doctor: the whole command."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from pipeline.doctor import __main__
from pipeline.doctor.__main__ import examine, show_line
from pipeline.doctor.judge import FAIL, OK, WARN, Finding
from tests.parts.launching import PATIENCE, ROOT, environment


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.doctor", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment() | variables, timeout=PATIENCE
    )


@pytest.mark.slow
def test_this_machine_is_examined_with_two_real_ranks(tmp_path):
    result = run("--json", "--size", "1", "--shared", str(tmp_path))
    *rows, last = map(json.loads, result.stdout.splitlines())
    found = {row["check"]: row for row in rows}
    assert all(row.keys() == {"host", "check", "level", "text", "values"} for row in rows)
    assert {"versions", "code", "accelerator", "CPU", "compiler", "memory", "/dev/shm", "open files"} <= found.keys()
    assert {"compile cache", "disk", "network", "host name", "shared folder", "all-reduce"} <= found.keys()
    counted = {level: sum(row["level"] == level for row in rows) for level in (OK, WARN, FAIL)}
    assert last == {"summary": counted}
    assert result.returncode == (1 if counted[FAIL] else 0), result.stderr
    assert found["shared folder"]["level"] == found["all-reduce"]["level"] == OK
    assert "2 ranks" in found["all-reduce"]["text"] or torch.cuda.is_available()
    assert found["all-reduce"]["values"]["fp32 large"]["wrong"] == 0
    assert found["versions"]["values"]["torch"] == torch.__version__
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interface_that_does_not_exist_is_red_and_ends_with_code_1():
    result = run("--size", "1", GLOO_SOCKET_IFNAME="nosuch0")
    assert result.returncode == 1, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[1] == "localhost" and "together" in lines
    [network] = [line for line in lines if line.startswith("FAIL network")]
    assert network.startswith("FAIL network GLOO_SOCKET_IFNAME=nosuch0: there is no interface nosuch0; here are ")
    [added] = [line for line in lines if "all-reduce" in line]
    assert added.startswith("FAIL all-reduce rank ") and "nosuch0" in added
    assert lines[-1].startswith("Not fit to run: 2 FAIL, ")
    assert "\033" not in result.stdout and "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_host_that_is_not_reached_is_red_and_nothing_is_launched(tmp_path):
    if not shutil.which("ssh"):
        pytest.skip("needs ssh")
    (tmp_path / "hosts").write_text("nosuch1.invalid slots=1\nnosuch2.invalid slots=1\n")
    result = run("--hostfile", str(tmp_path / "hosts"), PDSH_SSH_ARGS_APPEND="-F/dev/null")
    assert result.returncode == 1
    assert result.stdout.count("FAIL  ssh            unknown host: its name does not resolve") == 2
    assert "WARN  all-reduce     not tried, because of nosuch1.invalid, nosuch2.invalid" in result.stdout
    assert "WARN  shared folder  none was looked at; name those of data and runs" in result.stdout
    assert result.stdout.endswith("Not fit to run: 2 FAIL, 2 WARN, 0 OK.\n")


def test_between_hosts_a_torch_that_is_broken_here_is_one_line_and_code_2(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    (tmp_path / "hosts").write_text("a slots=1\n")
    result = run("--hostfile", str(tmp_path / "hosts"), PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert result.returncode == 2
    assert result.stderr.partition(" …\n")[2].startswith(
        "error: torch cannot be loaded on this machine (broken); run the doctor here without"
    )
    assert result.stderr.count("\n") == 2


def test_a_machine_whose_own_probe_fails_is_red(monkeypatch):
    monkeypatch.setattr(__main__, "probe_command", lambda *_: ["sh", "-c", "echo error: no memory >&2; exit 3"])
    found = list(examine(None, Namespace(shared=[], timeout=5)))
    assert [(each.host, each.check, each.level, each.text) for each in found] == [
        ("localhost", "probe", FAIL, "the probe ended with code 3: no memory"),
        ("", "all-reduce", WARN, "not tried, because of what has failed above"),
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--nosuch"], "error: unrecognized arguments: --nosuch; see python -m pipeline.doctor --help"),
        (["--size", "0"], "error: argument --size: '0' is not a whole number of at least 1; see"),
        (["--timeout", "soon"], "error: argument --timeout: 'soon' is not a whole number"),
        (["--hostfile", "/nosuch"], "error: /nosuch: cannot be read as a hostfile"),
        (["--hostfile", "README.md"], "error: README.md:"),
    ],
)
def test_a_mistake_in_the_command_is_one_line_and_code_2(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(message) and result.stderr.count("\n") == 1


def test_colour_is_for_terminals_only(capsys, monkeypatch):
    show_line(Finding("a", "clock", FAIL, "wrong"), first=True)
    assert capsys.readouterr().out == "\na\n  FAIL  clock          wrong\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    show_line(Finding("a", "clock", OK, "right"), first=False)
    assert capsys.readouterr().out == "  \033[32mOK  \033[0m  clock          right\n"


def test_the_doctor_itself_does_not_need_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    result = run(PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert result.returncode == 1, result.stderr
    assert "FAIL  accelerator    torch and transformers cannot be loaded: ImportError: broken" in result.stdout
    assert "WARN  all-reduce     not tried, because of localhost" in result.stdout
