"""A launch that the fuzz watches and ends: its processes, found by a mark in their environment, and what they print."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import psutil

from tests.parts import launching

LONGEST = 400  # seconds that a launch may take on a busy machine


class Wrong(Exception):
    """The run did what it must never do."""


class Launch:
    """`deepspeed` with two ranks: its processes, found by a mark in their environment, and what they print."""

    _count = 0
    _running: ClassVar[list["Launch"]] = []

    def __init__(self, folder: Path, command: list[str], variables: dict[str, str] | None = None):
        Launch._count += 1
        self._mark = f"{os.getpid()}-{Launch._count}"
        self._paths = folder / f"{Launch._count:03d}.out", folder / f"{Launch._count:03d}.err"
        self._began, self._ranks = time.monotonic(), {}
        own = {"FUZZ_LAUNCH": self._mark}
        with self._paths[0].open("w") as out, self._paths[1].open("w") as err:
            self._launcher = subprocess.Popen(
                command,
                env=launching.environment() | own | (variables or {}),
                cwd=launching.ROOT,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        Launch._running.append(self)

    @classmethod
    def end_all(cls) -> None:
        """Kill whatever was started and lives, as after Ctrl-C."""
        for launch in cls._running:
            launch.end()
        cls._running.clear()

    @property
    def out(self) -> str:
        return self._paths[0].read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._paths[1].read_text(errors="replace")

    @property
    def error(self) -> str:
        """The line that says why it ended."""
        return next((line for line in self.err.splitlines() if line.startswith("error: ")), "")

    @property
    def step(self) -> int:
        """The last update that it has logged."""
        return max(map(int, re.findall(r"^step (\d+)/", self.out, re.MULTILINE)), default=0)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def processes(self) -> list[psutil.Process]:
        """All that live, launchers first."""
        return [process for process in psutil.process_iter() if variable(process, "FUZZ_LAUNCH") == self._mark]

    def rank(self, number: int) -> psutil.Process | None:
        """The process of a rank, once there is one."""
        if number not in self._ranks:
            for process in self.processes():
                if variable(process, "RANK") == str(number):
                    self._ranks[number] = process
        return self._ranks.get(number)

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait for a moment; False if the launch ended before."""
        while self._launcher.poll() is None:
            if reached():
                return True
            time.sleep(0.001)
            if self.seconds > LONGEST:
                self.end()
                raise Wrong(f"nothing came of it within {LONGEST} s: {self.err[-500:]}")
        return False

    def wait(self, patience: float = LONGEST) -> int:
        """The launcher's exit code, once every process is gone. Raises Wrong if one lives longer than ``patience`` s."""
        deadline = time.monotonic() + patience
        while left := self.processes():
            self._launcher.poll()
            if time.monotonic() > deadline:
                self.end()
                raise Wrong(f"{len(left)} processes live {patience:.0f} s later: {self.err[-500:]}")
            time.sleep(0.05)
        return self._launcher.wait()

    def end(self) -> None:
        """Kill whatever is left."""
        while left := self.processes():
            for process in left:
                send(process, signal.SIGKILL)
            self._launcher.poll()
            time.sleep(0.02)
        self._launcher.wait()


def variable(process: psutil.Process, name: str) -> str | None:
    with contextlib.suppress(psutil.Error):
        return process.environ().get(name)


def send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
