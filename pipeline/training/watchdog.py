"""Ranks that are alive and get on, known by their heartbeats.

A collective does not say who is lost: NCCL waits for as long as its timeout, and gloo says only that some peer is gone. So
each process beats once a second in the store in which the ranks have met, from a thread of its own, and says with it where
its main thread is (progress.py). Rank 0 reads all the beats, the others only rank 0's and its verdict: the traffic grows with
the number of ranks, not with its square. Time is each process's own monotonic clock, so a clock that is set or differs
changes nothing; a process that was itself suspended starts its waiting anew.
"""

import contextlib
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from data_prep.cli import UserError
from pipeline.engines.ranks import Ranks, arrivals, store
from pipeline.training.progress import LOOP, Place, Progress, behind

INTERVAL = 1.0  # seconds between two beats
FAILED = 5.0  # seconds without a beat after which a rank is lost, once a collective has failed


class Watchdog:
    """``with Watchdog(ranks, timeout): …`` ends this process with code 1 and a line that names the rank that was lost.

    Lost is who has not beaten for ``timeout`` s, or for FAILED s once a collective has failed somewhere; and who beats but
    hangs, by ``progress``, which the block keeps. After SIGTERM (whose handler the block has) the process is ended if it has
    not left in ``progress.time_to_leave``, counted in the loop alone: what comes before or after it has its own patience. An
    error that leaves the block on one rank alone ends the others too. Collective: all ranks enter together; a single process
    only watches itself.
    """

    _blocks = 0  # how many were entered before: each has keys of its own

    def __init__(self, ranks: Ranks, timeout: float):
        self._ranks, self._timeout = ranks, timeout
        self.progress = Progress(timeout)
        self._failed, self._stopped, self._reported = False, threading.Event(), threading.Event()
        self._watchers: list[threading.Thread] = []
        self._ending = threading.Lock()
        self._heard: dict[int, float] = {}  # when the beat of a rank was heard last
        self._places: dict[int, tuple[Place, float]] = {}  # on rank 0: where each rank is, and since when
        self._failure_known = False
        self._gone = 1  # ranks that will not read a verdict; known before it is told, since both threads may follow it
        self._me = f"rank {ranks.rank} (host {socket.gethostname()}, process {os.getpid()})"
        self._names = [self._me]
        self._terminated: float | None = None  # when SIGTERM was received
        self._outside = -math.inf  # when this process was seen outside of the loop last

    def __enter__(self) -> "Watchdog":
        works: list[Callable[[], None]] = [self._judge]
        if self._ranks.world > 1:
            self._meet()
            works.append(self._beat_on)
        if self._ranks.first:
            self._places = dict.fromkeys(range(self._ranks.world), (self._place(), time.monotonic()))
        self._signals = _Signals()
        self._watchers = [threading.Thread(target=work, daemon=True) for work in works]
        for watcher in self._watchers:
            watcher.start()
        return self

    def _meet(self) -> None:
        Watchdog._blocks += 1
        self._key = f"watchdog/{Watchdog._blocks}"
        self._names = [""] * self._ranks.world
        dist.all_gather_object(self._names, self._me)
        # A connection of its own, so that no beat waits for what the main thread asks of the store.
        self._store = store().clone()
        self._store.set_timeout(timedelta(seconds=self._timeout))
        self._beat(0)
        self._store.add(self._own("failed"), 0)
        if self._ranks.first:
            self._store.set(self._own("verdict"), "")
        dist.barrier()
        self._heard = dict.fromkeys(range(self._ranks.world) if self._ranks.first else (0,), time.monotonic())

    def __exit__(self, kind, error, trace) -> None:
        if error is not None and self._ranks.world > 1:
            if isinstance(error, UserError | OSError | KeyboardInterrupt):
                # This rank's own reason. All ranks may leave for it; those that do not hear of it.
                self._tell(f"{self._me} has ended: {error}")
            else:
                # Perhaps only because another rank is gone: if so, its silence shows soon.
                self._failed = True
                self._try(lambda: self._store.add(self._own("failed"), 1))
                if self._reported.wait(3 * FAILED):
                    time.sleep(10 * FAILED)  # the thread that reports it ends this process
                self._tell(f"{self._me} has ended: {error}")
        self._stopped.set()
        self._watchers[0].join()
        self._signals.close()

    def leave(self) -> None:
        """All ranks are done: nobody is missed from here on. Collective."""
        if self._ranks.world > 1:
            dist.barrier()
        self._stopped.set()

    # --- the two threads ----------------------------------------------------------------------------------------------

    def _beat_on(self) -> None:
        """Beat, and note who else has. Apart from the judge, since a store on a host that is cut off answers never."""
        beats: dict[int, bytes] = {}
        number = 0
        while not self._stopped.wait(INTERVAL):
            number += 1
            try:
                self._beat(number)
                keys = [self._own(f"beat/{rank}") for rank in self._heard]
                *found, failed, verdict = self._store.multi_get([*keys, self._own("failed"), self._own("verdict")])
            except RuntimeError:
                return  # the judge sees that nothing is heard any more
            now = time.monotonic()
            for rank, beat in zip(list(self._heard), found, strict=True):
                if beats.get(rank) != beat:
                    beats[rank], self._heard[rank] = beat, now
                    if self._ranks.first:
                        self._note(rank, Place(*json.loads(beat)[1:]), now)
            self._failure_known = failed != b"0"
            if verdict:
                if not self._ranks.first:
                    self._try(lambda: self._store.add(self._own("read"), 1))
                self._end(verdict.decode().splitlines()[0])

    def _judge(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(INTERVAL / 2):
            now = time.monotonic()
            if now - last > 5 * INTERVAL:  # it was this process that stood still
                self.progress.suspended(now - last)
                self._heard = dict.fromkeys(self._heard, now)
                self._places = {rank: (place, now) for rank, (place, _) in self._places.items()}
                self._terminated = self._terminated and now
            last = now
            if self._ranks.world == 1:
                self._note(0, self._place(), now)
            patience = min(FAILED, self._timeout) if self._failed or self._failure_known else self._timeout
            silent = [rank for rank, heard in self._heard.items() if now - heard > patience]
            if silent:
                seconds = now - min(self._heard[rank] for rank in silent)
                line = f"{self._named(silent)} has not been heard of for {seconds:.0f} s"
                self._gone = len(silent)
                if self._ranks.first:
                    self._tell(line)
                self._end(line)
            elif line := self._hanging(now) or self._overdue(now):
                self._gone = 0
                self._tell(line)
                self._end(line)

    def _note(self, rank: int, place: Place, now: float) -> None:
        """Rank 0 has heard where ``rank`` is: it gets on if it is in another phase, has entered a collective or moved."""
        before, since = self._places[rank]
        self._places[rank] = place, since if before[:3] == place[:3] else now

    def _hanging(self, now: float) -> str:
        """The line that names the ranks that hang, if any does; on rank 0, which knows where they are."""
        seconds = {rank: now - since for rank, (_, since) in self._places.items()}
        ranks = [rank for rank in self._behind() if seconds[rank] > self._places[rank][0].patience]
        if not ranks:
            return ""
        place, _ = self._places[ranks[0]]
        usual = f", where {place.longest:.1f} s were the longest so far" if place.longest else ""
        verb = "hangs" if len(ranks) == 1 else "hang"
        return f"{self._named(ranks)} {verb} in {place}: no progress for {seconds[ranks[0]]:.0f} s{usual}"

    def _overdue(self, now: float) -> str:
        """The line that says that SIGTERM was not followed in time, if so."""
        if self._terminated is None and signal.SIGTERM in self._signals.received():
            self._terminated = now
        place = self._place()
        if place.phase not in LOOP:
            self._outside = now
        if self._terminated is None or now - max(self._terminated, self._outside) <= self.progress.time_to_leave:
            return ""
        line = f"{self._me} received SIGTERM {now - self._terminated:.0f} s ago and is still in {place}"
        last = self._behind()
        return f"{line}, waiting for {self._named(last)}" if last and self._ranks.rank not in last else line

    def _behind(self) -> list[int]:
        return behind({rank: place for rank, (place, _) in self._places.items()})

    def _end(self, line: str) -> None:
        """Report ``line`` and end this process, whatever its main thread waits for; not if it is leaving anyway.

        Rank 0 keeps the store: it stays until the others, but for those that are gone, have read why.
        """
        if not self._ending.acquire(blocking=False):
            return  # the other thread is at it
        self._reported.set()
        if self._stopped.wait(2 * INTERVAL if "has ended" in line else 0) and not self._failed:
            return
        deadline = time.monotonic() + FAILED
        while self._ranks.first and self._ranks.world > 1 and time.monotonic() < deadline:
            if self._store.add(self._own("read"), 0) >= self._ranks.world - 1 - self._gone:
                break
            time.sleep(0.1)
        ends = "the process ends" if line.startswith(self._me) else f"{self._me} ends too"
        print(
            f"error: {line}; {ends}, and the same command resumes from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    # --- small ones ---------------------------------------------------------------------------------------------------

    def _beat(self, number: int) -> None:
        self._store.set(self._own(f"beat/{self._ranks.rank}"), json.dumps([number, *self._place()]))

    def _place(self) -> Place:
        return self.progress.place(arrivals())

    def _tell(self, line: str) -> None:
        """Let all ranks know the reason to end, if the store still answers: it may never, so nobody waits long."""
        if self._ranks.world == 1:
            return

        def append() -> None:
            self._try(lambda: self._store.append(self._own("verdict"), line + "\n"))

        teller = threading.Thread(target=append, daemon=True)
        teller.start()
        teller.join(2 * INTERVAL)

    def _own(self, name: str) -> str:
        return f"{self._key}/{name}"

    def _named(self, ranks: list[int]) -> str:
        return ", ".join(self._names[rank] for rank in ranks)

    def _try(self, call: Callable[[], Any]) -> None:
        """``call`` if the store still answers."""
        with contextlib.suppress(RuntimeError):
            call()


class _Signals:
    """The signals that this process receives, also while its main thread waits in a library, where no handler runs.

    Only of those that have a handler in Python, and only if made in the main thread.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._wakes = threading.current_thread() is threading.main_thread()
        self._previous = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False) if self._wakes else -1

    def received(self) -> bytes:
        """The numbers of the signals since the last call."""
        try:
            return os.read(self._reader, 4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        if self._wakes:
            signal.set_wakeup_fd(self._previous)
        os.close(self._reader)
        os.close(self._writer)
