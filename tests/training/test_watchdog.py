"""pipeline.training.watchdog: a rank that is lost is named by all the others, in time."""

import contextlib
import os
import signal
import socket
import time
from types import SimpleNamespace

import pytest
import torch

from pipeline.engines.ranks import Ranks
from pipeline.training import progress, watchdog
from pipeline.training.progress import DOWNLOAD, EXPORT, UPDATE
from pipeline.training.watchdog import Watchdog
from tests.parts import launching

TIMEOUT = 8
ALONE = Ranks(0, 1, 1, torch.device("cpu"))


class Group:
    """Processes of one module that are ranks of each other, without a launcher that would end them."""

    def __init__(self, world: int, module: str, *arguments: str):
        self.processes = launching.start_ranks(world, module, *arguments)

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *reason) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait_for(self, text: str) -> None:
        for line in self.processes[0].stdout:
            if text in line:
                return
        raise AssertionError(self.processes[0].stderr.read())

    def ends(self, *ranks: int) -> tuple[float, list[str]]:
        """Seconds until all these have ended, and the `error:` line of each; their code is 1."""
        begin, lines = time.monotonic(), []
        for rank in ranks:
            _, error = self.processes[rank].communicate(timeout=launching.PATIENCE)
            told = [line for line in error.splitlines() if line.startswith("error: ")]
            assert len(told) == 1, error
            lines += told
        return time.monotonic() - begin, lines


def test_a_single_process_gets_on_by_the_collectives_that_it_enters_and_by_its_moves(monkeypatch):
    lines, entered = [], [0]
    monkeypatch.setattr(Watchdog, "_end", lambda self, line, gone=1: lines.append(line))
    monkeypatch.setattr(watchdog, "INTERVAL", 0.02)
    monkeypatch.setattr(progress, "UNKNOWN", 0.05)

    def enter() -> int:
        entered[0] += 1
        return entered[0]

    with Watchdog(ALONE, timeout=5) as alone:  # so its patience is 0.25 s
        monkeypatch.setattr(watchdog, "arrivals", enter)
        time.sleep(1)
        assert not lines
        monkeypatch.setattr(watchdog, "arrivals", lambda: 0)
        deadline = time.monotonic() + 60
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "hangs in the start: no progress for" in lines[0]
        alone.leave()


def test_sigterm_has_its_deadline_in_the_loop_and_none_outside_of_it():
    alone, former = Watchdog(ALONE, timeout=10), signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with contextlib.closing(watchdog._Signals()) as alone._signals:
            alone.progress.at(DOWNLOAD)
            os.kill(os.getpid(), signal.SIGTERM)
            assert not any(alone._overdue(now) for now in (0.0, 9_000.0, 10_000.0))
            alone.progress.at(UPDATE, 1)
            assert not alone._overdue(10_050.0)
            assert "received SIGTERM 10051 s ago and is still in the update of step 1" in alone._overdue(10_051.0)
            alone.progress.at(EXPORT)
            assert not alone._overdue(20_000.0)
    finally:
        signal.signal(signal.SIGTERM, former)


# Rank 0 keeps the store in which all beat.
@pytest.mark.slow
@pytest.mark.parametrize("lost, how", [(0, signal.SIGKILL), (0, signal.SIGSTOP), (2, signal.SIGKILL)])
def test_a_rank_that_dies_or_stalls_is_named_by_all_others_in_time(lost, how):
    with Group(3, "tests.parts.watched", str(TIMEOUT), "for ever") as group:
        group.wait_for("running")
        process = group.processes[lost]
        process.send_signal(how)
        others = [rank for rank in range(3) if rank != lost]
        seconds, lines = group.ends(*others)
        assert seconds < TIMEOUT + 10
        for rank, line in zip(others, lines, strict=True):
            assert group.processes[rank].returncode == 1
            assert f"rank {lost} (host {socket.gethostname()}, process {process.pid}) has not been heard of for" in line
            assert "the same command resumes from the newest checkpoint" in line


@pytest.mark.slow
def test_a_mistake_that_one_rank_meets_ends_the_others_with_its_reason():
    with Group(3, "tests.parts.watched", "60", "error") as group:
        group.wait_for("running")
        seconds, lines = group.ends(0, 1)
        assert seconds < 60 and all(
            "rank 2 (host" in line and "has ended: shard 5 is damaged" in line for line in lines
        )
        _, error = group.processes[2].communicate()
        assert group.processes[2].returncode == 2 and "error: shard 5 is damaged" in error


@pytest.mark.slow
def test_a_rank_whose_program_fails_is_named_too():
    with Group(2, "tests.parts.watched", "60", "crash") as group:
        group.wait_for("running")
        seconds, (line,) = group.ends(0)
        assert seconds < 45 and "rank 1 (host" in line
        assert "ZeroDivisionError" in group.processes[1].communicate()[1]


@pytest.mark.slow
def test_when_all_is_well_nobody_is_missed():
    with Group(2, "tests.parts.watched", "5", "none") as group:
        for process in group.processes:
            output, error = process.communicate(timeout=launching.PATIENCE)
            assert process.returncode == 0 and "is done" in output and "error" not in error


def test_the_first_rank_keeps_the_store_until_the_others_have_read_why_it_ends(monkeypatch, capsys):
    """Whichever of its threads is the first to follow a verdict, its own one as well."""
    first = Watchdog(Ranks(0, 2, 2, torch.device("cpu")), 10)
    reads = iter([0, 0, 1])
    first._key, first._store, first._gone = "here", SimpleNamespace(add=lambda key, number: next(reads)), 0
    monkeypatch.setattr(os, "_exit", lambda code: None)
    first._end("rank 1 (host b, process 7) hangs")
    assert next(reads, None) is None
    assert "error: rank 1 (host b, process 7) hangs; rank 0" in capsys.readouterr().err
