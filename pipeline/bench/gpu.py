"""``python -m pipeline.bench gpu``: the first hour on a GPU as one command.

Each part is a command of this project, or a few, in processes of their own; its rows are what they print as JSON. A part has
a share of ``--minutes``, and what the ones before it left. One that fails, or whose time is over, is reported with its
reason, and the others run. ``DIR/gpu.json`` and ``DIR/gpu.md`` are written after each part, ``DIR/logs`` has all output.

Without a GPU the same parts run at toy size on the CPU, the kernel in Triton's interpreter.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from data_prep.cli import UserError
from data_prep.files import write_json, write_text
from pipeline.bench.gpu_parts import NAMES, Part, parts_of
from pipeline.bench.gpu_report import page, seconds_of

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
MINUTES = {"full": 8, "toy": 20}
_PROBE = "import json; from pipeline.bench.machine import machine; print(json.dumps(machine('bf16')))"
_ENDING = (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL)
_GRACE = 3.0  # seconds between asking processes to end and ending them


@dataclass
class Result:
    """A part's outcome: ``state`` with its ``reason``, its commands, and ``rows``.

    Rows are what the commands printed as JSON, each with its command's number.
    """

    part: str
    about: str
    state: str = PASSED
    reason: str = ""
    seconds: float = 0.0
    commands: list[str] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)


def gpu(options: Namespace) -> int:
    """Run the parts, write both files after each, and return 0 if none has failed, else 1. Raises UserError."""
    started, results = time.monotonic(), list[Result]()
    machine = machine_here()
    size = options.size or ("full" if machine["device"] == "cuda" else "toy")
    if size == "full" and machine["device"] != "cuda":
        raise UserError("--size full: there is no GPU here; --size toy runs the same parts on a CPU")
    minutes, folder = options.minutes or MINUTES[size], options.out
    _prepare(folder)
    parts = [part for part in parts_of(size, machine, folder) if part.name in (options.parts or NAMES)]
    signal.signal(signal.SIGTERM, _leave)
    deadline, usable = started, 60 * minutes - len(_ENDING) * _GRACE
    whole = sum(part.share for part in parts)
    for part in parts:
        deadline += usable * part.share / whole
        if not options.json:
            print(f"{part.name:9} {part.about} …", flush=True)
        results.append(run_part(part, folder / "logs", deadline))
        if not options.json:
            print(f"{part.name:9} {_outcome(results[-1])}", flush=True)
        document = document_of(machine, size, minutes, time.monotonic() - started, results)
        write_json(folder / "gpu.json", document)
        write_text(folder / "gpu.md", page(document))
    print(json.dumps(document) if options.json else f"\n{folder / 'gpu.md'}, {folder / 'gpu.json'}", flush=True)
    return 0 if document["passed"] else 1


def _prepare(folder: Path) -> None:
    """Make the folder, without an earlier demo, which would be finished already.

    Raises UserError if it cannot be made, or has a demo of another command.
    """
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}; name a folder that can be written") from None
    if (folder / "demo").exists():
        if not (folder / "gpu.json").is_file():
            raise UserError(f"--out {folder}: has a demo/ that is not of this command; name another folder")
        shutil.rmtree(folder / "demo")


def _leave(*_: object) -> NoReturn:
    """Asked to end: leave by what ends the part that runs."""
    sys.exit(128 + signal.SIGTERM)


def machine_here() -> dict[str, Any]:
    """bench.machine's description, from a process of its own, so that this one holds none of a GPU's memory."""
    ended = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    if ended.returncode:
        raise UserError(f"torch does not run here ({reason_in(ended.stderr)}); the doctor says more")
    machine: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return machine


def document_of(machine: dict, size: str, minutes: int, seconds: float, results: list[Result]) -> dict[str, Any]:
    """What gpu.json has."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "machine": machine, "size": size, "minutes": minutes,
        "seconds": round(seconds, 1), "passed": all(result.state != FAILED for result in results),
        "parts": [asdict(result) for result in results],
    }  # fmt: skip


def _outcome(result: Result) -> str:
    why = f": {result.reason}" if result.reason else ""
    return f"{result.state} after {seconds_of(result.seconds)}{why}"


# --- a part -----------------------------------------------------------------------------------------------------------


def run_part(part: Part, logs: Path, deadline: float) -> Result:
    """Run the part's commands until one fails or the ``deadline`` [time.monotonic] is over. Never raises an Exception."""
    result, started = Result(part.name, part.about), time.monotonic()
    if part.skip:
        result.state, result.reason = SKIPPED, part.skip
        return result
    try:
        for number, words in enumerate(part.commands):
            result.commands.append(shlex.join(["python", "-m", *words]))
            output = logs / f"{part.name}-{number + 1}.out"
            reason = run_command(words, output, part.environment, deadline)
            found = rows_in(output.read_text(encoding="utf-8", errors="replace"))
            result.rows += [{"command": number, **row} for row in found]
            failures = [reason] * bool(reason) + failed_checks(result.rows)
            if failures:
                result.state = SKIPPED if part.fetches and number == 0 else FAILED
                result.reason = "; ".join(failures)
                break
    except Exception as error:
        result.state, result.reason = FAILED, f"{type(error).__name__}: {error}"
    result.seconds = round(time.monotonic() - started, 1)
    return result


def run_command(words: list[str], output: Path, environment: Mapping[str, str], deadline: float) -> str:
    """Run ``python -m WORDS`` with its output in this file, its errors next to it; why it failed, or "".

    It is ended, with what it has started, when the ``deadline`` is over, and whenever this process leaves here.
    """
    errors = output.with_suffix(".err")
    limit = max(0.0, deadline - time.monotonic())
    whole = {**os.environ, "DISTILL_PARENT": str(os.getpid()), **environment}
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], stdout=out, stderr=err, env=whole, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"not done after the {seconds_of(limit)} that were left for it"
        finally:
            _end(process)
    return reason_in(errors.read_text(encoding="utf-8", errors="replace"), code) if code else ""


def _end(process: subprocess.Popen) -> None:
    """End the process's group: politely, twice, since a launch first lets a run save, and then not."""
    for number in _ENDING:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)


def reason_in(errors: str, code: int = 1) -> str:
    """The line of a command's errors that says why it failed: the last that names an error, or else the last."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"\berror: |\w(Error|Exception|Interrupt)(: |$)", line)]
    found = (named or lines or [""])[-1]
    found = re.sub(r"^(\[rank\d+\]: ?)?(error: )?", "", found)
    return f"{found[:300]} (exit code {code})" if found else f"exit code {code}"


def rows_in(output: str) -> list[dict]:
    """The JSON objects of an output, one a line or a list of them."""
    rows: list[dict] = []
    for line in output.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(line)
            found = value if isinstance(value, list) else [value]
            rows += [row for row in found if isinstance(row, dict) and row.get("bench") != "machine"]
    return rows


def failed_checks(rows: list[dict]) -> list[str]:
    """What rows say that failed: findings of the doctor, and a sharded teacher that is not exact."""
    findings = [f"{row['check']}: {row['text']}" for row in rows if row.get("level") == "FAIL"]
    differs = any(row.get("measure") == "exact" and row["value"] != 1 for row in rows)
    return findings + ["the sharded teacher's q, k, v are not a replica's"] * differs
