"""Worker processes: units are handed out one at a time, a dead worker is replaced, and nobody outlives the parent."""

import errno
import os
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from tqdm import tqdm

from data_prep.children import Child, start
from data_prep.cli import UserError, shows_bars
from data_prep.deaths import Death, Deaths
from data_prep.encode import load_encoder
from data_prep.forecast import duration
from data_prep.guard import Guard, Place
from data_prep.inputs import InputFile
from data_prep.processes import die_with_parent
from data_prep.units import Job, Unit, UnitReader, prepare_unit

_LINE_SECONDS = 5.0  # between progress lines where there is no terminal


def run_units(job: Job, units: list[Unit], workers: int, progress: "Progress") -> None:
    """Prepare every unit that can be. A unit whose worker dies is tried once more, a damaged file is read to the damage.

    A document that crashes workers, or takes longer than a document may, is left out of its unit.
    Raises UserError when all others are done, naming the units that could not be made; OSError at once if the disk is full.
    """
    pending, deaths = Pending(units), Deaths(job.seconds)
    faults: list[str] = []
    pool: list[_Worker] = []
    try:
        while pending or any(worker.unit for worker in pool):
            while pending and sum(worker.unit is not None for worker in pool) < workers:
                _hand_out(job, pending, pool, deaths)
            for worker, unit in _with_a_message(pool):
                match _listen(worker, unit, progress):
                    case UserError() as fault:
                        worker.unit = None
                        faults.append(f"{fault} ({_skipped(unit, pending)})")
                        progress.say(f"{faults[-1]}; continuing with the others")
                    case Death() as death:
                        pool.remove(worker)
                        again, line = deaths.judge(unit, death)
                        progress.say(line)
                        if again:
                            pending.put_back(unit)
    finally:
        for worker in pool:
            worker.child.kill()
    _raise_for(faults, deaths.given_up)


def _raise_for(faults: list[str], lost: list[str]) -> None:
    """Raise UserError for damaged files, or for units on which a worker died twice."""
    if faults:
        more = f"; and {len(faults) - 3} more, reported above" if len(faults) > 3 else ""
        raise UserError(
            f"{'; '.join(faults[:3])}{more}. All other units are done: replace these files by whole ones, and run the same "
            "command with --refresh"
        )
    if lost:
        raise UserError(
            f"a worker died twice on each of {len(lost)} units: {'; '.join(lost[:3])}; all others are done. "
            "With less than 1 GB of memory per worker, use fewer --workers; then run the same command again"
        )


def _skipped(unit: Unit, pending: "Pending") -> str:
    """Drop the units of a damaged file that are after ``unit``. Returns what is missing, in words."""
    after = len(pending.drop_file_of(unit))
    return f"shard {unit.source}/{unit.stem}{f' and {after} after it in this file' if after else ''}"


class Pending:
    """The units that no worker has taken yet, by file.

    A worker continues with the file that it has open, else takes one that the fewest others read: so a packed file is
    unpacked by as few workers as possible, and by each of them once.
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
        """Make ``unit`` the next one of its file."""
        self._files.setdefault(unit.parts[0].file, deque()).appendleft(unit)

    def drop_file_of(self, unit: Unit) -> list[Unit]:
        """Drop and return the units of a file that are after ``unit``, at which it is damaged."""
        file = unit.parts[0].file
        after = [other for other in self._files.get(file, ()) if other.parts[0].begin > unit.parts[0].begin]
        before = deque(other for other in self._files.pop(file, ()) if other not in after)
        if before:
            self._files[file] = before
        return after


class Progress:
    """A bar on a terminal, elsewhere a line every few seconds; counts bytes of input files and tokens."""

    def __init__(self, total: int, done: int, quiet: bool = False):
        silent = quiet or not shows_bars()
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
    """A worker process as its parent sees it; ``size`` and ``tokens`` are those it has reported for its unit."""

    child: Child
    unit: Unit | None = None
    last: Unit | None = None
    size: int = 0
    tokens: int = 0


def _hand_out(job: Job, pending: Pending, pool: list[_Worker], deaths: Deaths) -> None:
    """Give one unit to an idle worker, or to a new one."""
    worker = next((worker for worker in pool if not worker.unit), None)
    if worker is None:
        start(_work, (job,), lambda child: pool.append(_Worker(child)))
        worker = pool[-1]
    unit = pending.take(worker.last, [other.unit for other in pool if other.unit])
    worker.unit = worker.last = unit
    worker.size = worker.tokens = 0
    with suppress(BrokenPipeError):  # it died idle, which is noticed when its connection is read
        worker.child.connection.send((unit, deaths.left_out(unit)))


def _with_a_message(pool: list[_Worker]) -> list[tuple[_Worker, Unit]]:
    """The busy workers that have sent something, or have died, with their units; waits until there is one."""
    busy = [(worker, worker.unit) for worker in pool if worker.unit]
    ready = wait([worker.child.connection for worker, _ in busy])
    return [(worker, unit) for worker, unit in busy if worker.child.connection in ready]


def _listen(worker: _Worker, unit: Unit, progress: Progress) -> Death | UserError | None:
    """Receive a message: a fault of the unit's file, the worker's death, or None. Raises OSError if the disk is full."""
    try:
        message = worker.child.connection.recv()
    except (EOFError, OSError):
        progress.add(-worker.size, -worker.tokens)
        return worker.child.death()
    if isinstance(message, UserError):
        progress.add(-worker.size, -worker.tokens)
        return message
    if isinstance(message, OSError):
        raise message
    size, tokens = message or (unit.size - worker.size, 0)
    progress.add(size, tokens)
    worker.size += size
    worker.tokens += tokens
    if message is None:
        worker.unit = None
    return None


def _work(connection: Connection, parent: int, place: Place, job: Job) -> None:
    """Run a worker: it receives units, with the documents to leave out of them.

    It sends (bytes, tokens) while it works on one, at its end None or its fault.
    """
    die_with_parent(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    guard = Guard(place, job.seconds)
    reader, encoder = UnitReader(guard), None
    try:
        while True:
            unit, left_out = connection.recv()
            encoder = encoder or load_encoder(job.tokenizer_path)
            try:
                prepare_unit(job, unit, reader, encoder, _Report(connection, parent, reader), left_out)
                connection.send(None)
            except UserError as fault:
                reader = UnitReader(guard)
                connection.send(fault)
            except BrokenPipeError:
                raise
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    connection.send(error)
                    return
                reader = UnitReader(guard)
                connection.send(UserError(f"{error.filename or unit}: {error.strerror}"))
    except (EOFError, BrokenPipeError):
        return  # the parent has died


class _Report:
    """Sends the progress of one unit."""

    def __init__(self, connection: Connection, parent: int, reader: UnitReader):
        self._connection, self._parent, self._reader = connection, parent, reader
        self._reported = 0  # bytes

    def __call__(self, tokens: int) -> None:
        """Send the bytes read since the last call, and these tokens. Raises EOFError if the parent has died."""
        if os.getppid() != self._parent:  # where there is no parent-death signal
            raise EOFError
        size = max(self._reader.done, self._reported) - self._reported
        self._reported += size
        self._connection.send((size, tokens))
