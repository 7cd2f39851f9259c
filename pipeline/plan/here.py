"""This machine as a cluster to plan with: its GPUs by their data sheet, or its CPU's processes by a short measurement."""

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from data_prep.machine import cores, memory, threads
from pipeline.measuring import device_here
from pipeline.models.arithmetic import Product, Rates, adopt, widened_product
from pipeline.plan.hardware import CPU, GIB, Cluster, Gpu, gpu_named, gpu_with
from pipeline.processes import asked_ranks

SHARE = 0.4  # of a GPU's peak rate, as plan takes it
SLOWER = 2.0  # times the seconds of products and maps on a CPU: what a whole step has taken there, at most
BUSY = 1.5  # processes a core from which on a machine is called busy
_COPIED = 2**25  # bytes that are copied to see how fast memory is
_TOKENS = 512
_SPENT = 0.1  # seconds of all threads together, for each measurement


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

    ``products``: those of a run. The widest is timed on a CPU, once in a process, in 0.3 s of an idle machine. Raises
    UserError for a RANKS that is no number.
    """
    asked, device = asked_ranks(os.environ), device_here()
    if device.type == "cuda":
        count = min(asked or torch.cuda.device_count(), torch.cuda.device_count())
        return _gpus(count, torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory)
    return _cpu(asked or 1, products)


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
    widest = max(products, key=lambda product: product.times * product.flops)
    found, moved = _rates(widest.width, widest.outputs), _bandwidth()
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


@functools.cache
def _rates(width: int, outputs: int) -> Rates:
    """The rates of a layer's products, [tokens, width] × [width, outputs], on all threads of this process."""
    x, weight = (torch.ones(size, width, dtype=torch.bfloat16) for size in (_TOKENS, outputs))
    kept, flops = weight.float(), 2.0 * _TOKENS * width * outputs
    ways = (lambda: F.linear(x, weight)), (lambda: widened_product(x, kept))
    return Rates(*(flops / _own_seconds(way) for way in ways))


@functools.cache
def _bandwidth() -> float:
    """Bytes/s that a copy reads and writes."""
    source = torch.ones(_COPIED, dtype=torch.uint8)
    target = source.clone()
    return 2 * _COPIED / _own_seconds(lambda: target.copy_(source))


def _own_seconds(work: Callable[[], object]) -> float:
    """Seconds that ``work`` would take if its threads had the cores to themselves: by their own time, which is coarse."""
    work()
    begin, calls = time.process_time(), 0
    while (spent := time.process_time() - begin) < _SPENT:
        work()
        calls += 1
    return spent / calls / torch.get_num_threads()


def in_words(seconds: float) -> str:
    """An estimate of a time, to two digits."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {name}"
    return f"{float(f'{seconds:.2g}'):g} s"
