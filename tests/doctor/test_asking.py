"""pipeline.doctor.asking: conversations with real probes, and why there is no answer, in plain words."""

import os
import shutil
import signal
import socket
import sys
import time
from argparse import Namespace

import pytest
import torch

from data_prep.cli import UserError
from pipeline.doctor import asking
from pipeline.doctor.asking import NoAnswer, Probe, plain_words, probe_command, read_line
from pipeline.doctor.judge import judge
from pipeline.launch.hosts import Host
from tests.parts.doctored import HEALTHY, TOKEN, program


@pytest.mark.slow
def test_a_real_probe_answers_what_is_judged(probes):
    [each] = probes("a").values()
    answer = each.ask("facts", folders=["/tmp"])
    assert answer.keys() == HEALTHY.keys()
    for key in ("accelerator", "cpu", "compiler", "memory", "cache_space"):
        assert answer[key].keys() == HEALTHY[key].keys(), key
    assert answer["interfaces"]["lo"].keys() == HEALTHY["interfaces"]["lo"].keys()
    assert answer["packages"]["torch"] == torch.__version__
    assert {finding.check for finding in judge({Host("a", 1): answer})} >= {"versions", "disk", "network"}


def test_banners_and_other_garbage_are_no_answers(probes):
    noise = "print('Welcome {', flush=True); os.write(1, b'no newline doctor- {} \\xff')\nprint(3, file=os.sys.stderr)"
    [each] = probes("a", noise).values()
    assert abs(each.ask("clock") - time.time()) < 60
    assert each.ask("listen") > 0


@pytest.mark.parametrize("line", ["Welcome\n", f"{TOKEN}\n", f"{TOKEN} [\n", "doctor-1 {}\n", '{"answer": 1}\n'])
def test_a_line_without_the_token_and_json_is_nothing(line):
    assert read_line(line, TOKEN) is None
    assert read_line(f"motd {TOKEN} " + '{"answer": 1}\n', TOKEN) == {"answer": 1}


def test_what_a_host_cannot_do_is_reported_in_the_systems_words(probes):
    [each] = probes("a").values()
    with pytest.raises(NoAnswer, match=r"^no such file or directory$"):
        each.ask("write", folder="/nosuch", name="x", content="y")
    assert each.ask("read", folder="/nosuch", contents={"x": "y"}, patience=0) == []


def test_a_probe_ends_with_its_input():
    each = program()
    each.ask("clock")
    begin = time.monotonic()
    each.close()
    assert time.monotonic() - begin < 4 and each._process.returncode == 0


def test_a_silent_host_is_given_up_and_says_so_again(monkeypatch):
    monkeypatch.setattr(asking, "STARTING", 1)
    each = Probe("a", [sys.executable, "-c", "import time; time.sleep(60)"], TOKEN, patience=1)
    monkeypatch.setattr(each, "close", lambda: os.killpg(each._process.pid, signal.SIGKILL))
    for _ in range(2):
        with pytest.raises(NoAnswer, match=r"^silent for 1 s when asked for 'facts'; does a file system hang there"):
            each.ask("facts", folders=[])
    each._process.wait()


@pytest.mark.parametrize(
    "script, message",
    [
        ("exec /nosuch/python", "no .* there; install the project at the same path on every host"),
        ("cd /nosuch && exec true", "no folder .* there; start in one that all hosts share"),
        ("exec python3 -m nosuch.module", "install the project there, in the environment of"),
        ("echo error: broken >&2; exit 3", "^the probe ended with code 3: broken$"),
        ("exit 3", "^the probe ended with code 3: nothing was said$"),
    ],
)
def test_a_probe_that_cannot_start_says_what_is_missing(script, message):
    each = Probe("a", ["sh", "-c", script], TOKEN, patience=20)
    for _ in range(2):
        with pytest.raises(NoAnswer, match=message):
            each.ask("facts", folders=[])


# --- ssh ----------------------------------------------------------------------------------------------------------------


def ssh_says(monkeypatch, host: str, *options: str, timeout: int = 5) -> str:
    """Why the real ssh does not reach ``host``, in the doctor's words."""
    if not shutil.which("ssh"):
        pytest.skip("needs ssh")
    fixed = ("-F/dev/null", "-oUserKnownHostsFile=/dev/null", *options)
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", " ".join(fixed))
    command = probe_command(host, TOKEN, Namespace(timeout=timeout))
    assert command[0] == "ssh" and "-oBatchMode=yes" in command
    with pytest.raises(NoAnswer) as caught:
        Probe(host, command, TOKEN, timeout).ask("facts", folders=[])
    return str(caught.value)


def test_an_unknown_host_is_reported(monkeypatch):
    assert ssh_says(monkeypatch, "nosuch.invalid").startswith("unknown host: its name does not resolve")


def test_a_host_without_an_ssh_server_is_reported(monkeypatch):
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        said = ssh_says(monkeypatch, "127.0.0.1", f"-p{dead.getsockname()[1]}")
    assert said == "refused: nothing listens on its ssh port; start sshd there"


@pytest.mark.slow
def test_a_host_that_hangs_at_the_door_is_reported(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = ssh_says(monkeypatch, "127.0.0.1", f"-p{silent.getsockname()[1]}", timeout=2)
    assert said.startswith("time-out: no way there, or it is off")


@pytest.mark.parametrize(
    "line, words",
    [
        ("root@b: Permission denied (publickey).", "ssh there refuses this user's key; run ssh-copy-id"),
        ("Host key verification failed.", "its ssh host key is not known here"),
        (
            "@  WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!  @\nHost key verification failed.",
            "not the one in known",
        ),
        ("Received disconnect: Too many authentication failures", "ssh offers too many keys"),
        ("ssh: connect to host b port 22: No route to host", "no route: it is off, or in another network"),
        ("ssh: connect to host b port 22: Network is unreachable", "no route: it is off, or in another network"),
        ("kex_exchange_identification: read: strange", "the probe ended with code 255: kex_exchange_identification"),
    ],
)
def test_what_ssh_says_comes_in_plain_words(line, words):
    assert words in plain_words(255, ["Banner\n", *line.splitlines(keepends=True)])


def test_a_machine_without_ssh_is_reported(monkeypatch):
    monkeypatch.setenv("PATH", "/nosuch")
    with pytest.raises(UserError, match=r"^ssh: is not installed here; install it"):
        Probe("b", probe_command("b", TOKEN, Namespace(timeout=5)), TOKEN, 5)


def test_a_folder_that_a_shell_would_misread_is_rejected(tmp_path, monkeypatch):
    folder = tmp_path / "a b;c"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="the folder has ' ' in its name"):
        probe_command("b", TOKEN, Namespace(timeout=5))
