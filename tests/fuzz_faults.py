"""Faults at random moments of a tiny run of two ranks; after each it must lead to the undisturbed student, or say why not.

    python -m tests.fuzz_faults --rounds 50
    python -m tests.fuzz_faults --rounds 5 --seed 7 --only kill --keep

First the run is made once without a fault: the reference. Then each round launches it under the real DeepSpeed launcher with
a fault, and looks at what it left: every checkpoint must be the reference's of the same step, bit for bit, and every row
of metrics.jsonl the reference's. A refusal must be one line that names its reason; the damage is then mended as it says.
The next round launches the same run again, so that faults hit resumed runs too, until it is COMPLETE: then its state, its
metrics and its exported student must be the reference's. Signals, files and full disks are real and come from outside
(tests/parts/faults.py); tests/parts/faulty.py does the rest from within. A seed repeats faults and where they aim, not the
scheduling of the machine.
"""

import argparse
import hashlib
import json
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline.export import export
from tests.parts import faulty, launching
from tests.parts.damage import checkpoints_of, digest
from tests.parts.faults import APART, EVERY, KINDS, RANKS, STEPS, TIMEOUT
from tests.parts.runs import untimed
from tests.parts.tiny import make_corpus, make_recipe
from tests.parts.watched_launch import Launch, Wrong

OVERRIDES = (
    f"steps={STEPS}", f"checkpoint_every={EVERY}", "eval_every=4", "batch=16", "precision=bf16",
    "teacher.hosting=zero3",
)  # fmt: skip


@dataclass
class Outcome:
    """The fault of a round and its result: ``verdict`` is "same", "refused" or "WRONG"."""

    number: int
    kind: str
    text: str
    verdict: str = "same"


class Fuzz:
    """``reference()`` once, then ``round`` as often as wanted, then ``finish()``. Works below ``folder``.

    ``broken`` is a way in which the product is broken on purpose in every launch but the reference's (faulty.BROKEN).
    """

    def __init__(self, folder: Path, seed: int, broken: str | None = None):
        self.folder, self.seed, self.broken = folder, seed, broken
        self.outcomes: list[Outcome] = []
        self.whole, self._chains = folder / "whole", 0

    # --- the run ------------------------------------------------------------------------------------------------------

    def reference(self) -> None:
        """The undisturbed run and its exported student."""
        self.whole.mkdir(parents=True)
        make_corpus(self.whole / "data", dict.fromkeys("abcdefgh", 800), heldout=200)
        make_recipe(self.whole, data=str(self.whole / "data"), out=str(self.whole / "run"))
        launch = Launch(self.whole, self._command(self.whole, "keep_checkpoints=1000"))
        if not launch.until(lambda: launch.step > 0):
            raise Wrong(f"the undisturbed run does not start: {launch.err[-2000:]}")
        self.start_up = launch.seconds
        if launch.wait() or not (self.whole / "run" / "COMPLETE").exists():
            raise Wrong(f"the undisturbed run does not end well: {launch.err[-2000:]}")
        self.duration = launch.seconds
        export(self.whole / "run", self.whole / "student")
        self._fresh()

    def round(self, number: int, kind: str) -> Outcome:
        """A fault of ``kind``, and the judgement of what it left; the whole judgement follows when the run is COMPLETE."""
        outcome = Outcome(number, kind, "")
        self.outcomes.append(outcome)
        self.dice = random.Random(f"{self.seed} {number} {kind}")
        try:
            if self.newest() == STEPS and kind not in APART:
                self._finish()
            outcome.verdict, outcome.text = KINDS[kind](self)
            if kind not in APART:
                self._pending.append(outcome)
                self.check_left()
                if (self.run / "COMPLETE").exists():
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
        outcome.text += f"{outcome.text and '; '}{wrong} (see {self.chain})"
        self._fresh()

    def _fresh(self) -> None:
        """From here on another run, from its start."""
        self.chain = self.folder / f"chain{self._chains}"
        self.run, self.data = self.chain / "run", self.chain / "data"
        self._chains += 1
        self.damaged: dict[int, str] = {}
        self._pending: list[Outcome] = []
        if not self.chain.exists():
            shutil.copytree(self.whole / "data", self.data)  # its own, since some faults change them

    def _command(self, folder: Path, *others: str, module: str = "pipeline.distill") -> list[str]:
        paths = (f"out={folder / 'run'}", f"data={folder / 'data'}", "--timeout", str(TIMEOUT))
        return launching.command(RANKS, module, str(self.whole / "tiny.toml"), *OVERRIDES, *paths, *others)

    def launch(self, wrap: list[str] | tuple = (), **faults: dict) -> Launch:
        """The same command as always, with faults from within by their names in faulty.py."""
        if self.broken:
            faults[faulty.BROKEN[self.broken]] = {}
        module = "tests.parts.faulty" if faults else "pipeline.distill"
        command = self._command(self.chain, "keep_checkpoints=3", module=module)
        return Launch(self.chain, [*wrap, *command], {"FAULTS": json.dumps(faults)})

    def newest(self) -> int:
        return max(checkpoints_of(self.run), default=0)

    def ahead(self, least: int = 1) -> int:
        """A random update that is still to come, with ``least`` updates to it."""
        return self.dice.randint(min(self.newest() + least, STEPS), STEPS)

    # --- judgement ----------------------------------------------------------------------------------------------------

    def check_left(self) -> None:
        """What lies in the run folder now, whatever has happened."""
        for step, folder in checkpoints_of(self.run).items():
            if digest(folder) != self.damaged.get(step):
                self._check_checkpoint(step, folder)
        for step, damaged in self.damaged.items():
            names = (f"step-{step:08d}", f"torn-step-{step:08d}.*")
            if damaged not in [digest(path) for name in names for path in (self.run / "checkpoints").glob(name)]:
                raise Wrong(f"the damaged checkpoint of step {step} was deleted or changed")
        rows, expected = rows_until(self.run, self.newest()), rows_until(self.whole / "run", self.newest())
        if rows != expected:  # later rows are made again from the checkpoint on
            raise Wrong(f"metrics.jsonl is not the undisturbed run's up to step {self.newest()}")
        if (self.run / "COMPLETE").exists() and STEPS not in checkpoints_of(self.run):
            raise Wrong("COMPLETE stands there without the last checkpoint")

    def _check_checkpoint(self, step: int, folder: Path) -> None:
        try:
            info = json.loads((folder / "state.json").read_text())
        except (OSError, ValueError) as error:
            raise Wrong(f"{folder.name} has its name and no state.json that can be read ({error})") from error
        if info["sha256"] != hashlib.sha256((folder / "state.safetensors").read_bytes()).hexdigest():
            raise Wrong(f"{folder.name} has its name and is torn")
        expected = json.loads((checkpoints_of(self.whole / "run")[step] / "state.json").read_text())
        for key in ("step", "samples", "corpus"):
            if info[key] != expected[key]:
                raise Wrong(f"{folder.name} differs from the undisturbed run's in {key}: {info[key]}")
        ours, theirs = (load_file(path / "state.safetensors") for path in (folder, self.whole_checkpoint(step)))
        differ = sorted(name for name in theirs if name not in ours or not torch.equal(ours[name], theirs[name]))
        if differ or ours.keys() != theirs.keys():
            raise Wrong(
                f"{folder.name} differs from the undisturbed run's in {len(differ)} tensors, first {differ[:1]}"
            )

    def whole_checkpoint(self, step: int) -> Path:
        return checkpoints_of(self.whole / "run")[step]

    def _finish(self) -> None:
        """The same command until the run is COMPLETE; then everything must be the reference's."""
        for _ in range(2):
            if not (self.run / "COMPLETE").exists():
                launch = self.launch()
                self.expect(launch, launch.wait(), 0)
                self.check_left()
        if not (self.run / "COMPLETE").exists():
            raise Wrong("it ends with code 0 and is not COMPLETE")
        self.check_left()
        export(self.run, self.chain / "student")
        self.check_export(self.chain / "student")
        shutil.rmtree(self.chain)
        self._fresh()

    def check_export(self, student: Path) -> None:
        if digest(student) != digest(self.whole / "student"):
            raise Wrong(f"{student.name} is not the undisturbed run's student, byte for byte")

    def expect(self, launch: Launch, code: int, *codes: int, reason: str | None = None) -> None:
        """The launch must have ended with one of ``codes`` and, if refused, in one line that matches ``reason``."""
        if code not in codes:
            raise Wrong(f"code {code} instead of {' or '.join(map(str, codes))}: {launch.err[-1500:]}")
        if "Traceback" in launch.err:
            raise Wrong(f"code {code} with a traceback: {launch.err[-1500:]}")
        if code == 2 and not re.search(reason or "(?!)", launch.error):
            raise Wrong(f"refused, but not for {reason}: {launch.error or launch.err[-1500:]}")
        if code == 0 and not (self.run / "COMPLETE").exists():
            raise Wrong("code 0 without COMPLETE")

    def too_late(self, launch: Launch, what: str) -> tuple[str, str]:
        """The launch had ended before the fault came: then it must have reached its end by itself."""
        code = launch.wait()
        self.expect(launch, code, 0)
        return self.result(launch, code, f"{what} (too late)")

    def result(self, launch: Launch, code: int, what: str) -> tuple[str, str]:
        error = launch.error.removeprefix("error: ").replace(f"{self.chain}/", "")
        return ("refused", f"{what}: {error}") if code == 2 else ("same", f"{what}: code {code}")


def rows_until(run: Path, last: int) -> list[dict]:
    """What metrics.jsonl says up to step ``last``, without what depends on the time that things took."""
    return [row for row in untimed(run) if last and row["step"] <= last]


# --- the command ------------------------------------------------------------------------------------------------------


def summary(outcomes: list[Outcome]) -> str:
    """A table of rounds, by kind and by verdict."""
    heads = {"same": "same student", "refused": "refused with reason, mended, same student", "WRONG": "WRONG"}
    lines = [f"{'fault':<26} rounds  " + "  ".join(heads.values())]
    counts = {
        kind: Counter(outcome.verdict for outcome in outcomes if outcome.kind == kind)
        for kind in sorted({outcome.kind for outcome in outcomes})
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
