"""Following the processes of a launch to their end: signals, hosts that are lost, and what is left over."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from data_prep.files import write_text
from pipeline.processes import is_alive

_NAMES: dict[int, str] = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR1: "SIGUSR1",
}  # as the run says why it stopped
MARK = "DISTILL_LAUNCH"  # the variable by which the processes of a launch differ from all others on this machine


def follow(command: list[str], environment: dict[str, str], token: str, stop: Path, patience: float) -> int:
    """Run the launcher's ``command`` to its end and return its code; signals to this process make the file ``stop``.

    Of several hosts, none outlives another by more than ``patience`` s: a rank waits long for one that never came.
    """
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: signals.append(number))
    parent = int(environment.get("DISTILL_PARENT", 0))  # a script that wants all this to end with it

    # A session of its own: Ctrl-C is for us alone. The launcher would answer it by ending every launch of this user.
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    stopping, most, complete = False, 0, time.monotonic()
    while process.poll() is None:
        urgent = [number for number in signals if number != signal.SIGUSR1]
        if len(urgent) > 1 or (parent and not is_alive(parent)):
            end_all(token)
        elif signals:
            stop.parent.mkdir(parents=True, exist_ok=True)
            if not stop.exists():  # again and again: the run removes an old one while it starts
                write_text(stop, f"{_NAMES[signals[0]]}\n")
            if not stopping:
                say(
                    "Stopping after one of the next steps, with a checkpoint. Ctrl-C (or SIGTERM) again ends it at once."
                )
            stopping = True

        connected = connections(process.pid)
        most = max(most, connected)
        if connected == most:
            complete = time.monotonic()
        elif time.monotonic() - complete > patience:
            lost = f"{most - connected} of {most} hosts ended {patience:.0f} s ago"
            say(f"error: {lost}; what still runs on others is ended")
            end_all(token)
        time.sleep(0.5)

    end_all(token)  # if the launcher was killed, what it has started
    if stopping:
        stop.unlink(missing_ok=True)
    return process.returncode


def connections(launcher: int) -> int:
    """The number of a launcher's living ssh's, one for each host; pdsh waits for the last of them."""
    try:
        children = psutil.Process(launcher).children(recursive=True)
        return sum(child.name() == "ssh" and child.status() != psutil.STATUS_ZOMBIE for child in children)
    except psutil.Error:  # one has ended at this moment
        return 0


def end_all(token: str) -> None:
    """Kill every process of this launch on this machine. Over ssh the others end with their connections."""
    for _ in range(50):  # a process may be starting another at this moment
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == token:
                    found.append(process)
                    process.kill()
        if not found:
            return
        time.sleep(0.1)


def say(line: str) -> None:
    """Print a line on stderr."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(line, file=sys.stderr, flush=True)
