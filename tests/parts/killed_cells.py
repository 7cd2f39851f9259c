"""Kill workers of `evaluate` at random moments, and see that no cell is lost, wrong, or run twice to its end.

python -m tests.parts.killed_cells DIR 20 [SEED]
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from pipeline.artifacts import results
from tests.parts import task_files
from tests.parts.launching import ROOT, environment
from tests.parts.tiny import make_teacher


def command(folder: Path, out: str, *options: object) -> list[str]:
    words = [
        sys.executable,
        "-m",
        "pipeline.evaluate",
        "--model",
        folder / "small",
        "--task",
        "rte",
        "--out",
        folder / out,
    ]
    words += ["--data", folder / "data", "--epochs", 25, "--length", 32, "--seeds", *range(6), *options]
    return [str(word) for word in words]


def scores(folder: Path) -> dict[str, dict]:
    return {cell.path.name: cell.scores for cell in results.read_results(folder).cells}


def start(words: list[str], log: Path) -> subprocess.Popen:
    with log.open("a") as output:
        return subprocess.Popen(
            words, cwd=ROOT, env=environment(), stdout=output, stderr=output, start_new_session=True
        )


def main(folder: Path, kills: int, seed: int = 1) -> None:
    """Raises AssertionError if the killed commands leave other results than an undisturbed one."""
    dice = random.Random(seed)
    make_teacher(folder / "small", layers=1, hidden=16, positions=160)
    task_files.write_glue(folder / "data", "rte", train=64, dev=20)
    assert start(command(folder, "whole"), folder / "whole.log").wait() == 0, (folder / "whole.log").read_text()
    left, log = kills, folder / "killed.log"
    while left:
        running = [start(command(folder, "killed", "--workers", 2), log), start(command(folder, "killed"), log)]
        time.sleep(dice.uniform(6, 14))
        victims = [child for each in running for child in processes(each.pid)]
        if victims:
            dice.choice(victims).send_signal(signal.SIGKILL)
            left -= 1
        if not left or dice.random() < 0.5:  # the others end by themselves
            for each in running:
                each.wait()
        else:  # nor do they: what they had claimed is free
            for each in [child for own in running for child in processes(own.pid)]:
                each.kill()
            for each in running:
                each.wait()
    assert start(command(folder, "killed"), log).wait() == 0, log.read_text()
    assert scores(folder / "killed") == scores(folder / "whole"), log.read_text()
    ended = [line.partition(" … ")[0] for line in log.read_text().splitlines() if " … accuracy" in line]
    assert len(ended) == len(set(ended)), log.read_text()
    assert not list((folder / "killed").glob("*/*/.*")), "claims are left"
    print(f"{kills} kills: {len(scores(folder / 'whole'))} cells, all there, equal, and none run twice")


def processes(pid: int) -> list[psutil.Process]:
    """A command's process and those that it has started."""
    try:
        found = psutil.Process(pid)
        return [each for each in (found, *found.children(recursive=True)) if each.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *map(int, sys.argv[3:]))
