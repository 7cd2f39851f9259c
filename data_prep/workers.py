"""Worker processes: units are handed out one at a time, a dead worker is replaced, and nobody outlives the parent."""

import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from tqdm import tqdm

from data_prep.encode import Encoder, load_encoder
from data_prep.errors import UserError
from data_prep.forecast import duration
from data_prep.inputs import InputFile
from data_prep.units import Job, Unit, UnitReader, prepare_unit

_LINE_SECONDS = 5.0  # between progress lines where there is no terminal
_PR_SET_PDEATHSIG = 1  # Linux prctl(2)


def run_units(job: Job, units: list[Unit], workers: int, progress: "Progress") -> None:
    """Prepare every unit that can be. A unit whose worker dies is tried once more, a damaged file is left at the damage.

    Raises UserError when all else is done, naming the units that could not be made; OSError at once if the disk is full.
    """
    pending, crashes, faults = Pending(units), Counter(), []
    pool: list[_Worker] = []
    try:
        while pending or any(worker.unit for worker in pool):
            while pending and sum(worker.unit is not None for worker in pool) < workers:
                _hand_out(job, pending, pool)
            busy = {worker.connection: worker for worker in pool if worker.unit}
            for connection in wait(busy):
                worker = busy[connection]
                match _listen(worker, progress):
                    case UserError() as fault:
                        skipped = pending.drop_file_of(worker.unit)
                        faults.append(f"{fault} (shard {worker.unit.source}/{worker.unit.stem}{_and(len(skipped))})")
                        progress.say(f"{faults[-1]}; going on with the others")
                        worker.unit = None
                    case _Death(cause):
                        pool.remove(worker)
                        crashes[worker.unit] += 1
                        again = crashes[worker.unit] == 1
                        progress.say(f"a worker {cause} on {worker.unit}; {'trying again' if again else 'given up'}")
                        if again:
                            pending.put_back(worker.unit)
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()
    if faults:
        raise UserError(
            f"{'; '.join(faults[:3])}{f'; and {len(faults) - 3} more, told above' if len(faults) > 3 else ''}. All other "
            "units are done: put whole files in the place of these, and run the same command with --refresh"
        )
    if lost := [str(unit) for unit, times in crashes.items() if times > 1]:
        raise UserError(
            f"a worker died twice on each of {len(lost)} units: {'; '.join(lost[:3])}; all others are done. "
            "With less than 1 GB of memory a worker, use fewer --workers; then run the same command again"
        )


def _and(skipped: int) -> str:
    return f" and {skipped} after it in this file" if skipped else ""


class Pending:
    """The units that nobody has taken yet, by file.

    A worker goes on with the file that it has open, else takes one that the fewest others read: so a packed file is
    unpacked by as few workers as can be, and by each of them once.
    """

    def __init__(self, units: list[Unit]):
        self._files: dict[InputFile, deque[Unit]] = {}
        for unit in units:
            self._files.setdefault(unit.parts[0].file, deque()).append(unit)

    def __bool__(self) -> bool:
        return bool(self._files)

    def take(self, last: Unit | None, busy: list[Unit]) -> Unit:
        """The next unit for a worker whose last one was ``last``, while the others are at ``busy``."""
        file = last.parts[0].file if last else None
        if file not in self._files:
            crowd = Counter(unit.parts[0].file for unit in busy)
            free = next((file for file in self._files if file not in crowd), None)
            file = free or min(self._files, key=crowd.__getitem__)
        unit = self._files[file].popleft()
        if not self._files[file]:
            del self._files[file]
        return unit

    def put_back(self, unit: Unit) -> None:
        self._files.setdefault(unit.parts[0].file, deque()).appendleft(unit)

    def drop_file_of(self, unit: Unit) -> list[Unit]:
        """Give up the units of a file that lie behind ``unit``, at which it is damaged."""
        file = unit.parts[0].file
        behind = [other for other in self._files.get(file, ()) if other.parts[0].begin > unit.parts[0].begin]
        before = deque(other for other in self._files.pop(file, ()) if other not in behind)
        if before:
            self._files[file] = before
        return behind


class Progress:
    """A bar on a terminal, elsewhere a line every few seconds; counts bytes of input files and tokens."""

    def __init__(self, total: int, done: int, quiet: bool = False):
        silent = quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, file=sys.stderr, disable=silent)
        self._quiet = quiet
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
            self.say(f"{self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB, {self._rates()}, {self._left()} left")

    def say(self, line: str) -> None:
        """Print a line without breaking the bar."""
        if self._quiet:
            return
        tqdm.write(f"prepare: {line}", file=sys.stderr)

    def close(self) -> None:
        """End the bar with a line of totals."""
        self._bar.close()
        if self._done > self._before:
            self.say(f"{self._tokens:,} tokens from {(self._done - self._before) / 1e6:,.1f} MB, {self._rates()}")

    def _left(self) -> str:
        seconds, done = time.monotonic() - self._start, self._done - self._before
        return duration((self._total - self._done) * seconds / done) if done and seconds > 10 else "unknown time"

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


@dataclass(frozen=True)
class _Death:
    """How a worker ended."""

    cause: str


def _hand_out(job: Job, pending: Pending, pool: list[_Worker]) -> None:
    """Give one unit to an idle worker, or to a new one."""
    worker = next((worker for worker in pool if not worker.unit), None)
    if worker is None:
        worker = _start(job, pool)
    unit = pending.take(worker.last, [other.unit for other in pool if other.unit])
    worker.unit = worker.last = unit
    worker.size = worker.tokens = 0
    with suppress(BrokenPipeError):  # died idle: told when its connection is listened to
        worker.connection.send(unit)


def _start(job: Job, pool: list[_Worker]) -> _Worker:
    """A new worker, which is in ``pool`` before a Ctrl-C can be heard."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, os.getpid(), job), daemon=True)
    resource_tracker.ensure_running()  # or start() would start it, which unblocks the signal
    heard = []  # by whatever thread the system gave it to: a blocked one is passed over
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(True))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is the parent's to deal with
    try:
        process.start()
        theirs.close()
        pool.append(_Worker(process, ours))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
    if heard:
        signal.raise_signal(signal.SIGINT)
    return pool[-1]


def _listen(worker: _Worker, progress: Progress) -> "_Death | UserError | None":
    """Take one message: a fault of the unit's file, the worker's death, or None. Raises OSError if the disk is full."""
    try:
        message = worker.connection.recv()
    except (EOFError, OSError):
        progress.add(-worker.size, -worker.tokens)
        return _Death(_cause(worker.process))
    if isinstance(message, UserError):
        progress.add(-worker.size, -worker.tokens)
        return message
    if isinstance(message, OSError):
        raise message
    size, tokens = message or (worker.unit.size - worker.size, 0)
    progress.add(size, tokens)
    worker.size += size
    worker.tokens += tokens
    if message is None:
        worker.unit = None
    return None


def _cause(process: BaseProcess) -> str:
    process.join()
    code = process.exitcode
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _work(connection: Connection, parent: int, job: Job) -> None:
    """A worker's life: units come in; (bytes, tokens) go out while working on one, at its end None or its fault."""
    _die_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    reader, encoder = UnitReader(), None
    try:
        while True:
            unit: Unit = connection.recv()
            encoder = encoder or load_encoder(job.tokenizer_path)
            try:
                _prepare(connection, parent, job, unit, reader, encoder)
                connection.send(None)
            except UserError as fault:
                reader = UnitReader()
                connection.send(fault)
            except BrokenPipeError:
                raise
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    connection.send(error)
                    return
                reader = UnitReader()
                connection.send(UserError(f"{error.filename or unit}: {error.strerror}"))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone


def _prepare(connection: Connection, parent: int, job: Job, unit: Unit, reader: UnitReader, encoder: Encoder) -> None:
    reported = 0

    def report(tokens: int) -> None:
        nonlocal reported
        if os.getppid() != parent:  # where there is no parent-death signal
            raise EOFError
        size = max(reader.done, reported) - reported
        reported += size
        connection.send((size, tokens))

    prepare_unit(job, unit, reader, encoder, report)


def _die_with(parent: int) -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies, also if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
