"""Ranks of which one works for longer than a collective may wait: `python -m tests.parts.meeting SECONDS` with RANK set.

The process group's timeout is SECONDS. Each rank prints, as JSON, what it got of rank 0's work, the errors that rank 0 met, and
how many of the ranks had come when ``wait_for_all`` let it go on.
"""

import errno
import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from data_prep.cli import UserError
from pipeline.engines.ranks import arrivals, on_first_rank, start_ranks, store, wait_for_all


def work(seconds: float) -> tuple[Path, dict]:
    time.sleep(seconds)
    return Path("a/b"), {"step": 3}


def mistake() -> None:
    raise UserError("shard 5 is damaged")


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/data/x")


def main(seconds: float) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    ranks = start_ranks()
    found: dict = {"result": on_first_rank(ranks, work, seconds + 3), "errors": []}
    for fails in (mistake, full):
        try:
            on_first_rank(ranks, fails)
        except (UserError, OSError) as error:
            found["errors"].append([type(error).__name__, str(error)])
    if not ranks.first:
        time.sleep(seconds + 3)
    store().add("come", 1)
    wait_for_all(ranks)
    found["come"] = store().add("come", 0)
    before = arrivals()
    dist.barrier()
    found["entered"] = arrivals() - before
    print(json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]))
