"""Kill evaluations that share a results folder, at random moments, and compare their cells with undisturbed ones.

    python -m tests.parts.killed_cells DIR KILLS [SEED]

Two processes are at work; one of them is killed and replaced, KILLS times. Where all cells are finished before, another folder
is begun. Every cell must be there, run to its end once, and equal in all but its seconds to that of one process alone.
"""

import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from data_prep.cli import run_command
from pipeline.evaluate import cells, running, workers  # noqa: F401  what takes seconds to load: each process is a fork
from pipeline.evaluate.__main__ import main as evaluate
from tests.parts import task_files
from tests.parts.tiny import make_teacher

SEEDS = 6
DONE = re.compile(r"rte \d+/\d+: (.*?) … (?:\d+% ?)*accuracy")


def start(words: list[str], log: Path) -> int:
    """Fork a process that is `evaluate` of these words; returns its number."""
    if child := os.fork():
        return child
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv[1:] = words
    try:
        run_command(evaluate)
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
    finally:
        os._exit(70)


def records(out: Path, model: str = "small") -> dict[str, object]:
    """The files of cells and predictions of RTE by name, without the seconds."""
    folder = out / model / "rte"
    found: dict[str, object] = {path.name: path.read_text() for path in folder.glob("*.predictions.jsonl")}
    for path in folder.glob("*.json"):
        found[path.name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
    return found


def disturbed(words: list[str], out: Path, rng: random.Random, kills: int, pause: float) -> int:
    """One folder to its end; returns how many processes were killed, ``kills`` at most."""
    number, killed = 0, 0
    alive: dict[int, Path] = {}
    logs = []
    while True:
        while len(alive) < 2:
            log = out.with_name(f"{out.name}-{number}.log")
            alive[start([*words, "--out", str(out)], log)] = log
            logs.append(log)
            number += 1
        deadline = time.monotonic() + rng.uniform(0, pause)
        while time.monotonic() < deadline:
            time.sleep(0.01)
        gone, status = os.waitpid(-1, os.WNOHANG)
        if gone or killed == kills:
            break
        victim = rng.choice(list(alive))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        del alive[victim]
        killed += 1
    codes = [os.waitstatus_to_exitcode(status)] if gone else []
    alive.pop(gone, None)
    codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in alive]
    text = "\n".join(log.read_text() for log in logs)
    assert set(codes) == {0}, text
    twice = [cell for cell, times in Counter(DONE.findall(text)).items() if times > 1]
    assert not twice, f"run twice: {twice}\n{text}"
    return killed


def main(folder: str, kills: str, seed: str = "0") -> None:
    place, rng = Path(folder), random.Random(int(seed))
    model = make_teacher(place / "small", layers=1, hidden=16, positions=160)
    task_files.write_glue(place / "data", "rte", train=96, dev=24)
    words = ["--model", str(model), "--data", str(place / "data"), "--task", "rte", "--epochs", "4", "--length", "32"]
    words += ["--batch", "4", "--keep", "predictions", "--seeds", *map(str, range(SEEDS))]
    begin = time.monotonic()
    child = start([*words, "--out", str(place / "alone")], place / "alone.log")
    assert os.waitpid(child, 0)[1] == 0, (place / "alone.log").read_text()
    pause = (time.monotonic() - begin) / SEEDS * 2
    wanted, left, rounds = records(place / "alone"), int(kills), 0
    assert len(wanted) == 2 * SEEDS
    while left:
        out = place / f"killed-{rounds}"
        left -= disturbed(words, out, rng, left, pause)
        assert records(out) == wanted, out
        assert not list(out.glob("small/rte/.*.claim"))
        rounds += 1
    print(f"{kills} killed in {rounds} folders of {SEEDS} cells: none lost, wrong or run twice")


if __name__ == "__main__":
    main(*sys.argv[1:])
