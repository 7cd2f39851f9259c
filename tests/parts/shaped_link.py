"""What it is worth to begin the teacher's next pass while gradients are averaged, between two hosts and a slow link.

``python -m tests.parts.shaped_link RATE BLOCKS EACH [options of bench step]``, as root: two network namespaces with a core
each, the link between them shaped by tc to RATE (100mbit). Alternates blocks of EACH updates with every pass at its own time
and with the next one begun ahead, and prints medians. A rank is the same with the rate "rank".
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch.distributed as dist

from pipeline.bench import __main__ as bench
from pipeline.bench import step as bench_step
from pipeline.bench.tools import Setting
from pipeline.engines.ranks import start_ranks
from pipeline.training.ahead import Ahead, beside
from pipeline.training.step import Clock, update
from tests.parts.namespaces import ADDRESSES, INTERFACE, NAMES, TwoHosts


def main(rate: str, arguments: list[str]) -> None:
    own = {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(Path.cwd()), "GLOO_SOCKET_IFNAME": INTERFACE}
    meeting = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": "29555"}
    environment = os.environ | own | meeting | {"MASTER_ADDR": ADDRESSES[0]}
    shape = ["tc", "qdisc", "add", "dev", INTERFACE, "root", "tbf", "rate", rate, "burst", "256kb", "latency", "100ms"]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, TwoHosts(Path(folder)) as hosts:
        for name in NAMES:
            subprocess.run(hosts.command(name, *shape, folder=Path(folder)), check=True)
        command = [sys.executable, "-m", __spec__.name, "rank", *arguments]
        processes = [
            subprocess.Popen(hosts.command(name, *command, folder=Path.cwd()), env=environment | {"RANK": str(rank)})
            for rank, name in enumerate(NAMES)
        ]
        sys.exit(max(process.wait() for process in processes))


def rank(blocks: int, each: int, arguments: list[str]) -> None:
    options = bench.parser().parse_args(["step", *arguments])
    ranks = start_ranks()
    models = bench_step.Models(options, [Setting(("qk", "vv"), 12)], ranks)
    (trainees,), samples = models.trainees, models.samples
    aheads = {"at its own time": Ahead(models.teach), "ahead": Ahead(models.teach, beside(ranks.device))}
    clocks = {name: Clock(ranks.device) for name in aheads}
    times: dict[str, list[float]] = {name: [] for name in aheads}
    for clock in clocks.values():
        clock.running = True

    def once(ahead: Ahead, clock: Clock) -> float:
        begin = time.perf_counter()
        update(trainees, ahead, samples, 0, ranks, clock, lambda: samples)
        return time.perf_counter() - begin

    once(aheads["at its own time"], Clock(ranks.device))
    for _ in range(blocks):
        for name, ahead in aheads.items():
            once(ahead, Clock(ranks.device))  # the first makes its own pass and the next one's
            dist.barrier()
            times[name] += [once(ahead, clocks[name]) for _ in range(each)]
            ahead(samples)  # which was begun for nobody
            dist.barrier()
    if ranks.first:
        for name, clock in clocks.items():
            waited = clock.seconds()["teacher"] / len(times[name])
            print(
                json.dumps({"pass": name, "step s": statistics.median(times[name]), "waits for it s": waited}),
                flush=True,
            )
    dist.barrier()


if __name__ == "__main__":
    if sys.argv[1] == "rank":
        rank(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    else:
        main(sys.argv[1], sys.argv[2:])
