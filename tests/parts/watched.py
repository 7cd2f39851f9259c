"""A rank that only meets the others, under the watchdog: `python -m tests.parts.watched TIMEOUT FAULT` with RANK set.

On the last rank FAULT happens: `error` (a mistake that the others do not meet), `crash` (an error of the program), `none`.
"""

import os
import sys
import time

import torch
import torch.distributed as dist

from data_prep.cli import UserError, run_command
from pipeline.engines.ranks import start_ranks
from pipeline.training.watchdog import Watchdog


def main() -> None:
    timeout, fault = float(sys.argv[1]), sys.argv[2]
    ranks = start_ranks()
    with Watchdog(ranks, timeout) as watchdog:
        for step in range(100 if fault == "none" else 10**6):
            dist.all_reduce(torch.ones(4))
            time.sleep(0.02)
            if step == 50:
                if ranks.first:
                    print("running", flush=True)
                if ranks.rank == ranks.world - 1 and fault == "error":
                    raise UserError("shard 5 is damaged")
                if ranks.rank == ranks.world - 1 and fault == "crash":
                    raise ZeroDivisionError("division by zero")
        watchdog.leave()
    print(f"rank {ranks.rank} of process {os.getpid()} is done")


if __name__ == "__main__":
    run_command(main)
