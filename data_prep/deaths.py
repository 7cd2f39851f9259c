"""Why workers died: a document that kills them is found and left out, a unit that does is tried once more."""

import signal
from collections import Counter
from dataclasses import dataclass

from data_prep.guard import LeftOut, Place
from data_prep.units import Unit

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}


@dataclass(frozen=True)
class Death:
    """The end of a worker: its exit code, negative if a signal killed it, and where it was by then."""

    code: int
    place: Place

    @property
    def cause(self) -> str:
        return f"was killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"ended with code {self.code}"


class Deaths:
    """The deaths of workers so far, by unit and by document."""

    def __init__(self, seconds: float):
        """``seconds``: the limit of CPU time for a document."""
        self._seconds = seconds
        self._left_out: dict[Unit, dict[tuple[int, int], str]] = {}
        self._crashes: Counter[tuple[Unit, int, int]] = Counter()
        self._others: Counter[Unit] = Counter()

    def left_out(self, unit: Unit) -> LeftOut:
        """The documents of a unit to leave out."""
        return self._left_out.get(unit, {})

    @property
    def given_up(self) -> list[str]:
        """The units on which workers died twice for no reason that was found."""
        return [str(unit) for unit, times in self._others.items() if times > 1]

    def judge(self, unit: Unit, death: Death) -> tuple[bool, str]:
        """Whether to try the unit again, perhaps with fewer documents; and a line for the user.

        The document at hand is to blame if it used up its time, or if the program crashed in it twice. A worker that
        was killed from outside says nothing against a document.
        """
        place = death.place
        where = place.part, place.document
        if place.cleaning and death.code == -signal.SIGPROF:
            self._left_out.setdefault(unit, {})[where] = "over_time"
            return True, f"{_words(unit, place)}: takes over {self._seconds:g} s of CPU time, so it is left out"

        if place.cleaning and -death.code in _CRASHES:
            self._crashes[unit, *where] += 1
            if self._crashes[unit, *where] == 1:
                return True, f"a worker {death.cause} at {_words(unit, place)}; trying again"
            self._left_out.setdefault(unit, {})[where] = "crashed_parser"
            return True, f"{_words(unit, place)}: a worker {death.cause} at it once more, so it is left out"

        self._others[unit] += 1
        again = self._others[unit] == 1
        return again, f"a worker {death.cause} on {unit}; {'trying again' if again else 'given up'}"


def _words(unit: Unit, place: Place) -> str:
    """The document in words: its number, its title if it has one, and its part of the file."""
    title = "".join(letter for letter in place.title.decode(errors="ignore") if letter.isprintable())
    named = f" ({title})" if title else ""
    return f"document {place.document}{named} of {unit.parts[place.part]}"
