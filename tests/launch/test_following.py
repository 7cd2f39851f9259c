"""Following a launcher to its end: signals, lost hosts, and what is left over."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.launch import following


@pytest.fixture
def signals_restored():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    former = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, former, strict=True):
        signal.signal(number, handler)


def follow(tmp_path: Path, code: str, patience: float = 100, **variables: str) -> int:
    """The exit code of following a launcher that is ``code``."""
    environment = os.environ | {following.MARK: "t0ken", "FOLDER": str(tmp_path)} | variables
    return following.follow([sys.executable, "-c", code], environment, "t0ken", tmp_path / "run" / "STOP", patience)


def send(*numbers: int, after: Path) -> threading.Thread:
    """Send the signals to this process, 0.5 s apart, once the file ``after`` is there."""

    def work() -> None:
        while not after.exists():
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


READY = "import os, pathlib, subprocess, sys, time\nf = pathlib.Path(os.environ['FOLDER'])\n(f / 'ready').touch()\n"
UNTIL_STOP = READY + "while not (f / 'run' / 'STOP').exists(): time.sleep(0.01)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_asks_the_run_to_stop(tmp_path, capsys, signals_restored, number):
    send(number, after=tmp_path / "ready")
    # The run removes an old STOP while it starts: one that was asked for must come back, with the reason.
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    again = (
        "(f / 'run' / 'STOP').unlink()\nwhile not (f / 'run' / 'STOP').exists(): time.sleep(0.01)\ntime.sleep(0.1)\n"
    )
    again += f"sys.exit(75 if (f / 'run' / 'STOP').read_text() == '{name}\\n' else 1)"
    assert follow(tmp_path, UNTIL_STOP + again) == 75
    assert capsys.readouterr().err == (
        "Stopping after one of the next steps, with a checkpoint. Ctrl-C (or SIGTERM) again ends it at once.\n"
    )
    assert not (tmp_path / "run" / "STOP").exists()


@pytest.mark.slow
def test_sigusr1_may_come_often(tmp_path, signals_restored):
    send(*[signal.SIGUSR1] * 4, after=tmp_path / "ready")
    assert follow(tmp_path, UNTIL_STOP + "time.sleep(2)\nsys.exit(75)") == 75


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)])
def test_the_second_ends_everything_even_in_sessions_of_its_own(tmp_path, signals_restored, numbers):
    # ssh under pdsh has a session of its own.
    child = "import time; time.sleep(100)"
    start = f"p = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
    write = "(f / 'child').write_text(str(p.pid))\n(f / 'ready').touch()\ntime.sleep(100)"
    send(*numbers, after=tmp_path / "ready")
    began = time.monotonic()
    code = READY.replace("(f / 'ready').touch()\n", "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n")
    assert follow(tmp_path, code + start + write) == -signal.SIGKILL
    assert time.monotonic() - began < 20 and _gone(int((tmp_path / "child").read_text()))


def test_what_a_killed_launcher_leaves_behind_is_ended(tmp_path, signals_restored):
    start = "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
    end = "(f / 'child').write_text(str(p.pid))\nos.kill(os.getpid(), 9)"
    assert follow(tmp_path, READY + start + end) == -signal.SIGKILL
    assert _gone(int((tmp_path / "child").read_text()))


def test_a_script_that_has_started_it_takes_it_along(tmp_path, signals_restored):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as script:
        pass
    assert follow(tmp_path, READY + "time.sleep(100)", DISTILL_PARENT=str(script.pid)) == -signal.SIGKILL


@pytest.mark.slow
def test_no_host_outlives_another_for_long(tmp_path, capsys, signals_restored):
    (tmp_path / "ssh").symlink_to(shutil.which("sleep"))
    # Two connections; the first ends after a second.
    start = "p = [subprocess.Popen([str(f / 'ssh'), seconds], start_new_session=True) for seconds in ('1', '100')]\n"
    wait = "(f / 'child').write_text(str(p[1].pid))\nfor one in p: one.wait()"
    began = time.monotonic()
    assert follow(tmp_path, READY + start + wait, patience=2) == -signal.SIGKILL
    assert 3 < time.monotonic() - began < 20 and _gone(int((tmp_path / "child").read_text()))
    said = capsys.readouterr().err
    assert said == "error: 1 of 2 hosts ended 2 s ago; what still runs on others is ended\n"


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
