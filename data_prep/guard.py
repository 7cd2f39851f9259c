"""One bad document costs itself alone: a worker notes which one it is at, and has a limit of CPU time for each.

Cleaning a page runs C code that may never end, or overflow the stack; only a process's death ends that. What its parent
makes of the death is in ``deaths``.
"""

import ctypes
import signal
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from data_prep.formats.readers import Document

SECONDS = 30.0  # of CPU time, for one document

LeftOut = Mapping[tuple[int, int], str]  # (part of the unit, document of the part, both from 0 on): why it is dropped
NOTHING: LeftOut = MappingProxyType({})


class Place(ctypes.Structure):
    """In memory shared with the parent: what a worker is cleaning, if anything (``cleaning``), and its title if it has one."""

    _fields_ = (
        ("cleaning", ctypes.c_bool),
        ("part", ctypes.c_int64),
        ("document", ctypes.c_int64),
        ("title", ctypes.c_char * 200),
    )
    cleaning: bool
    part: int
    document: int
    title: bytes


class Guard:
    """Cleans documents in a worker, which SIGPROF ends after ``seconds`` of CPU time at one of them.

    Arming and noting take about a microsecond, so formats whose clean-up is nothing but decoding go without (``Format``).
    """

    def __init__(self, place: Place, seconds: float):
        self._place, self._seconds = place, seconds
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})

    def clean(self, clean: Callable[[Any], Document], raw: Any, part: int, document: int) -> Document:
        """``clean(raw)``, the document of that number in that part of a unit."""
        place, title = self._place, getattr(raw, "title", "")
        place.title = title.encode()[:199] if isinstance(title, str) else b""
        place.part, place.document, place.cleaning = part, document, True
        signal.setitimer(signal.ITIMER_PROF, self._seconds)
        try:
            return clean(raw)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            place.cleaning = False
