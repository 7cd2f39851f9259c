"""The faults of the fuzz (tests.fuzz_faults): each is done to a launch, or before it, and returns a verdict and its text."""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from pipeline.export import export
from tests.parts.damage import SMALL_DISK, can_mount, checkpoints_of, damage, digest, other_tokens, size_on_disk
from tests.parts.watched_launch import Launch, Wrong, send, variable

if TYPE_CHECKING:
    from tests.fuzz_faults import Fuzz

RANKS, STEPS, EVERY = 2, 16, 2
TIMEOUT = 15  # seconds without a sign of life after which a rank is given up
SLACK = 10  # seconds more in which the others must have ended


class Moment(NamedTuple):
    """When a fault comes: ``delay`` seconds after ``reached()``; ``text`` says so."""

    delay: float
    reached: Callable[[], bool]
    text: str


def moment_of(fuzz: Fuzz, moment: str, launch: Launch, aim: int, mark: Path) -> Moment:
    """A moment of this kind in a ``launch`` that has just begun, around update ``aim``."""
    start, later = time.monotonic(), fuzz.dice.random()
    save = -(-aim // EVERY) * EVERY
    # An earlier kill may have left such a folder: it is this save's once the step is logged.
    aside = fuzz.run / "checkpoints" / f".step-{save:08d}.writing"
    seconds = later * fuzz.start_up
    return {
        "start": Moment(0, lambda: time.monotonic() - start > seconds, f"after {seconds:.1f} s"),
        "step": Moment(0.1 * later, lambda: launch.step >= aim, f"after step {aim} was logged"),
        "save": Moment(0.02 * later, lambda: aside.exists() and launch.step >= save, f"while step {save} was saved"),
        "read": Moment(2 * later, mark.exists, f"while step {aim} was read"),
        "end": Moment(2 * later, lambda: launch.step == STEPS, "after the last step was logged"),
    }[moment]


def kill(fuzz: Fuzz, moment: str) -> tuple[str, str]:
    """SIGKILL of a rank, of the launchers, or of all, at a kind of moment."""
    target = fuzz.dice.choice((*range(RANKS), "all", "launchers"))
    if moment == "start" and target == "launchers":  # a rank might wait long for others that were never started
        target = "all"
    mark, aim = fuzz.chain / "mark", fuzz.ahead()
    faults = {}
    if moment == "read":
        read = max(1, aim - fuzz.newest())
        faults["slow_read"] = {"rank": fuzz.dice.randrange(RANKS), "read": read, "seconds": 2, "mark": str(mark)}
        mark.unlink(missing_ok=True)
    launch = fuzz.launch(**faults)
    due = moment_of(fuzz, moment, launch, aim, mark)
    if moment != "start":  # know the processes before the moment comes
        launch.until(lambda: launch.step > 0 or "step" in launch.out or mark.exists())
        launch.rank(0), launch.rank(1)
    hit = launch.until(due.reached)
    time.sleep(due.delay if hit else 0)
    what = f"{target if isinstance(target, str) else f'rank {target}'} {due.text}"
    if not hit:
        return fuzz.too_late(launch, what)
    if target == "all":
        launch.end()
        return "same", f"{what}: killed"
    if target == "launchers":
        for process in launch.processes():
            if variable(process, "RANK") is None:
                send(process, signal.SIGKILL)
        launch.wait(fuzz.duration + 120)  # the ranks live on to their end
        return "same", f"{what}: killed"
    process = launch.rank(target)
    if process is None:
        launch.end()
        return "same", f"{what}: there was no such process yet, so all were killed"
    send(process, signal.SIGKILL)
    code = launch.wait(fuzz.start_up + TIMEOUT + SLACK if moment == "start" else TIMEOUT + SLACK)
    if code == 0 and not (fuzz.run / "COMPLETE").exists():
        raise Wrong("code 0 without COMPLETE")
    if "error: " in launch.err and code == 2:
        raise Wrong(f"reported as the user's mistake: {launch.error}")
    return fuzz.result(launch, code, what)


def kill_export(fuzz: Fuzz) -> tuple[str, str]:
    """SIGKILL in the midst of an export, perhaps over an earlier one; then the same command again."""
    run, out = fuzz.whole / "run", fuzz.chain / "student"
    command = [sys.executable, "-m", "pipeline.export", str(run), str(out)]
    shutil.rmtree(out, ignore_errors=True)
    earlier = fuzz.dice.random() < 0.5
    if earlier:
        export(run, out)
    for _ in range(2):
        launch, later = Launch(fuzz.chain, command), fuzz.dice.uniform(0, 0.6)
        launch.until(
            lambda launch=launch: (fuzz.chain / ".student.writing").exists() or "verified identical" in launch.out
        )
        time.sleep(later)
        launch.end()
        if out.exists():
            fuzz.check_export(out)
    launch = Launch(fuzz.chain, command)
    if launch.wait() or "verified identical" not in launch.out:
        raise Wrong(f"the export does not end well: {launch.err[-1000:]}")
    fuzz.check_export(out)
    return (
        "same",
        f"twice while .student.writing was there{', over an earlier one' * earlier}; then the same student",
    )


def full_disk(fuzz: Fuzz) -> tuple[str, str]:
    """A disk that is full at some point: a small one of its own, or in the midst of a file a limit for its size.

    The product looks at the free space before a save, with a spare: only the limit meets it in the midst of one.
    """
    size, kept = size_on_disk(fuzz.whole_checkpoint(STEPS)), len(checkpoints_of(fuzz.run))
    if fuzz.dice.random() < 0.5 and can_mount(fuzz.chain):
        before, after = fuzz.chain / "before", fuzz.chain / "after"
        fuzz.run.mkdir(exist_ok=True)
        fuzz.run.rename(before)
        fuzz.run.mkdir()
        room = int(fuzz.dice.uniform(0, 2**20 + max(4 - kept, 1) * size))
        launch = fuzz.launch([*SMALL_DISK, str(size_on_disk(before) + room), str(fuzz.run), str(before), str(after)])
        code, what = launch.wait(), f"a disk with {room} bytes left"
        fuzz.run.rmdir()
        after.rename(fuzz.run)
        shutil.rmtree(before)
    else:
        at = fuzz.ahead()
        launch = fuzz.launch(file_limit={"at": at, "size": size // 2})
        code, what = launch.wait(), f"no file above {size // 2} bytes from step {at} on"
    fuzz.expect(launch, code, 0, 2, reason="free some space")
    return fuzz.result(launch, code, what)


def torn(fuzz: Fuzz, which: str) -> tuple[str, str]:
    """Bytes of the newest checkpoint, or of all, are cut, flipped, zeroed or gone; then the same command to the end."""
    advance(fuzz, whole=which == "all of a COMPLETE run")
    chosen = sorted(checkpoints_of(fuzz.run).items())[-1 if which == "newest" else 0 :]
    how = []
    for step, folder in chosen:
        path = folder / fuzz.dice.choice(("state.safetensors", "state.json"))
        how.append(f"step {step} {path.name} {damage(path, fuzz.dice)}")
        fuzz.damaged[step] = digest(folder)
    launch = fuzz.launch()
    code, what = launch.wait(), ", ".join(how)
    fuzz.check_left()
    for step, _ in chosen:
        if f"step-{step:08d} is not whole" not in launch.err:
            raise Wrong(f"{what}: no warning that step {step} is skipped")
    if which == "all of a COMPLETE run":
        fuzz.expect(launch, code, 2, reason="marked COMPLETE, but no checkpoint is whole; .* delete the folder")
        shutil.rmtree(fuzz.run)
        fuzz.damaged.clear()
    else:
        fuzz.expect(launch, code, 0)
    return fuzz.result(launch, code, what)


def shard(fuzz: Fuzz, how: str) -> tuple[str, str]:
    """A shard gets other content before the start."""
    path = fuzz.dice.choice(sorted(fuzz.data.glob("*/*.tokens.npy")))
    other_tokens(path, how)
    before = fuzz.newest()
    launch = fuzz.launch()
    code = launch.wait()
    fuzz.expect(launch, code, 2, reason=re.escape(str(path)))
    if fuzz.newest() != before:
        raise Wrong("it continued all the same")
    mend_data(fuzz)
    return fuzz.result(launch, code, f"{path.relative_to(fuzz.data)} {how}")


def shard_running(fuzz: Fuzz, how: str) -> tuple[str, str]:
    """A shard gets other content under the running job; at the latest the next checkpoint or the next start refuses."""
    path = fuzz.dice.choice(sorted(fuzz.data.glob("?/*.tokens.npy")))
    aim, early = min(fuzz.ahead(), STEPS - EVERY), fuzz.dice.random() < 0.3
    launch = fuzz.launch()
    hit = launch.until(lambda: "Student:" in launch.out if early else launch.step >= aim)
    other_tokens(path, how)
    code = launch.wait()
    what = f"{path.relative_to(fuzz.data)} {how} " + ("before step 1" if early else f"after step {aim}")
    fuzz.expect(launch, code, 0, 2, reason=re.escape(str(path)))
    fuzz.check_left()
    mend_data(fuzz)
    return fuzz.result(launch, code, what + ("" if hit else " (too late)"))


def mend_data(fuzz: Fuzz) -> None:
    shutil.rmtree(fuzz.data)
    shutil.copytree(fuzz.whole / "data", fuzz.data)


def nan(fuzz: Fuzz) -> tuple[str, str]:
    """A loss that is no number, once."""
    at, rank = fuzz.ahead(), fuzz.dice.randrange(RANKS)
    launch = fuzz.launch(nan={"rank": rank, "at": at, "of_teacher": fuzz.dice.random() < 0.5})
    code = launch.wait()
    fuzz.expect(launch, code, 2, reason=f"not finite in step {at} on rank {rank}")
    if fuzz.newest() >= at:
        raise Wrong(f"the checkpoint of step {fuzz.newest()} was written after it")
    return fuzz.result(launch, code, f"step {at}, rank {rank}")


def stall(fuzz: Fuzz) -> tuple[str, str]:
    """A rank that stands still is given up in time, by name; then it is killed."""
    aim, target = fuzz.ahead(), fuzz.dice.randrange(RANKS)
    launch = fuzz.launch()
    launch.until(lambda: launch.step > 0)
    others = [launch.rank(rank) for rank in range(RANKS) if rank != target]
    stopped = launch.rank(target)
    hit = launch.until(lambda: launch.step >= aim)
    if not hit or stopped is None:
        return fuzz.too_late(launch, f"rank {target} after step {aim}")
    send(stopped, signal.SIGSTOP)
    since = time.monotonic()
    _, alive = psutil.wait_procs([other for other in others if other], timeout=TIMEOUT + SLACK)
    seconds = time.monotonic() - since
    send(stopped, signal.SIGKILL)
    if alive:
        launch.end()
        raise Wrong(f"rank {target} stands still after step {aim}: the others live {seconds:.0f} s later")
    code = launch.wait(TIMEOUT + SLACK)
    if code == 0 and not (fuzz.run / "COMPLETE").exists():
        raise Wrong("code 0 without COMPLETE")
    if code and f"error: rank {target} (host" not in launch.err:
        raise Wrong(f"rank {target} stood still, and the others do not name it: {launch.err[-1500:]}")
    return fuzz.result(launch, code, f"rank {target} after step {aim}, the other ended {seconds:.1f} s later")


def clock_jump(fuzz: Fuzz) -> tuple[str, str]:
    """The time of day jumps, forwards or backwards."""
    at, seconds = fuzz.ahead(), fuzz.dice.choice((1e6, -1e6))
    launch = fuzz.launch(clock_jump={"at": at, "seconds": seconds})
    code = launch.wait()
    fuzz.expect(launch, code, 0)
    return fuzz.result(launch, code, f"{seconds:+.0f} s in step {at}")


def asked(fuzz: Fuzz, how: str) -> tuple[str, str]:
    """SIGTERM or SIGUSR1 to some ranks, or a file STOP: a checkpoint is written, and the code says "again"."""
    aim, before = min(fuzz.ahead(), STEPS - 4), fuzz.newest()
    targets = fuzz.dice.choice(([0], [1], [0, 1]))
    launch = fuzz.launch()
    launch.until(lambda: launch.step > 0)
    processes = [launch.rank(target) for target in targets]
    if not launch.until(lambda: launch.step >= aim):
        return fuzz.too_late(launch, f"{how} after step {aim}")
    if how == "STOP":
        (fuzz.run / "STOP").touch()
    else:
        for process in filter(None, processes):
            send(process, getattr(signal, how))
    code = launch.wait()  # a step, a checkpoint and two launchers' ends, on a machine that may be busy
    what = (how if how == "STOP" else f"{how} to {targets}") + f" after step {aim}"
    fuzz.expect(launch, code, 75, 0)
    if code == 75:
        ended = json.loads((fuzz.run / ".ended").read_text())["code"]
        if ended != 75 or fuzz.newest() <= before:
            raise Wrong(f"code 75 with .ended {ended} and the checkpoint of step {fuzz.newest()}")
    (fuzz.run / "STOP").unlink(missing_ok=True)
    return fuzz.result(launch, code, what)


def advance(fuzz: Fuzz, whole: bool) -> None:
    """Checkpoints of the reference, as a kill after one of its saves would have left them; or all of it."""
    if len(checkpoints_of(fuzz.run)) >= 2 and not whole:
        return
    shutil.rmtree(fuzz.run, ignore_errors=True)
    shutil.copytree(fuzz.whole / "run", fuzz.run)
    until = STEPS if whole else fuzz.dice.randrange(2 * EVERY, STEPS, EVERY)
    for step, folder in checkpoints_of(fuzz.run).items():
        if not until - 3 * EVERY < step <= until:
            shutil.rmtree(folder)
    if not whole:
        (fuzz.run / "COMPLETE").unlink()


KINDS: dict[str, Callable[[Fuzz], tuple[str, str]]] = {
    **{f"kill-{moment}": functools.partial(kill, moment=moment) for moment in ("start", "step", "save", "read", "end")},
    "kill-export": kill_export,
    "full-disk": full_disk,
    "torn-newest": functools.partial(torn, which="newest"),
    "torn-all": functools.partial(torn, which="all"),
    "torn-complete": functools.partial(torn, which="all of a COMPLETE run"),
    "shard-swapped": functools.partial(shard, how="swapped"),
    "shard-resized": functools.partial(shard, how="resized"),
    "shard-replaced-running": functools.partial(shard_running, how="swapped"),
    "shard-overwritten-running": functools.partial(shard_running, how="overwritten"),
    "nan": nan,
    "stall": stall,
    "clock": clock_jump,
    "sigterm": functools.partial(asked, how="SIGTERM"),
    "sigusr1": functools.partial(asked, how="SIGUSR1"),
    "stop-file": functools.partial(asked, how="STOP"),
}
APART = ("kill-export",)  # does not touch the run
