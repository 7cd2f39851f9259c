"""Ranks that are alive, known by their heartbeats; and stopping early, agreed by all.

A collective does not say who is lost: NCCL waits for as long as its timeout, and gloo says only that some peer is gone. So
each process beats once a second in the store in which the ranks have met, from a thread of its own. Rank 0 reads all the
beats, the others only rank 0's and its verdict: the traffic grows with the number of ranks, not with its square. Time is
each process's own monotonic clock, so a clock that is set or differs changes nothing; a process that was itself suspended
starts its waiting anew.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from data_prep.cli import UserError
from pipeline.engines.ranks import Ranks

INTERVAL = 1.0  # seconds between two beats
FAILED = 5.0  # seconds without a beat after which a rank is lost, once a collective has failed


class Watchdog:
    """``with Watchdog(ranks, timeout): …`` ends this process with code 1 and a line that names the rank that was lost.

    Lost is who has not beaten for ``timeout`` s, or for FAILED s once a collective has failed somewhere. An error that
    leaves the block on one rank alone ends the others too. Collective: all ranks enter together.
    """

    _blocks = 0  # how many were entered before: each has keys of its own

    def __init__(self, ranks: Ranks, timeout: float):
        self._ranks, self._timeout = ranks, timeout
        self._failed, self._stopped, self._reported = False, threading.Event(), threading.Event()
        self._watchers: list[threading.Thread] = []
        self._ending = threading.Lock()

    def __enter__(self) -> "Watchdog":
        if self._ranks.world == 1:
            return self
        Watchdog._blocks += 1
        self._key = f"watchdog/{Watchdog._blocks}"
        names: list = [None] * self._ranks.world
        dist.all_gather_object(names, (socket.gethostname(), os.getpid()))
        self._names = [f"rank {rank} (host {host}, process {pid})" for rank, (host, pid) in enumerate(names)]
        # A connection of its own, so that no beat waits for what the main thread asks of the store.
        self._store = cast(Any, dist.distributed_c10d._get_default_store()).clone()  # noqa: SLF001 - no public name
        self._store.set_timeout(timedelta(seconds=self._timeout))
        for key in (self._beat(self._ranks.rank), self._own("failed")):
            self._store.add(key, 0)
        if self._ranks.first:
            self._store.set(self._own("verdict"), "")
        dist.barrier()
        now = time.monotonic()
        self._heard = dict.fromkeys(range(self._ranks.world) if self._ranks.first else (0,), now)
        self._failure_known = False
        self._watchers = [threading.Thread(target=work, daemon=True) for work in (self._beat_on, self._judge)]
        for watcher in self._watchers:
            watcher.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is not None and self._watchers:
            if isinstance(error, UserError | OSError | KeyboardInterrupt):
                # This rank's own reason. All ranks may leave for it; those that do not hear of it.
                self._try(lambda: self._store.append(self._own("verdict"), f"{self._me()} has ended: {error}\n"))
            else:
                # Perhaps only because another rank is gone: if so, its silence shows soon.
                self._failed = True
                self._try(lambda: self._store.add(self._own("failed"), 1))
                if self._reported.wait(3 * FAILED):
                    time.sleep(10 * FAILED)  # the thread that reports it ends this process
                self._try(lambda: self._store.append(self._own("verdict"), f"{self._me()} has ended: {error}\n"))
        self._stopped.set()
        for watcher in self._watchers[1:]:
            watcher.join()

    def leave(self) -> None:
        """All ranks are done: nobody is missed from here on. Collective."""
        dist.barrier()
        self._stopped.set()

    # --- the two threads ----------------------------------------------------------------------------------------------

    def _beat_on(self) -> None:
        """Beat, and note who else has. Apart from the judge, since a store on a host that is cut off answers never."""
        counts: dict[int, bytes] = {}
        while not self._stopped.wait(INTERVAL):
            try:
                self._store.add(self._beat(self._ranks.rank), 1)
                keys = [self._beat(rank) for rank in self._heard]
                *beats, failed, verdict = self._store.multi_get([*keys, self._own("failed"), self._own("verdict")])
            except RuntimeError:
                return  # the judge sees that nothing is heard any more
            now = time.monotonic()
            for rank, beat in zip(list(self._heard), beats, strict=True):
                if counts.get(rank) != beat:
                    counts[rank], self._heard[rank] = beat, now
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
                self._heard = dict.fromkeys(self._heard, now)
            last = now
            patience = min(FAILED, self._timeout) if self._failed or self._failure_known else self._timeout
            silent = [rank for rank, heard in self._heard.items() if now - heard > patience]
            if silent:
                seconds = now - min(self._heard[rank] for rank in silent)
                line = f"{', '.join(self._names[rank] for rank in silent)} has not been heard of for {seconds:.0f} s"
                if self._ranks.first:
                    self._try(lambda line=line: self._store.append(self._own("verdict"), line + "\n"))
                self._end(line, len(silent))

    def _end(self, line: str, gone: int = 1) -> None:
        """Report ``line`` and end this process, whatever its main thread waits for; not if it is leaving anyway.

        Rank 0 keeps the store: it stays until the others, but for the ``gone``, have read why.
        """
        if not self._ending.acquire(blocking=False):
            return  # the other thread is at it
        self._reported.set()
        if self._stopped.wait(2 * INTERVAL if "has ended" in line else 0) and not self._failed:
            return
        deadline = time.monotonic() + FAILED
        while self._ranks.first and time.monotonic() < deadline:
            if self._store.add(self._own("read"), 0) >= self._ranks.world - 1 - gone:
                break
            time.sleep(0.1)
        print(
            f"error: {line}; {self._me()} ends too, and the same command resumes from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    # --- small ones ---------------------------------------------------------------------------------------------------

    def _own(self, name: str) -> str:
        return f"{self._key}/{name}"

    def _beat(self, rank: int) -> str:
        return self._own(f"beat/{rank}")

    def _me(self) -> str:
        return self._names[self._ranks.rank]

    def _try(self, call) -> None:
        """``call`` if the store still answers."""
        with contextlib.suppress(RuntimeError):
            call()


class EarlyStop:
    """Whether to write a checkpoint and leave: for SIGTERM, SIGUSR1, a file ROOT/STOP, or ``hours`` after ``began``.

    What one rank has seen all ranks must do in the same step. They vote in every step and read the votes of the step
    before, which have long arrived: nothing waits.
    """

    def __init__(self, ranks: Ranks, root: Path, hours: float | None = None, began: float | None = None):
        self._ranks, self._file, self._reason = ranks, root / "STOP", ""
        began = time.monotonic() if began is None else began
        self._until = began + hours * 3600 if hours else float("inf")
        self._hours, self._looked = hours, 0.0
        self._votes: tuple[torch.Tensor, dist.Work] | None = None
        self._previous: dict[int, Any] = {}  # handlers of signals

    def __enter__(self) -> "EarlyStop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Call once in each step, on all ranks: whether any had a reason in the step before. Collective."""
        self._look()
        votes = torch.tensor([float(bool(self._reason))], device=self._ranks.device)
        work = dist.all_reduce(votes, async_op=True)
        previous, self._votes = self._votes, (votes, work)
        if previous is None:
            return False
        previous[1].wait()
        return previous[0].item() > 0

    def asked(self) -> bool:
        """Whether any rank has a reason now, outside of a step. Collective."""
        self._looked = 0.0
        self._look()
        votes = torch.tensor([float(bool(self._reason))], device=self._ranks.device)
        dist.all_reduce(votes)
        return votes.item() > 0

    @property
    def reason(self) -> str:
        return self._reason or "another rank was asked to stop"

    def forget(self) -> None:
        """Remove the file: it was followed, or was meant for an earlier run."""
        if self._ranks.first:
            self._file.unlink(missing_ok=True)

    def _look(self) -> None:
        now = time.monotonic()
        if self._reason or not self._ranks.first or now - self._looked < 1:
            return
        self._looked = now
        if now > self._until:
            self._reason = f"--max-hours {self._hours:g} are over"
        elif self._file.exists():
            self._reason = f"{self._file} was found"

    def _signalled(self, number: int, frame) -> None:
        self._reason = self._reason or f"{signal.Signals(number).name} was received"
