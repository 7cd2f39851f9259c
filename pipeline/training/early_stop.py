"""Leaving a run early, with a checkpoint, after the same update on all ranks."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.artifacts.run_folder import STOP
from pipeline.engines.ranks import Ranks, on_first_rank, store, wait_for_all

AHEAD = 2  # updates; alone 1, since nobody else may be ahead


class EarlyStop:
    """Whether to write a checkpoint and leave: for SIGTERM, SIGUSR1, a file ROOT/STOP, or ``hours`` after ``began``.

    What one rank has seen all ranks must do after the same update, although they look at different moments and one may be
    ahead of another, on a GPU by whatever its queue takes. So rank 0 grants updates: before its update s it sets the limit,
    in the store, to s + AHEAD. A rank begins update t once the limit that it reads is above t, and waits until then. To
    leave, rank 0 marks the limit as it stands as the last update, and raises it no more.

    All leave after that update, whatever their lead: nobody has begun it before, since no limit was above it; everybody who
    comes to it finds the mark, and nobody begins one after it. Nobody waits for ever either: rank 0 waits for no limit, and
    who waits to begin update t has begun all before it, so has entered every collective that rank 0 needs to come to t − 1,
    where it sets the limit to t + 1.

    In a step this is one question to the store: no collective, and no wait for the device. It is answered at once where
    updates end with a collective: who is to begin update t has ended t − 1, so rank 0 has begun that one, and the limit is
    t + 1 at least.
    """

    _blocks = 0  # how many were entered before: each has keys of its own

    def __init__(self, ranks: Ranks, root: Path, hours: float | None = None, began: float | None = None):
        self._ranks, self._file, self._reason = ranks, root / STOP, ""
        began = time.monotonic() if began is None else began
        self._until = began + hours * 3600 if hours else float("inf")
        self._hours, self._looked = hours, 0.0
        self._limit, self._is_last, self._asked = 0, False, False
        self._previous: dict[int, Any] = {}  # handlers of signals

    def __enter__(self) -> "EarlyStop":
        EarlyStop._blocks += 1
        self._key = f"early-stop/{EarlyStop._blocks}"
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, step: int) -> bool:
        """Whether all ranks leave after update ``step`` (from 0), which this one is about to begin: call it before each."""
        self._look()
        if self._ranks.first:
            self._grant(step)
            return self._is_last and step == self._limit
        pause = 0.0
        while True:
            # 0 until rank 0 has set one, negative if it is the last update
            limit = store().add(f"{self._key}/limit", 0)
            if step < abs(limit) or limit < 0:
                return step == -limit
            time.sleep(pause)
            pause = min(pause + 0.001, 0.05)

    def _grant(self, step: int) -> None:
        """On rank 0, about to begin update ``step``: set the limit for all."""
        if self._is_last:
            return
        self._is_last = bool(self._reason)
        ahead = AHEAD if self._ranks.world > 1 else 1
        self._limit = (self._limit or step + ahead - 1) if self._is_last else step + ahead
        if self._ranks.world > 1:
            store().set(f"{self._key}/limit", str(-self._limit if self._is_last else self._limit))

    def asked(self) -> bool:
        """Whether any rank has a reason now, outside of a step. All ranks call it together."""
        self._looked = 0.0
        self._look()
        wait_for_all(self._ranks)
        return on_first_rank(self._ranks, self._has_reason)

    def _has_reason(self) -> bool:
        self._looked = 0.0
        self._look()
        return bool(self._reason)

    def ask(self, reason: str) -> None:
        """Have all ranks leave, for a ``reason`` that this one has met."""
        self._reason = self._reason or reason

    @property
    def reason(self) -> str:
        return self._reason or "another rank was asked to stop"

    def forget(self) -> None:
        """Remove the file: it was followed, or was meant for an earlier run."""
        if self._ranks.first:
            self._file.unlink(missing_ok=True)

    def _look(self) -> None:
        """Look for reasons; rank 0 does so once in a second, the others say at once what they have."""
        if not self._ranks.first:
            if self._reason and not self._asked:
                self._asked = True
                store().set(f"{self._key}/asked", f"{self._reason} by rank {self._ranks.rank}")
            return
        now = time.monotonic()
        if self._reason or now - self._looked < 1:
            return
        self._looked = now
        if now > self._until:
            self._reason = f"--max-hours {self._hours:g} are over"
        elif self._file.exists():
            self._reason = _written(self._file) or f"{self._file} was found"
        elif self._ranks.world > 1 and store().check([f"{self._key}/asked"]):
            self._reason = store().get(f"{self._key}/asked").decode()

    def _signalled(self, number: int, frame: object) -> None:
        self._reason = self._reason or f"{signal.Signals(number).name} was received"


def _written(file: Path) -> str:
    """The reason that a launch has written into the file; nothing of one that somebody made by hand."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()[:80]
    except OSError:  # it is gone again
        return ""
