"""Processes that clean documents for this one, and may die of them."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from data_prep.deaths import Death
from data_prep.guard import Place


@dataclass
class Child:
    """A process and the way to talk to it. ``place``: in shared memory, the document that it is cleaning."""

    process: BaseProcess
    connection: Connection
    place: Place

    def death(self) -> Death:
        """How it ended, once it is about to."""
        self.process.join()
        assert self.process.exitcode is not None  # it was waited for
        return Death(self.process.exitcode, self.place)

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.join()


def start(work: Callable[..., None], arguments: tuple[Any, ...], started: Callable[[Child], object]) -> Child:
    """Run ``work(connection, parent, place, *arguments)`` in a new process, which is deaf to Ctrl-C, and return it.

    ``started`` is called with it before a Ctrl-C takes effect here.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    place = context.RawValue(Place)
    process = context.Process(target=work, args=(theirs, os.getpid(), place, *arguments), daemon=True)
    resource_tracker.ensure_running()  # or start() would start it, which unblocks the signal
    received: list[bool] = []  # by whatever thread the system gave it to: a blocked one is passed over
    before = signal.signal(signal.SIGINT, lambda *_: received.append(True))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: only the parent handles Ctrl-C
    try:
        process.start()
        theirs.close()
        started(child := Child(process, ours, place))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
    if received:
        signal.raise_signal(signal.SIGINT)
    return child
