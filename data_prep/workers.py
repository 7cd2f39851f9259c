"""Worker processes: units are handed out one at a time, a dead worker is replaced, and nobody outlives the parent."""

import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from tqdm import tqdm

from data_prep.encode import load_encoder
from data_prep.errors import UserError
from data_prep.readers import PIECE
from data_prep.units import Job, Unit, UnitReader, prepare_unit

_LINE_SECONDS = 5.0  # between progress lines where there is no terminal
_PR_SET_PDEATHSIG = 1  # Linux prctl(2)


def run_units(job: Job, units: list[Unit], workers: int, progress: "Progress") -> None:
    """Prepare every unit. A unit whose worker dies is tried once more.

    Raises UserError at a fault of the input, or, when all else is done, naming the units whose worker died twice.
    """
    pending, crashes = list(units), Counter()
    pool: list[_Worker] = []
    try:
        while pending or any(worker.unit for worker in pool):
            while pending and sum(worker.unit is not None for worker in pool) < workers:
                _hand_out(job, pending, pool)
            busy = {worker.connection: worker for worker in pool if worker.unit}
            for connection in wait(busy):
                worker = busy[connection]
                if _listen(worker, progress):
                    continue
                pool.remove(worker)
                crashes[worker.unit.source, worker.unit.number] += 1
                again = crashes[worker.unit.source, worker.unit.number] == 1
                progress.say(f"a worker {worker.cause()} on {worker.unit}; {'trying again' if again else 'given up'}")
                if again:
                    pending.append(worker.unit)
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()
    if lost := [str(unit) for unit in units if crashes[unit.source, unit.number] > 1]:
        raise UserError(
            f"a worker died twice on each of {len(lost)} units: {'; '.join(lost)}; all others are done. "
            "With less than 1 GB of memory a worker, use fewer --workers; then run the same command again"
        )


def choose_unit(pending: list[Unit], last: Unit | None, busy: list[Unit]) -> Unit:
    """The first unit of the file that the worker has open, else of the file that the fewest other workers read.

    So a packed file is unpacked by as few workers as can be, and by each of them once.
    """
    crowd = Counter(unit.path for unit in busy)
    return min(pending, key=lambda unit: (last is None or unit.path != last.path, crowd[unit.path]))


class Progress:
    """A bar on a terminal, elsewhere a line every few seconds; counts bytes of input files and tokens."""

    def __init__(self, total: int, done: int):
        self._bar = tqdm(
            total=total, initial=done, unit="B", unit_scale=True, file=sys.stderr, disable=not sys.stderr.isatty()
        )
        self._start = self._said = time.monotonic()
        self._total, self._done, self._before = total, done, done
        self._tokens = 0

    def add(self, size: int, tokens: int) -> None:
        """Count ``size`` bytes of input and ``tokens`` tokens; both are negative when a unit is lost."""
        self._done += size
        self._tokens += tokens
        self._bar.set_postfix_str(self._rates(), refresh=False)
        self._bar.update(size)
        if self._bar.disable and time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            self.say(f"{self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB, {self._rates()}")

    def say(self, line: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(f"prepare: {line}", file=sys.stderr)

    def close(self) -> None:
        """End the bar with a line of totals."""
        self._bar.close()
        if self._done > self._before:
            self.say(f"{self._tokens:,} tokens from {(self._done - self._before) / 1e6:,.1f} MB, {self._rates()}")

    def _rates(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return f"{(self._done - self._before) / 1e6 / seconds:.2f} MB/s, {self._tokens / seconds:,.0f} tokens/s"


@dataclass
class _Worker:
    """A worker process as its parent sees it; ``size`` and ``tokens`` are what it has reported of its unit."""

    process: BaseProcess
    connection: Connection
    unit: Unit | None = None
    last: Unit | None = None
    size: int = 0
    tokens: int = 0

    def cause(self) -> str:
        self.process.join()
        code = self.process.exitcode
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _hand_out(job: Job, pending: list[Unit], pool: list[_Worker]) -> None:
    """Give one unit to an idle worker, or to a new one."""
    worker = next((worker for worker in pool if not worker.unit), None)
    if worker is None:
        worker = _start(job)
        pool.append(worker)
    unit = choose_unit(pending, worker.last, [other.unit for other in pool if other.unit])
    pending.remove(unit)
    worker.unit = worker.last = unit
    worker.size = worker.tokens = 0
    with suppress(BrokenPipeError):  # died idle: told when its connection is listened to
        worker.connection.send(unit)


def _start(job: Job) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, os.getpid(), job), daemon=True)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is the parent's to deal with
    process.start()
    signal.signal(signal.SIGINT, before)
    theirs.close()
    return _Worker(process, ours)


def _listen(worker: _Worker, progress: Progress) -> bool:
    """Take one message; False if the worker is dead. Raises what the worker met with: UserError or OSError."""
    try:
        message = worker.connection.recv()
    except (EOFError, OSError):
        progress.add(-worker.size, -worker.tokens)
        return False
    if isinstance(message, Exception):
        raise message
    size, tokens = message or (worker.unit.size - worker.size, 0)
    progress.add(size, tokens)
    worker.size += size
    worker.tokens += tokens
    if message is None:
        worker.unit = None
    return True


def _work(connection: Connection, parent: int, job: Job) -> None:
    """A worker's life: units come in; (bytes, tokens) go out while working on one, None at its end."""
    _die_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    reader = encoder = None
    try:
        while True:
            unit: Unit = connection.recv()
            encoder = encoder or load_encoder(job.tokenizer_path)
            if reader is None or reader.path != unit.path or reader.index >= unit.index:
                reader = UnitReader(unit)
            _prepare(connection, parent, job, unit, reader, encoder)
            connection.send(None)
    except (EOFError, BrokenPipeError):
        return  # the parent is gone
    except UserError as error:
        connection.send(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        connection.send(error)


def _prepare(connection: Connection, parent: int, job: Job, unit: Unit, reader: UnitReader, encoder) -> None:
    reported = 0

    def report(tokens: int) -> None:
        nonlocal reported
        if os.getppid() != parent:  # where there is no parent-death signal
            raise EOFError
        size = min(max(reader.piece * PIECE - unit.span[0], reported), unit.size) - reported
        reported += size
        connection.send((size, tokens))

    prepare_unit(job, unit, reader, encoder, report)


def _die_with(parent: int) -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies, also if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
