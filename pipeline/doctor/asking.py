"""Talking to the probes: how one is started, asked and ended, and why one does not answer, in plain words."""

import argparse
import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from data_prep.cli import UserError
from pipeline.launch.hosts import check_plain, exports_plainly, ssh_environment
from pipeline.launch.worker import pack

STARTING = 120  # seconds that Python and torch may take to load, from a busy file system


class NoAnswer(Exception):
    """A host does not answer, or cannot do what was asked; the message says why in plain words."""


def probe_command(host: str | None, token: str, options: argparse.Namespace) -> list[str]:
    """The command that starts a probe: on ``host`` by ssh, with the options that pdsh will give it, or here."""
    variables = load_places().forwarded(dict(os.environ)) if host else {}
    packed = pack("pipeline.doctor", ["--probe", token], variables)
    here = [sys.executable, "-u", "-m", "pipeline.launch.worker", packed]
    if host is None:
        return here
    check_plain("the folder", str(Path.cwd()))
    check_plain("the Python", sys.executable)
    ssh = shlex.split(ssh_environment(options.timeout)["PDSH_SSH_ARGS_APPEND"])
    # What a shell reads there: paths that it reads as they are, as those of DeepSpeed's own line, and one packed word.
    paths = ":".join(filter(None, [str(Path.cwd()), exports_plainly(os.environ).get("PYTHONPATH")]))
    remote = f"cd {Path.cwd()} && PYTHONPATH={paths} exec {' '.join(here)}"
    return ["ssh", f"-oConnectTimeout={min(10, options.timeout)}", *ssh, host, remote]


def load_places() -> ModuleType:
    """pipeline.launch.places, which loads torch. Raises UserError where that is broken."""
    try:
        from pipeline.launch import places  # here, since the doctor works where torch does not
    except (ImportError, OSError) as error:
        why = f"torch cannot be loaded on this machine ({error})"
        raise UserError(f"{why}; run the doctor here without --hostfile, and pip install the project again") from None
    return places


class Probe:
    """A conversation with the probe on the host ``name``."""

    def __init__(self, name: str, command: list[str], token: str, patience: float):
        self.name = name
        self.delay = 0.0  # seconds from the start to the first answer
        self._token, self._patience = token, patience
        self._lines: queue.Queue[str | None] = queue.Queue()  # of its output; None at its end
        self._errors: deque[str] = deque(maxlen=50)
        self._lost = ""  # why there will be no more answers
        self._started = time.monotonic()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except FileNotFoundError:
            raise UserError(f"{command[0]}: is not installed here; install it (Debian: openssh-client)") from None
        assert self._process.stdin  # it is piped
        self._questions = self._process.stdin
        self._readers = [
            threading.Thread(target=self._errors.extend, args=[self._process.stderr], daemon=True),
            threading.Thread(target=read_lines, args=[self._process.stdout, self._lines.put], daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def ask(self, question: str, **arguments: object) -> Any:
        """The answer to one question (a method of probe.Answers). Raises NoAnswer with the reason in plain words."""
        if self._lost:
            raise NoAnswer(self._lost)
        patience = self._patience if self.delay else max(self._patience, STARTING)
        try:
            reply = self._reply({"ask": question, **arguments}, patience)
        except BrokenPipeError:
            self._readers[0].join(2)
            self.close()
            self._lost = plain_words(self._process.returncode, list(self._errors))
        except queue.Empty:
            self.close()
            self._lost = f"silent for {patience} s when asked for {question!r}; does a file system hang there?"
        if self._lost:
            raise NoAnswer(self._lost)
        self.delay = self.delay or time.monotonic() - self._started
        if "error" in reply:
            raise NoAnswer(reply["error"].lower())
        return reply["answer"]

    def _reply(self, question: dict[str, object], patience: float) -> dict[str, Any]:
        """The next line that is the probe's. Raises BrokenPipeError if it has ended, queue.Empty if it is silent."""
        self._questions.write(json.dumps(question) + "\n")
        self._questions.flush()
        deadline = time.monotonic() + patience
        while True:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            if line is None:
                raise BrokenPipeError
            reply = read_line(line, self._token)
            if reply is not None:
                return reply

    def close(self) -> None:
        """End the probe: it leaves when its input ends, and is killed if it does not."""
        with contextlib.suppress(OSError):
            self._questions.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def read_lines(pipe: Iterable[str], keep: Callable[[str | None], object]) -> None:
    """Give each line to ``keep``, and None after the last."""
    for line in pipe:
        keep(line)
    keep(None)


def read_line(line: str, token: str) -> dict[str, Any] | None:
    """The content of a line behind the token; None for whatever else a host prints."""
    try:
        content: dict[str, Any] = json.loads(line.partition(f"{token} ")[2])
    except ValueError:
        return None
    return content


_REASONS = (
    ("could not resolve hostname", "unknown host: its name does not resolve; mend the hostfile, DNS or ~/.ssh/config"),
    (
        "remote host identification has changed",
        "its ssh host key is not the one in known_hosts; ask why, then ssh-keygen -R",
    ),
    ("host key verification failed", "its ssh host key is not known here; run ssh to it once by hand, or ssh-keyscan"),
    ("permission denied", "ssh there refuses this user's key; run ssh-copy-id"),
    ("too many authentication failures", "ssh offers too many keys; name one by IdentityFile in ~/.ssh/config"),
    ("connection refused", "refused: nothing listens on its ssh port; start sshd there"),
    ("timed out", "time-out: no way there, or it is off; look at the network and its firewall"),
    ("no route to host", "no route: it is off, or in another network"),
    ("network is unreachable", "no route: it is off, or in another network"),
)


def plain_words(code: int, errors: list[str]) -> str:
    """Why ssh, or the probe behind it, has ended, from its exit code and its lines on stderr."""
    said = [line.strip() for line in errors if line.strip()]
    text = "\n".join(said).lower()
    if code == 255:  # ssh's own
        for sign, reason in _REASONS:
            if sign in text:
                return reason
    if code == 127:
        return f"no {sys.executable} there; install the project at the same path on every host"
    if "no such file or directory" in text or "can't cd" in text:
        return f"no folder {Path.cwd()} there; start in one that all hosts share"
    if "no module named" in text:
        return f"{said[-1]}; install the project there, in the environment of {sys.executable}"
    last = said[-1].removeprefix("error: ") if said else "nothing was said"
    return f"the probe ended with code {code}: {last}"
