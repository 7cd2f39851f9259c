"""This machine as a cluster to plan with: its GPUs by their data sheet, or its CPU's processes by a short measurement."""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from data_prep.cli import UserError
from data_prep.machine import cores, memory, threads
from pipeline.measuring import device_here
from pipeline.models.arithmetic import Product, adopt, measure
from pipeline.plan.hardware import CPU, GIB, Cluster, Gpu, gpu_named, gpu_with

SHARE = 0.4  # of a GPU's peak rate, as plan takes it
SLOWER = 2.0  # times the seconds of products and maps on a CPU: what a whole step has taken there, at most
BUSY = 1.5  # processes a core from which on a machine is called busy
_COPIED = 2**26  # bytes that are copied to see how fast memory is
_COPIES = 3


@dataclass(frozen=True)
class Machine:
    """What a run has on this machine; ``basis`` says where its rates are from, ``slower`` how much more a step may take."""

    cluster: Cluster
    basis: str
    slower: float

    @property
    def is_cpu(self) -> bool:
        return self.cluster.gpu.chip == CPU

    def __str__(self) -> str:
        world, name = self.cluster.world, self.cluster.gpu.name
        kind = f"process{'es' * (world > 1)} on the CPU" if self.is_cpu else name
        return f"{world} {kind}" if self.is_cpu else f"{world} × {kind}"


def this_machine(products: Sequence[Product]) -> Machine:
    """As many ranks as `distill` starts here: one for each GPU, or RANKS; on a CPU RANKS or one.

    ``products``: those of a run, timed on a CPU for 0.3 s. Raises UserError for a RANKS that is no number.
    """
    asked = os.environ.get("RANKS", "")
    if asked and not re.fullmatch("[1-9][0-9]*", asked):
        raise UserError(f"RANKS={asked}: must be a whole number of at least 1")
    device = device_here()
    if device.type == "cuda":
        count = min(int(asked or torch.cuda.device_count()), torch.cuda.device_count())
        return _gpus(count, torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory)
    return _cpu(int(asked or 1), products)


def _gpus(count: int, name: str, held: int) -> Machine:
    """``count`` GPUs that call themselves ``name`` and have ``held`` bytes each."""
    gpu = gpu_named(name, held)
    basis = f"by its data sheet at {SHARE:.0%} of the peak rate, not measured"
    if gpu is None:
        gpu = gpu_with(held / GIB)
        basis = f"{name} is not known to plan, so as on a {gpu.name}, {basis}"
    return Machine(Cluster(1, count, gpu, held, 12.5, SHARE), basis, 1.0)


def _cpu(ranks: int, products: Sequence[Product]) -> Machine:
    """``ranks`` processes on the CPU, which share its threads and memory."""
    found, moved = measure(products, _own_seconds), _bandwidth()
    adopt(found)
    fastest, per_rank = max(found.native, found.widened), memory()["total"] / ranks
    gpu = Gpu(
        name=f"CPU, {threads().number} threads",
        memory=round(per_rank / GIB),
        low=fastest / ranks / 1e9,
        fp32=found.widened / ranks / 1e9,
        bandwidth=moved / ranks / 1e9,
        link=moved / ranks / 1e9,
        cache=0,
        chip=CPU,
        processors=0,
        clock=0,
    )
    basis = f"by {fastest / 1e9:,.0f} GFLOP/s of products and {moved / 1e9:,.0f} GB/s of memory, measured now"
    busy, allowed = os.getloadavg()[0], cores().number
    if busy > BUSY * allowed:
        basis += f", if nothing else ran: there are {busy:.0f} processes at work on {allowed} core{'s' * (allowed > 1)}"
    return Machine(Cluster(1, ranks, gpu, per_rank, moved / 1e9, 1.0), basis, SLOWER)


def _bandwidth() -> float:
    """Bytes/s that a copy reads and writes."""
    source = torch.ones(_COPIED, dtype=torch.uint8)
    target = source.clone()
    return 2 * _COPIED / min(_own_seconds(lambda: target.copy_(source)) for _ in range(_COPIES))


def _own_seconds(work: Callable[[], object]) -> float:
    """Seconds that ``work`` would take if its threads had the cores to themselves, by their own time."""
    begin = time.process_time()
    work()
    return max(time.process_time() - begin, 1e-9) / torch.get_num_threads()
