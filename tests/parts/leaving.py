"""A rank that is asked to stop, over and over: `python -m tests.parts.leaving ROUNDS` with RANK set.

In each round the ranks take steps of random length until they agree to leave; some rank has a reason at a random moment. In
even rounds their steps have nothing in common, as of hosts that are ahead of their devices; in odd ones each step ends with a
collective. Rank 0 prints, as JSON, for each round the steps after which the ranks left, the greatest lead of a rank that was
seen in an even one, and each rank's median time (µs) for its question.
"""

import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.engines.ranks import start_ranks
from pipeline.training.early_stop import EarlyStop


def main(rounds: int) -> None:
    ranks = start_ranks()
    found, spent, began = [], [], []
    for number in range(rounds):
        dice = random.Random(f"{number} {ranks.rank}")
        shared = random.Random(number)
        who, when, slow = shared.randrange(ranks.world), shared.randrange(12), shared.randrange(ranks.world)
        with EarlyStop(ranks, Path("nowhere")) as early:
            dist.barrier()
            for step in range(10**6):
                if step == when and ranks.rank == who:
                    early._reason = "it was asked"
                early._looked = 0.0  # rank 0 looks once in a second, and steps are shorter here
                start = time.perf_counter()
                leaves = early.agreed(step)
                spent.append(1e6 * (time.perf_counter() - start))
                if not number % 2:
                    began.append((number, step, time.monotonic()))
                time.sleep(dice.choice((0, 0.001, 0.004)) * (3 if ranks.rank == slow else 1))
                if number % 2:
                    dist.all_reduce(torch.ones(1))
                if leaves:
                    break
        left: list = [None] * ranks.world
        dist.all_gather_object(left, step)
        found.append(left)
    everyone: list = [None] * ranks.world
    dist.all_gather_object(everyone, (began, statistics.median(spent)))
    if ranks.first:
        lead = max(lead_of([times for times, _ in everyone]))
        print(json.dumps({"left": found, "lead": lead, "microseconds": [median for _, median in everyone]}), flush=True)
    dist.barrier()  # the first rank has the store, which others need until their end
    dist.destroy_process_group()


def lead_of(ranks: list[list[tuple[int, int, float]]]) -> list[int]:
    """By how many steps the first rank was ahead of the last one, each time that one began a step."""
    events = sorted((when, rank, step, number) for rank, own in enumerate(ranks) for number, step, when in own)
    at, leads, now = {}, [0], -1
    for _, rank, step, number in events:
        if number != now:
            at, now = {}, number
        at[rank] = step
        if len(at) == len(ranks):
            leads.append(max(at.values()) - min(at.values()))
    return leads


if __name__ == "__main__":
    main(int(sys.argv[1]))
