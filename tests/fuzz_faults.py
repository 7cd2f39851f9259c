"""Faults at random moments of a tiny run of two ranks; after each it must come to the undisturbed student, or say why not.

    python -m tests.fuzz_faults --rounds 50
    python -m tests.fuzz_faults --rounds 5 --seed 7 --only kill --keep

First the run is made once without a fault: the reference. Then each round launches it under the real DeepSpeed launcher with
a fault, and looks at what it left: every checkpoint must be the reference's of the same step, bit for bit, and every row
of metrics.jsonl the reference's. A refusal must be one line that names its reason; the damage is then mended as it says.
The next round launches the same run again, so that faults hit resumed runs too, until it is COMPLETE: then its state, its
metrics and its exported student must be the reference's. Signals, files and full disks are real and come from outside;
tests/faulty.py does the rest from within. A seed repeats faults and where they aim, not the scheduling of the machine.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
import torch
from safetensors.torch import load_file

from pipeline.export import export
from pipeline.monitor import read_metrics
from tests import faulty, launching
from tests.tiny import make_corpus, make_recipe

RANKS, STEPS, EVERY = 2, 16, 2
TIMEOUT = 15  # seconds without a sign of life after which a rank is given up
SLACK = 10  # seconds more in which the others must have ended
LONGEST = 400  # seconds that a launch may take on a busy machine
OVERRIDES = (
    f"steps={STEPS}", f"checkpoint_every={EVERY}", "eval_every=4", "batch=16", "precision=bf16",
    "teacher.hosting=zero3",
)  # fmt: skip
TIMES = ("tokens_per_second", "data_wait", "model_flops")


class Wrong(Exception):
    """The run did what it must never do."""


@dataclass
class Outcome:
    """What a round did and what came of it: ``verdict`` is "same", "refused" or "WRONG"."""

    number: int
    kind: str
    text: str
    verdict: str = "same"


# --- a launch ---------------------------------------------------------------------------------------------------------


class Launch:
    """`deepspeed` with two ranks: its processes, found by a mark in their environment, and what they print."""

    _count = 0
    _running: ClassVar[list["Launch"]] = []

    def __init__(self, folder: Path, command: list[str], variables: dict[str, str] | None = None):
        Launch._count += 1
        self._mark = f"{os.getpid()}-{Launch._count}"
        self._paths = folder / f"{Launch._count:03d}.out", folder / f"{Launch._count:03d}.err"
        self._began, self._ranks = time.monotonic(), {}
        own = {"FUZZ_LAUNCH": self._mark}
        with self._paths[0].open("w") as out, self._paths[1].open("w") as err:
            self._launcher = subprocess.Popen(
                command,
                env=launching.environment() | own | (variables or {}),
                cwd=launching.ROOT,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        Launch._running.append(self)

    @classmethod
    def end_all(cls) -> None:
        """Kill whatever was started and lives, as after Ctrl-C."""
        for launch in cls._running:
            launch.end()
        cls._running.clear()

    @property
    def out(self) -> str:
        return self._paths[0].read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._paths[1].read_text(errors="replace")

    @property
    def error(self) -> str:
        """The line that tells why it ended."""
        return next((line for line in self.err.splitlines() if line.startswith("error: ")), "")

    @property
    def step(self) -> int:
        """The last update that it has logged."""
        return max(map(int, re.findall(r"^step (\d+)/", self.out, re.MULTILINE)), default=0)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def processes(self) -> list[psutil.Process]:
        """All that live, launchers first."""
        return [process for process in psutil.process_iter() if _variable(process, "FUZZ_LAUNCH") == self._mark]

    def rank(self, number: int) -> psutil.Process | None:
        """The process of a rank, once there is one."""
        if number not in self._ranks:
            for process in self.processes():
                if _variable(process, "RANK") == str(number):
                    self._ranks[number] = process
        return self._ranks.get(number)

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait for a moment; False if the launch ended before."""
        while self._launcher.poll() is None:
            if reached():
                return True
            time.sleep(0.001)
            if self.seconds > LONGEST:
                self.end()
                raise Wrong(f"nothing came of it within {LONGEST} s: {self.err[-500:]}")
        return False

    def wait(self, patience: float = LONGEST) -> int:
        """The launcher's exit code, once every process is gone. Raises Wrong if one lives longer than ``patience`` s."""
        deadline = time.monotonic() + patience
        while left := self.processes():
            self._launcher.poll()
            if time.monotonic() > deadline:
                self.end()
                raise Wrong(f"{len(left)} processes live {patience:.0f} s later: {self.err[-500:]}")
            time.sleep(0.05)
        return self._launcher.wait()

    def end(self) -> None:
        """Kill whatever is left."""
        while left := self.processes():
            for process in left:
                _send(process, signal.SIGKILL)
            self._launcher.poll()
            time.sleep(0.02)
        self._launcher.wait()


def _variable(process: psutil.Process, name: str) -> str | None:
    with contextlib.suppress(psutil.Error):
        return process.environ().get(name)


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


# --- the fuzz ---------------------------------------------------------------------------------------------------------


class Fuzz:
    """``reference()`` once, then ``round`` as often as wanted, then ``finish()``. Works below ``folder``.

    ``broken`` is a way in which the product is broken on purpose in every launch but the reference's (faulty.BROKEN).
    """

    def __init__(self, folder: Path, seed: int, broken: str | None = None):
        self.folder, self.seed, self.broken = folder, seed, broken
        self.outcomes: list[Outcome] = []
        self._whole, self._chains = folder / "whole", 0

    # --- the run ------------------------------------------------------------------------------------------------------

    def reference(self) -> None:
        """The undisturbed run and its exported student."""
        self._whole.mkdir(parents=True)
        make_corpus(self._whole / "data", dict.fromkeys("abcdefgh", 800), heldout=200)
        make_recipe(self._whole, data=str(self._whole / "data"), out=str(self._whole / "run"))
        launch = Launch(self._whole, self._command(self._whole, "keep_checkpoints=1000"))
        if not launch.until(lambda: launch.step > 0):
            raise Wrong(f"the undisturbed run does not start: {launch.err[-2000:]}")
        self.start_up = launch.seconds
        if launch.wait() or not (self._whole / "run" / "COMPLETE").exists():
            raise Wrong(f"the undisturbed run does not come to its end: {launch.err[-2000:]}")
        self.duration = launch.seconds
        export(self._whole / "run", self._whole / "student")
        self._fresh()

    def round(self, number: int, kind: str) -> Outcome:
        """A fault of ``kind``, and the judgement of what it left; the whole judgement follows when the run is COMPLETE."""
        outcome = Outcome(number, kind, "")
        self.outcomes.append(outcome)
        self._dice = random.Random(f"{self.seed} {number} {kind}")
        try:
            if self._newest() == STEPS and kind not in APART:
                self._finish()
            outcome.verdict, outcome.text = KINDS[kind](self)
            if kind not in APART:
                self._pending.append(outcome)
                self._check_left()
                if (self._run / "COMPLETE").exists():
                    self._finish()
        except Wrong as wrong:
            self._fail(outcome, wrong)
        return outcome

    def finish(self) -> None:
        """Bring what is unfinished to its end."""
        if self._pending:
            try:
                self._finish()
            except Wrong as wrong:
                for outcome in list(self._pending):
                    self._fail(outcome, wrong)

    @property
    def wrong(self) -> bool:
        return any(outcome.verdict == "WRONG" for outcome in self.outcomes)

    def _fail(self, outcome: Outcome, wrong: Wrong) -> None:
        outcome.verdict = "WRONG"
        outcome.text += f"{outcome.text and '; '}{wrong} (see {self._chain})"
        self._fresh()

    def _fresh(self) -> None:
        """From here on another run, from its start."""
        self._chain = self.folder / f"chain{self._chains}"
        self._run, self._data = self._chain / "run", self._chain / "data"
        self._chains += 1
        self._damaged: dict[int, str] = {}
        self._pending: list[Outcome] = []
        if not self._chain.exists():
            shutil.copytree(self._whole / "data", self._data)  # its own, since some faults change them

    def _command(self, folder: Path, *others: str, module: str = "pipeline.distill") -> list[str]:
        paths = (f"out={folder / 'run'}", f"data={folder / 'data'}", "--timeout", str(TIMEOUT))
        return launching.command(RANKS, module, str(self._whole / "tiny.toml"), *OVERRIDES, *paths, *others)

    def _launch(self, wrap: list[str] | tuple = (), **faults: dict) -> Launch:
        """The same command as always, with faults from within by their names in faulty.py."""
        if self.broken:
            faults[faulty.BROKEN[self.broken]] = {}
        module = "tests.faulty" if faults else "pipeline.distill"
        command = self._command(self._chain, "keep_checkpoints=3", module=module)
        return Launch(self._chain, [*wrap, *command], {"FAULTS": json.dumps(faults)})

    def _newest(self) -> int:
        return max(_checkpoints(self._run), default=0)

    def _ahead(self, least: int = 1) -> int:
        """A random update that is still to come, with ``least`` updates to it."""
        return self._dice.randint(min(self._newest() + least, STEPS), STEPS)

    # --- judgement ----------------------------------------------------------------------------------------------------

    def _check_left(self) -> None:
        """What lies in the run folder now, whatever has happened."""
        for step, folder in _checkpoints(self._run).items():
            if _digest(folder) != self._damaged.get(step):
                self._check_checkpoint(step, folder)
        for step, digest in self._damaged.items():
            names = (f"step-{step:08d}", f"torn-step-{step:08d}.*")
            if digest not in [_digest(path) for name in names for path in (self._run / "checkpoints").glob(name)]:
                raise Wrong(f"the damaged checkpoint of step {step} was deleted or changed")
        rows, expected = _rows(self._run, self._newest()), _rows(self._whole / "run", self._newest())
        if rows != expected:  # later rows are made again from the checkpoint on
            raise Wrong(f"metrics.jsonl is not the undisturbed run's up to step {self._newest()}")
        if (self._run / "COMPLETE").exists() and STEPS not in _checkpoints(self._run):
            raise Wrong("COMPLETE stands there without the last checkpoint")

    def _check_checkpoint(self, step: int, folder: Path) -> None:
        try:
            info = json.loads((folder / "state.json").read_text())
        except (OSError, ValueError) as error:
            raise Wrong(f"{folder.name} has its name and no state.json that can be read ({error})") from error
        if info["sha256"] != hashlib.sha256((folder / "state.safetensors").read_bytes()).hexdigest():
            raise Wrong(f"{folder.name} has its name and is torn")
        expected = json.loads((_checkpoints(self._whole / "run")[step] / "state.json").read_text())
        for key in ("step", "samples", "corpus"):
            if info[key] != expected[key]:
                raise Wrong(f"{folder.name} differs from the undisturbed run's in {key}: {info[key]}")
        ours, theirs = (load_file(path / "state.safetensors") for path in (folder, self._whole_checkpoint(step)))
        differ = sorted(name for name in theirs if name not in ours or not torch.equal(ours[name], theirs[name]))
        if differ or ours.keys() != theirs.keys():
            raise Wrong(
                f"{folder.name} differs from the undisturbed run's in {len(differ)} tensors, first {differ[:1]}"
            )

    def _whole_checkpoint(self, step: int) -> Path:
        return _checkpoints(self._whole / "run")[step]

    def _finish(self) -> None:
        """The same command until the run is COMPLETE; then everything must be the reference's."""
        for _ in range(2):
            if not (self._run / "COMPLETE").exists():
                launch = self._launch()
                self._expect(launch, launch.wait(), 0)
                self._check_left()
        if not (self._run / "COMPLETE").exists():
            raise Wrong("it ends with code 0 and is not COMPLETE")
        self._check_left()
        export(self._run, self._chain / "student")
        self._check_export(self._chain / "student")
        shutil.rmtree(self._chain)
        self._fresh()

    def _check_export(self, student: Path) -> None:
        if _digest(student) != _digest(self._whole / "student"):
            raise Wrong(f"{student.name} is not the undisturbed run's student, byte for byte")

    def _expect(self, launch: Launch, code: int, *codes: int, reason: str | None = None) -> None:
        """The launch must have ended with one of ``codes`` and, if refused, in one line that matches ``reason``."""
        if code not in codes:
            raise Wrong(f"code {code} instead of {' or '.join(map(str, codes))}: {launch.err[-1500:]}")
        if "Traceback" in launch.err:
            raise Wrong(f"code {code} with a traceback: {launch.err[-1500:]}")
        if code == 2 and not re.search(reason or "(?!)", launch.error):
            raise Wrong(f"refused, but not for {reason}: {launch.error or launch.err[-1500:]}")
        if code == 0 and not (self._run / "COMPLETE").exists():
            raise Wrong("code 0 without COMPLETE")

    def _too_late(self, launch: Launch, what: str) -> tuple[str, str]:
        """The launch had ended before the fault came: then it must have come to its end by itself."""
        code = launch.wait()
        self._expect(launch, code, 0)
        return self._result(launch, code, f"{what} (too late)")

    def _result(self, launch: Launch, code: int, what: str) -> tuple[str, str]:
        told = launch.error.removeprefix("error: ").replace(f"{self._chain}/", "")
        return ("refused", f"{what}: {told}") if code == 2 else ("same", f"{what}: code {code}")

    # --- faults -------------------------------------------------------------------------------------------------------

    def kill(self, moment: str) -> tuple[str, str]:
        """SIGKILL of a rank, of the launchers, or of all, at a kind of moment."""
        target = self._dice.choice((*range(RANKS), "all", "launchers"))
        if moment == "start" and target == "launchers":  # a rank might wait long for others that were never started
            target = "all"
        mark, aim = self._chain / "mark", self._ahead()
        faults = {}
        if moment == "read":
            first = self._newest() + 1
            faults["slow_read"] = {"rank": self._dice.randrange(RANKS), "read": max(1, aim - first + 1), "seconds": 2}
            faults["slow_read"]["mark"] = str(mark)
            mark.unlink(missing_ok=True)
        save = -(-aim // EVERY) * EVERY
        aside = self._run / "checkpoints" / f".writing-{save:08d}"
        launch = self._launch(**faults)
        start, later = time.monotonic(), self._dice.random()
        delay, reached, where = {
            "start": (
                0,
                lambda: time.monotonic() - start > later * self.start_up,
                f"after {later * self.start_up:.1f} s",
            ),
            "step": (0.1 * later, lambda: launch.step >= aim, f"after step {aim} was logged"),
            # An earlier kill may have left such a folder: it is this save's once the step is logged.
            "save": (
                0.02 * later,
                lambda: aside.exists() and launch.step >= save,
                f"while step {save} was saved",
            ),
            "read": (2 * later, mark.exists, f"while step {aim} was read"),
            "end": (2 * later, lambda: launch.step == STEPS, "after the last step was logged"),
        }[moment]
        if moment != "start":  # know the processes before the moment comes
            launch.until(lambda: launch.step > 0 or "step" in launch.out or mark.exists())
            launch.rank(0), launch.rank(1)
        hit = launch.until(reached)
        time.sleep(delay if hit else 0)
        what = f"{target if isinstance(target, str) else f'rank {target}'} {where}"
        if not hit:
            return self._too_late(launch, what)
        if target == "all":
            launch.end()
            return "same", f"{what}: killed"
        if target == "launchers":
            for process in launch.processes():
                if _variable(process, "RANK") is None:
                    _send(process, signal.SIGKILL)
            launch.wait(self.duration + 120)  # the ranks live on and come to their end
            return "same", f"{what}: killed"
        process = launch.rank(target)
        if process is None:
            launch.end()
            return "same", f"{what}: there was no such process yet, so all were killed"
        _send(process, signal.SIGKILL)
        code = launch.wait(self.start_up + TIMEOUT + SLACK if moment == "start" else TIMEOUT + SLACK)
        if code == 0 and not (self._run / "COMPLETE").exists():
            raise Wrong("code 0 without COMPLETE")
        if "error: " in launch.err and code == 2:
            raise Wrong(f"told as the user's mistake: {launch.error}")
        return self._result(launch, code, what)

    def kill_export(self) -> tuple[str, str]:
        """SIGKILL in the midst of an export, perhaps over an earlier one; then the same command again."""
        run, out = self._whole / "run", self._chain / "student"
        command = [sys.executable, "-m", "pipeline.export", str(run), str(out)]
        shutil.rmtree(out, ignore_errors=True)
        earlier = self._dice.random() < 0.5
        if earlier:
            export(run, out)
        for _ in range(2):
            launch, later = Launch(self._chain, command), self._dice.uniform(0, 0.6)
            launch.until(
                lambda launch=launch: (self._chain / ".student.writing").exists() or "found the same" in launch.out
            )
            time.sleep(later)
            launch.end()
            if out.exists():
                self._check_export(out)
        launch = Launch(self._chain, command)
        if launch.wait() or "found the same" not in launch.out:
            raise Wrong(f"the export does not come to its end: {launch.err[-1000:]}")
        self._check_export(out)
        return (
            "same",
            f"twice while .student.writing was there{', over an earlier one' * earlier}; then the same student",
        )

    def full_disk(self) -> tuple[str, str]:
        """A disk that is full at some point: a small one of its own, or in the midst of a file a limit for its size.

        The product looks at the free space before a save, with a spare: only the limit meets it in the midst of one.
        """
        size, kept = _size(self._whole_checkpoint(STEPS)), len(_checkpoints(self._run))
        if self._dice.random() < 0.5 and can_mount(self._chain):
            before, after = self._chain / "before", self._chain / "after"
            self._run.mkdir(exist_ok=True)
            self._run.rename(before)
            self._run.mkdir()
            room = int(self._dice.uniform(0, 2**20 + max(4 - kept, 1) * size))
            launch = self._launch([*SMALL_DISK, str(_size(before) + room), str(self._run), str(before), str(after)])
            code, what = launch.wait(), f"a disk with {room} bytes left"
            self._run.rmdir()
            after.rename(self._run)
            shutil.rmtree(before)
        else:
            at = self._ahead()
            launch = self._launch(file_limit={"at": at, "size": size // 2})
            code, what = launch.wait(), f"no file above {size // 2} bytes from step {at} on"
        self._expect(launch, code, 0, 2, reason="free some space")
        return self._result(launch, code, what)

    def torn(self, which: str) -> tuple[str, str]:
        """Bytes of the newest checkpoint, or of all, are cut, flipped, zeroed or gone; then the same command to the end."""
        self._advance(whole=which == "all of a COMPLETE run")
        chosen = sorted(_checkpoints(self._run).items())[-1 if which == "newest" else 0 :]
        how = []
        for step, folder in chosen:
            path = folder / self._dice.choice(("state.safetensors", "state.json"))
            how.append(f"step {step} {path.name} {_damage(path, self._dice)}")
            self._damaged[step] = _digest(folder)
        launch = self._launch()
        code, what = launch.wait(), ", ".join(how)
        self._check_left()
        for step, _ in chosen:
            if f"step-{step:08d} is not whole" not in launch.err:
                raise Wrong(f"{what}: not told that step {step} is skipped")
        if which == "all of a COMPLETE run":
            self._expect(launch, code, 2, reason="marked COMPLETE, but no checkpoint is whole; .* delete the folder")
            shutil.rmtree(self._run)
            self._damaged.clear()
        else:
            self._expect(launch, code, 0)
        return self._result(launch, code, what)

    def shard(self, how: str) -> tuple[str, str]:
        """A shard gets other content before the start."""
        path = self._dice.choice(sorted(self._data.glob("*/*.tokens.npy")))
        _other_tokens(path, how)
        before = self._newest()
        launch = self._launch()
        code = launch.wait()
        self._expect(launch, code, 2, reason=re.escape(str(path)))
        if self._newest() != before:
            raise Wrong("it went on all the same")
        self._mend_data()
        return self._result(launch, code, f"{path.relative_to(self._data)} {how}")

    def shard_running(self, how: str) -> tuple[str, str]:
        """A shard gets other content under the running job; at the latest the next checkpoint or the next start refuses."""
        path = self._dice.choice(sorted(self._data.glob("?/*.tokens.npy")))
        aim, early = min(self._ahead(), STEPS - EVERY), self._dice.random() < 0.3
        launch = self._launch()
        hit = launch.until(lambda: "Student:" in launch.out if early else launch.step >= aim)
        _other_tokens(path, how)
        code = launch.wait()
        what = f"{path.relative_to(self._data)} {how} " + ("before step 1" if early else f"after step {aim}")
        self._expect(launch, code, 0, 2, reason=re.escape(str(path)))
        self._check_left()
        self._mend_data()
        return self._result(launch, code, what + ("" if hit else " (too late)"))

    def _mend_data(self) -> None:
        shutil.rmtree(self._data)
        shutil.copytree(self._whole / "data", self._data)

    def nan(self) -> tuple[str, str]:
        """A loss that is no number, once."""
        at, rank = self._ahead(), self._dice.randrange(RANKS)
        launch = self._launch(nan={"rank": rank, "at": at, "of_teacher": self._dice.random() < 0.5})
        code = launch.wait()
        self._expect(launch, code, 2, reason=f"not finite in step {at} on rank {rank}")
        if self._newest() >= at:
            raise Wrong(f"the checkpoint of step {self._newest()} was written after it")
        return self._result(launch, code, f"step {at}, rank {rank}")

    def stall(self) -> tuple[str, str]:
        """A rank that stands still is given up in time, by name; then it is killed."""
        aim, target = self._ahead(), self._dice.randrange(RANKS)
        launch = self._launch()
        launch.until(lambda: launch.step > 0)
        others = [launch.rank(rank) for rank in range(RANKS) if rank != target]
        stopped = launch.rank(target)
        hit = launch.until(lambda: launch.step >= aim)
        if not hit or stopped is None:
            return self._too_late(launch, f"rank {target} after step {aim}")
        _send(stopped, signal.SIGSTOP)
        since = time.monotonic()
        _, alive = psutil.wait_procs([other for other in others if other], timeout=TIMEOUT + SLACK)
        seconds = time.monotonic() - since
        _send(stopped, signal.SIGKILL)
        if alive:
            launch.end()
            raise Wrong(f"rank {target} stands still after step {aim}: the others live {seconds:.0f} s later")
        code = launch.wait(TIMEOUT + SLACK)
        if code == 0 and not (self._run / "COMPLETE").exists():
            raise Wrong("code 0 without COMPLETE")
        if code and f"error: rank {target} (host" not in launch.err:
            raise Wrong(f"rank {target} stood still, and the others do not name it: {launch.err[-1500:]}")
        return self._result(launch, code, f"rank {target} after step {aim}, the other ended {seconds:.1f} s later")

    def clock_jump(self) -> tuple[str, str]:
        """The time of day jumps, forwards or backwards."""
        at, seconds = self._ahead(), self._dice.choice((1e6, -1e6))
        launch = self._launch(clock_jump={"at": at, "seconds": seconds})
        code = launch.wait()
        self._expect(launch, code, 0)
        return self._result(launch, code, f"{seconds:+.0f} s in step {at}")

    def asked(self, how: str) -> tuple[str, str]:
        """SIGTERM or SIGUSR1 to some ranks, or a file STOP: a checkpoint is written, and the code says "again"."""
        aim, before = min(self._ahead(), STEPS - 4), self._newest()
        targets = self._dice.choice(([0], [1], [0, 1]))
        launch = self._launch()
        launch.until(lambda: launch.step > 0)
        processes = [launch.rank(target) for target in targets]
        if not launch.until(lambda: launch.step >= aim):
            return self._too_late(launch, f"{how} after step {aim}")
        if how == "STOP":
            (self._run / "STOP").touch()
        else:
            for process in filter(None, processes):
                _send(process, getattr(signal, how))
        code = launch.wait()  # a step, a checkpoint and two launchers' ends, on a machine that may be busy
        what = (how if how == "STOP" else f"{how} to {targets}") + f" after step {aim}"
        self._expect(launch, code, 75, 0)
        if code == 75:
            ended = json.loads((self._run / ".ended").read_text())["code"]
            if ended != 75 or self._newest() <= before:
                raise Wrong(f"code 75 with .ended {ended} and the checkpoint of step {self._newest()}")
        (self._run / "STOP").unlink(missing_ok=True)
        return self._result(launch, code, what)

    def _advance(self, whole: bool) -> None:
        """Checkpoints of the reference, as a kill after one of its saves would have left them; or all of it."""
        if len(_checkpoints(self._run)) >= 2 and not whole:
            return
        shutil.rmtree(self._run, ignore_errors=True)
        shutil.copytree(self._whole / "run", self._run)
        until = STEPS if whole else self._dice.randrange(2 * EVERY, STEPS, EVERY)
        for step, folder in _checkpoints(self._run).items():
            if not until - 3 * EVERY < step <= until:
                shutil.rmtree(folder)
        if not whole:
            (self._run / "COMPLETE").unlink()


KINDS: dict[str, Callable[[Fuzz], tuple[str, str]]] = {
    **{
        f"kill-{moment}": functools.partial(Fuzz.kill, moment=moment)
        for moment in ("start", "step", "save", "read", "end")
    },
    "kill-export": Fuzz.kill_export,
    "full-disk": Fuzz.full_disk,
    "torn-newest": functools.partial(Fuzz.torn, which="newest"),
    "torn-all": functools.partial(Fuzz.torn, which="all"),
    "torn-complete": functools.partial(Fuzz.torn, which="all of a COMPLETE run"),
    "shard-swapped": functools.partial(Fuzz.shard, how="swapped"),
    "shard-resized": functools.partial(Fuzz.shard, how="resized"),
    "shard-replaced-running": functools.partial(Fuzz.shard_running, how="swapped"),
    "shard-overwritten-running": functools.partial(Fuzz.shard_running, how="overwritten"),
    "nan": Fuzz.nan,
    "stall": Fuzz.stall,
    "clock": Fuzz.clock_jump,
    "sigterm": functools.partial(Fuzz.asked, how="SIGTERM"),
    "sigusr1": functools.partial(Fuzz.asked, how="SIGUSR1"),
    "stop-file": functools.partial(Fuzz.asked, how="STOP"),
}
APART = ("kill-export",)  # does not touch the run


# --- files ------------------------------------------------------------------------------------------------------------


def _checkpoints(run: Path) -> dict[int, Path]:
    """Step: folder, of what has a checkpoint's name."""
    return {int(path.name.removeprefix("step-")): path for path in (run / "checkpoints").glob("step-????????")}


def _digest(folder: Path) -> str:
    """Of the files in a folder, their names and bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def _size(folder: Path) -> int:
    """Bytes that a folder's files take on a disk in pages of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def _rows(run: Path, last: int) -> list[dict]:
    """What metrics.jsonl says up to step ``last``, without what depends on the time that things took."""
    return [
        {key: value for key, value in row.items() if key not in TIMES and not key.endswith("_share")}
        for row in read_metrics(run)
        if last and row["step"] <= last
    ]


def _damage(path: Path, dice: random.Random) -> str:
    """Damage a file of a checkpoint so that it means something else, or nothing; says how."""
    content, how = bytearray(path.read_bytes()), dice.choice(("cut", "flipped", "flipped", "zeroed", "gone"))
    if how == "gone":
        path.unlink()
        return how
    place = dice.randrange(len(content))
    if how == "cut":
        path.write_bytes(content[:place])
    elif how == "zeroed":
        path.write_bytes(content[:place] + bytes(len(content) - place))
    else:
        if path.suffix == ".json":  # mostly numbers: those still look right
            digits = [match.start() for match in re.finditer(rb"[0-9]", content)]
            place = dice.choice(digits) if dice.random() < 0.7 else place
        content[place] ^= 1 << dice.randrange(3)  # a digit mostly stays one; no letter only changes its case
        path.write_bytes(content)
    return f"{how} at byte {place}"


def _other_tokens(path: Path, how: str) -> None:
    """Another shard in place of one: valid ids and separators, another content; of the same size unless "resized"."""
    tokens = np.load(path)
    words = tokens >= 5
    other = np.where(words, 5 + (tokens - 4) % 45, tokens).astype(tokens.dtype)
    if how == "overwritten":
        np.load(path, mmap_mode="r+")[:] = other
        return
    aside = path.with_suffix(".new.npy")
    np.save(aside, other[:-20] if how == "resized" else other)
    aside.replace(path)


# A shell script for: the size of a disk in bytes, its folder, what lies on it before, where to copy what lies on it after,
# and a command.
SMALL_DISK = [
    "unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
    'mount -t tmpfs -o size="$1" none "$2" && cp -a "$3/." "$2" || exit 99\n'
    'disk=$2 after=$4; shift 4; "$@"; code=$?; cp -a "$disk/." "$after"; exit $code', "sh",
]  # fmt: skip


@functools.cache
def can_mount(folder: Path) -> bool:
    """Whether this user may mount a small disk that nobody else sees."""
    disk = folder / "disk"
    disk.mkdir()
    before, after = folder / "disk-before", folder / "disk-after"
    before.mkdir()
    command = [*SMALL_DISK, "65536", str(disk), str(before), str(after), "true"]
    works = shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0
    for path in (disk, before, after):
        shutil.rmtree(path, ignore_errors=True)
    return works


# --- the command ------------------------------------------------------------------------------------------------------


def summary(outcomes: list[Outcome]) -> str:
    """A table: rounds by kind and by what came of them."""
    heads = {"same": "same student", "refused": "refused with reason, mended, same student", "WRONG": "WRONG"}
    lines = [f"{'fault':<26} rounds  " + "  ".join(heads.values())]
    counts = {
        kind: Counter(o.verdict for o in outcomes if o.kind == kind) for kind in sorted({o.kind for o in outcomes})
    }
    counts["all"] = Counter(outcome.verdict for outcome in outcomes)
    for kind, count in counts.items():
        cells = "  ".join(f"{count[key]:>{len(head)}}" for key, head in heads.items())
        lines.append(f"{kind:<26} {count.total():>6}  {cells}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 if any round was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz_faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=len(KINDS), metavar="N")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), metavar="S")
    parser.add_argument(
        "--only", action="append", default=[], metavar="KIND", help="kinds that begin so; may be repeated"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder, also if nothing was wrong")
    parser.add_argument(
        "--broken", choices=faulty.BROKEN, help="break the product on purpose, to see that it is found out"
    )
    options = parser.parse_args(arguments)
    kinds = [kind for kind in KINDS if not options.only or kind.startswith(tuple(options.only))]
    if not kinds:
        parser.error(f"--only {' '.join(options.only)}: no such kind; there are {', '.join(KINDS)}")
    fuzz = Fuzz(Path(tempfile.mkdtemp(prefix="fuzz-faults-")), options.seed, options.broken)
    print(f"seed {options.seed}, {options.rounds} rounds below {fuzz.folder}", flush=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # and leave nothing running
    try:
        fuzz.reference()
        print(f"the undisturbed run takes {fuzz.duration:.0f} s, {fuzz.start_up:.0f} of them to start", flush=True)
        dice, order = random.Random(options.seed), []
        for number in range(1, options.rounds + 1):
            order = order or dice.sample(kinds, len(kinds))
            outcome = fuzz.round(number, order.pop())
            print(
                f"round {number:3}/{options.rounds} {outcome.kind:<26} {outcome.verdict:<8} {outcome.text}", flush=True
            )
        fuzz.finish()
    finally:
        Launch.end_all()
    print(f"\n{summary(fuzz.outcomes)}\nseed {options.seed}")
    if fuzz.wrong or options.keep:
        print(f"everything is kept in {fuzz.folder}")
    else:
        shutil.rmtree(fuzz.folder)
    return int(fuzz.wrong)


if __name__ == "__main__":
    sys.exit(main())
