"""Where a rank is in its run, how long that usually takes, and which of several ranks are behind.

A rank that hangs but lives is found by its lack of progress: for its patience it has begun no other phase, entered no other
collective, and made no move, as a micro-batch or the read of a tensor. With it all others stand still, since they wait for
it in a collective; so the one to blame is the one that is furthest behind.

The patience with a phase of the loop is ten times the longest of its kind so far, and at least FLOOR timeouts (10 minutes by
default). The first of each kind is not counted: it compiles, allocates, or reads what nobody has cached. Until the second
one has ended, and outside of the loop, the patience is UNKNOWN timeouts (an hour). A download has no limit: the hub's client
has its own.
"""

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.processes import TIMEOUT

READ, UPDATE, EVALUATION, SAVE, EXPORT = (
    "the read of its samples",
    "the update",
    "the evaluation",
    "the save",
    "the export",
)
START, DOWNLOAD, LOAD = "the start", "the download of the teacher", "the loading of the teacher"
LOOP = (READ, UPDATE, EVALUATION, SAVE)

FLOOR, UNKNOWN = 5, 30  # patience in timeouts: at least, and where nothing is known yet
TIMES = 10  # the longest so far: the patience of a phase
LEAVING = 3  # times the longest read, update, evaluation and save together: what a run may take to leave after SIGTERM


class Place(NamedTuple):
    """Where a rank is: its ``number``-th phase, and its ``patience``, how long it may take for another sign of progress (s).

    ``arrivals`` are the collectives and meetings entered; ``moves``, what it has begun by itself, differ between ranks where
    one works for all. ``step`` counts from 1, 0 outside of the loop; ``longest`` (s) is that of the earlier phases of this
    kind.
    """

    number: int
    arrivals: int
    moves: int
    phase: str
    step: int
    patience: float
    longest: float

    def __str__(self) -> str:
        return f"{self.phase} of step {self.step}" if self.step else self.phase


class Progress:
    """The phases of this process: its main thread says which one it begins, its watchdog's threads look."""

    def __init__(self, timeout: float = TIMEOUT):
        self._timeout, self._suspended, self._moves = timeout, 0.0, 0
        self._took: dict[str, list[float]] = {}  # by phase: the seconds of the first, and the longest of the later ones
        self._now = (0, START, 0, self._clock())

    def at(self, phase: str, step: int = 0) -> None:
        """A ``phase`` begins, of update ``step`` (from 1): call it in the main thread."""
        number, previous, _, began = self._now
        took = self._took.setdefault(previous, [])
        took.append(self._clock() - began)
        took[1:] = [max(took[1:])] if took[1:] else []
        self._now = number + 1, phase, step, self._clock()

    def moved(self) -> None:
        """Part of the phase begins: of a micro-batch, or the read of a tensor. Also where this rank works for all."""
        self._moves += 1

    def suspended(self, seconds: float) -> None:
        """This process, or the whole machine, has slept for so long: no phase has taken it."""
        self._suspended += seconds

    def place(self, arrivals: int) -> Place:
        """Where this process is now, having entered so many collectives."""
        number, phase, step, _ = self._now
        took = self._took.get(phase, [])
        longest = max(took, default=0.0)
        patience = UNKNOWN * self._timeout
        if phase == DOWNLOAD:
            patience = math.inf
        elif phase in LOOP and len(took) > 1:
            patience = max(FLOOR * self._timeout, TIMES * took[1])
        return Place(number, arrivals, self._moves, phase, step, patience, longest)

    @property
    def time_to_leave(self) -> float:
        """Seconds after SIGTERM in the loop within which the process must have ended by itself, with a checkpoint."""
        return FLOOR * self._timeout + LEAVING * sum(max(self._took.get(phase, [0.0])) for phase in LOOP)

    def _clock(self) -> float:
        return time.monotonic() - self._suspended


def behind(places: Mapping[int, Place]) -> list[int]:
    """The ranks that are furthest behind: those for which the others wait, if they wait.

    The program of all ranks is the same, so that is who is in an earlier phase, or has entered fewer collectives in the same
    one. Moves do not count: nobody waits for them. These are all ranks if all are at one point: then each of them hangs, or a
    device or a network does.
    """
    last = min((place[:2] for place in places.values()), default=None)
    return [rank for rank, place in places.items() if place[:2] == last]
