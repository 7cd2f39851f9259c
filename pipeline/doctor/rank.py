"""One rank of pipeline.doctor's all-reduce: sums whose results are known, and the time they take."""

import json
import os
import statistics
import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.engines.ranks import Ranks, start_ranks
from pipeline.models.precision import DTYPES
from pipeline.processes import die_with

SMALL = 1000  # elements; no power of two, so that no rank's share is like another's
REPEATS = {"small": 20, "large": 3}


def addend(rank: int, world: int, count: int, dtype: torch.dtype) -> Tensor:
    """The addend of ``rank`` of ``world`` in a sum [count] that is 2 · (1 + i mod 7) at element i.

    Two ranks add to each element, others to the next, so all sums and partial sums are exact in bf16 for any number of
    ranks and any order; and a wrong element shows whose addend was lost.
    """
    number = torch.arange(7 * world)
    times = (number % world == rank).int() + ((number + 1) % world == rank).int()
    return _repeated((1 + number % 7) * times, count, dtype)


def total(count: int, dtype: torch.dtype) -> Tensor:
    """The sum of the addends of all ranks, [count]."""
    return _repeated(2 * (1 + torch.arange(7)), count, dtype)


def _repeated(period: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    return period.to(dtype).repeat(-(-count // len(period)))[:count]


def bus_bandwidth(size: int, seconds: float, world: int) -> float:
    """Bytes/s that each link carries in the all-reduce of ``size`` bytes: every rank sends and receives 2 (W−1)/W of them."""
    return 2 * (world - 1) / world * size / seconds


def measure(ranks: Ranks, count: int, dtype: torch.dtype, repeats: int, say: Callable[..., None]) -> tuple[float, int]:
    """Median seconds of the all-reduce of ``count`` elements, after one that warms up, and the number of wrong sums."""
    own = addend(ranks.rank, ranks.world, count, dtype).to(ranks.device)
    right = total(count, dtype).to(ranks.device)
    times, wrong = [], 0
    for _ in range(1 + repeats):
        result = own.clone()
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(result)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
        times.append(time.perf_counter() - begin)
        wrong = max(wrong, int((result != right).sum()))
        say(round=len(times))
    return statistics.median(times[1:]), wrong


def main(token: str, mib: int) -> None:
    """Report this rank's progress and its measurements, by lines ``TOKEN {…}`` on the output."""
    if parent := os.environ.get("DISTILL_PARENT"):
        die_with(int(parent))
    rank = int(os.environ["RANK"])

    def say(**content: object) -> None:
        # One write of a whole line, so that ranks which share a pipe do not cut each other's lines.
        try:
            os.write(1, f"{token} {json.dumps({'rank': rank, **content})}\n".encode())
        except OSError:  # the doctor, or the way to it, is gone
            os._exit(1)

    def beat() -> None:  # a rank that waits for another is alive; the other may not be
        while True:
            time.sleep(1)
            say(alive=True)

    say(stage="started")
    threading.Thread(target=beat, daemon=True).start()
    try:
        ranks = start_ranks()
        say(stage="joined", backend=dist.get_backend(), world=ranks.world)
        for name, dtype in DTYPES.items():
            large = mib * 2**20 // dtype.itemsize
            for size, count in (("small", SMALL), ("large", large)):
                seconds, wrong = measure(ranks, count, dtype, REPEATS[size], say)
                say(
                    stage=f"{name} {size}",
                    count=count,
                    wrong=wrong,
                    seconds=seconds,
                    bandwidth=bus_bandwidth(count * dtype.itemsize, seconds, ranks.world),
                )
        dist.barrier()
        dist.destroy_process_group()
    except (RuntimeError, OSError) as error:  # what torch raises where the network is at fault
        say(error=(str(error).strip().splitlines() or [type(error).__name__])[0])
        raise SystemExit(1) from None
    say(stage="done")
