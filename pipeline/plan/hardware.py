"""Accelerators, by their makers' public data sheets, and clusters of them. Dense rates, without structured sparsity."""

import difflib
import re
from dataclasses import dataclass

from data_prep.cli import UserError

GIB, MIB = 2**30, 2**20
CPU = "cpu"  # the chip of a process on a CPU, see here.py


@dataclass(frozen=True)
class Gpu:
    """One accelerator. Rates in units of 10⁹ a second: FLOP of bf16 (or fp16) matrix products and of fp32, bytes.

    ``memory`` and ``cache`` (L2) are in GiB and MiB, which the makers write GB and MB. ``link`` is what one GPU receives from
    the others of its node: makers give the sum of both directions, twice as much. ``chip``: the compiler's name of it;
    ``processors`` (SMs) work at ``clock`` GHz, the boost clock, or for H100 and H200 what they sustain.
    """

    name: str
    memory: int
    low: float
    fp32: float
    bandwidth: float
    link: float
    cache: int
    chip: str
    processors: int
    clock: float
    note: str = ""

    def rate(self, precision: str) -> float:
        """Products in ``precision``, 10⁹ FLOP/s."""
        return self.low if precision == "bf16" else self.fp32


GPUS = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA V100 Tensor Core GPU data sheet (SXM2, 32 GB): 15.7 TFLOPS fp32, 900 GB/s, NVLink 300 GB/s. It has no units for
        # bf16, only for fp16 (125 TFLOPS), in which nothing here computes.
        Gpu("V100", 32, 15.7e3, 15.7e3, 900, 150, 6, "sm_70", 80, 1.53, "no bf16 units: at fp32's rate"),
        # NVIDIA A100 Tensor Core GPU data sheet (SXM, 40 and 80 GB): 312 TFLOPS bf16, 19.5 fp32, NVLink 600 GB/s.
        Gpu("A100-40", 40, 312e3, 19.5e3, 1555, 300, 40, "sm_80", 108, 1.41),
        Gpu("A100-80", 80, 312e3, 19.5e3, 2039, 300, 40, "sm_80", 108, 1.41),
        # NVIDIA L40S data sheet: 362 TFLOPS bf16, 91.6 fp32, 864 GB/s, PCIe 4 × 16 (64 GB/s) and no NVLink.
        Gpu("L40S", 48, 362e3, 91.6e3, 864, 32, 96, "sm_89", 142, 2.52, "PCIe, no NVLink"),
        # NVIDIA H100 data sheet (SXM): 989 TFLOPS bf16 (half of the figure with sparsity), 67 fp32, NVLink 900 GB/s.
        Gpu("H100", 80, 989e3, 67e3, 3350, 450, 50, "sm_90", 132, 1.6),
        # NVIDIA H200 data sheet (SXM): as H100, with 141 GB at 4.8 TB/s.
        Gpu("H200", 141, 989e3, 67e3, 4800, 450, 50, "sm_90", 132, 1.6),
        # NVIDIA Blackwell data sheet (HGX B200): 2.25 PFLOPS bf16, 80 TFLOPS fp32, 180 GB at 7.7 TB/s, NVLink 1.8 TB/s.
        Gpu("B200", 180, 2250e3, 80e3, 7700, 900, 126, "sm_100", 148, 1.85),
    )
}

# Cards of workstations and for inference. A plan's table compares only those above. GeForce cards halve the rate of products
# that add up in fp32, which is the one that counts here.
CARDS = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA T4 data sheet: 8.1 TFLOPS fp32, 320 GB/s, PCIe 3 × 16 (32 GB/s); 65 TFLOPS of fp16, which nothing here uses.
        Gpu("T4", 16, 8.1e3, 8.1e3, 320, 16, 4, "sm_75", 40, 1.59, "no bf16 units: at fp32's rate"),
        # NVIDIA A10 data sheet: 125 TFLOPS bf16 (250 with sparsity), 31.2 fp32, 600 GB/s, PCIe 4 × 16.
        Gpu("A10", 24, 125e3, 31.2e3, 600, 32, 6, "sm_86", 72, 1.69, "PCIe, no NVLink"),
        # NVIDIA A30 data sheet: 165 TFLOPS bf16, 10.3 fp32, 933 GB/s, PCIe 4 × 16.
        Gpu("A30", 24, 165e3, 10.3e3, 933, 32, 24, "sm_80", 56, 1.44, "PCIe"),
        # NVIDIA A40 data sheet: 149.7 TFLOPS bf16, 37.4 fp32, 696 GB/s, PCIe 4 × 16.
        Gpu("A40", 48, 149.7e3, 37.4e3, 696, 32, 6, "sm_86", 84, 1.74, "PCIe"),
        # NVIDIA RTX A6000 data sheet: 309.7 TFLOPS of tensor cores with sparsity, 38.7 fp32, 768 GB/s, PCIe 4 × 16.
        Gpu("RTX-A6000", 48, 154.8e3, 38.7e3, 768, 32, 6, "sm_86", 84, 1.8, "PCIe"),
        # NVIDIA L4 data sheet: 242 TFLOPS bf16 with sparsity, 30.3 fp32, 300 GB/s, PCIe 4 × 16.
        Gpu("L4", 24, 121e3, 30.3e3, 300, 32, 48, "sm_89", 58, 2.04, "PCIe, no NVLink"),
        # NVIDIA RTX 6000 Ada data sheet: 91.1 TFLOPS fp32, 1,457 of fp8 with sparsity, 960 GB/s, PCIe 4 × 16.
        Gpu("RTX-6000-Ada", 48, 364.2e3, 91.1e3, 960, 32, 96, "sm_89", 142, 2.5, "PCIe, no NVLink"),
        # NVIDIA Ampere GA102 white paper: 71 TFLOPS bf16, 35.6 fp32, 936 GB/s, PCIe 4 × 16.
        Gpu("RTX3090", 24, 71e3, 35.6e3, 936, 32, 6, "sm_86", 82, 1.7, "PCIe"),
        # NVIDIA Ada white paper: 97.5 and 165.2 TFLOPS bf16, 48.7 and 82.6 fp32, 717 and 1008 GB/s, PCIe 4 × 16.
        Gpu("RTX4080", 16, 97.5e3, 48.7e3, 717, 32, 64, "sm_89", 76, 2.51, "PCIe, no NVLink"),
        Gpu("RTX4090", 24, 165.2e3, 82.6e3, 1008, 32, 72, "sm_89", 128, 2.52, "PCIe, no NVLink"),
        # NVIDIA RTX Blackwell white paper: 209.5 TFLOPS bf16, 104.8 fp32, 1792 GB/s, PCIe 5 × 16 (128 GB/s).
        Gpu("RTX5090", 32, 209.5e3, 104.8e3, 1792, 64, 96, "sm_120", 170, 2.41, "PCIe, no NVLink"),
    )
}
KNOWN = GPUS | CARDS


@dataclass(frozen=True)
class Rates:
    """What a multiprocessor does in a clock: FLOP of dense bf16 products, and sums or products of fp32."""

    tensor: int
    fp32: int


# By NVIDIA's architecture white papers and the CUDA C++ Programming Guide's table of arithmetic throughput. Each of these
# chips' multiprocessors also issues instructions of four warps, and takes 16 exponentials, in a clock.
RATES = {"sm_80": Rates(2048, 64), "sm_89": Rates(1024, 128), "sm_90": Rates(4096, 128), "sm_100": Rates(8192, 128)}
SCHEDULERS, EXPONENTIALS, LANES = 4, 16, 32


def find_gpu(name: str) -> Gpu:
    """The GPU of this name, however it is spelt: RTX4090, rtx 4090, NVIDIA GeForce RTX 4090. Raises UserError."""
    known = {_plain(key): gpu for key, gpu in KNOWN.items()}
    if _plain(name) not in known:
        longer = [key for key in known if _plain(name) and key.startswith(_plain(name))]
        near = longer or difflib.get_close_matches(_plain(name), known, 2)
        hint = f"did you mean {' or '.join(known[key].name for key in near)}? " if near else ""
        raise UserError(
            f"--gpu {name}: not known; {hint}known are {', '.join(KNOWN)}; of another give the memory, as in --gpu-memory 24"
        )
    return known[_plain(name)]


def _plain(name: str) -> str:
    """A GPU's name without its maker's, in letters and digits."""
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())


def gpu_named(name: str, memory: float) -> Gpu | None:
    """The GPU that calls itself ``name``, as in "NVIDIA A100-SXM4-80GB", and has ``memory`` bytes; None if it is not known."""
    plain, fitting = _plain(name), []
    for gpu in KNOWN.values():
        kind = re.sub(r"-(40|80)$", "", gpu.name)  # of an A100 the memory is no part of its name
        if plain.startswith(_plain(kind)) and 0.85 * gpu.memory < memory / GIB < 1.15 * gpu.memory:
            fitting.append(gpu)
    return min(fitting, key=lambda gpu: abs(gpu.memory - memory / GIB), default=None)


def gpu_with(memory: float) -> Gpu:
    """The slowest GPU that has about this memory [GiB], or else that with the nearest: a careful guess."""
    nearest = min(abs(gpu.memory - memory) for gpu in GPUS.values())
    return min((g for g in GPUS.values() if abs(g.memory - memory) == nearest), key=lambda gpu: gpu.low)


@dataclass(frozen=True)
class Cluster:
    """``nodes`` × ``gpus`` of one kind with ``memory`` bytes each.

    ``nic``: the rate at which a node receives from others [10⁹ bytes/s]; ``share``: of the peak rate, reached by products.
    """

    nodes: int
    gpus: int
    gpu: Gpu
    memory: float
    nic: float
    share: float

    @property
    def world(self) -> int:
        return self.nodes * self.gpus

    def arithmetic(self, precision: str) -> float:
        """FLOP/s of one GPU, or process on a CPU."""
        return 1e9 * self.share * self.gpu.rate(precision)

    def link(self, over_nodes: bool) -> float:
        """Bytes/s that a collective brings to each GPU: a ring passes every link, and each node's NIC, alike."""
        slowest = min(self.gpu.link, self.nic) if over_nodes else self.gpu.link
        return 1e9 * slowest

    def __str__(self) -> str:
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        return f"{nodes} × {self.gpus} {self.gpu.name} ({self.memory / GIB:g} GB)"
