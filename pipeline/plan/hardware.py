"""Accelerators, by their makers' public data sheets, and clusters of them. Dense rates, without structured sparsity."""

from dataclasses import dataclass

from data_prep.cli import UserError

GIB, MIB = 2**30, 2**20


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
    """The GPU of this name, in upper or lower case. Raises UserError that lists the known ones."""
    known = {key.lower(): gpu for key, gpu in GPUS.items()}
    if name.lower() not in known:
        raise UserError(f"--gpu {name}: not known; known are {', '.join(GPUS)}")
    return known[name.lower()]


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
        """FLOP/s of one GPU."""
        return 1e9 * self.share * self.gpu.rate(precision)

    def link(self, over_nodes: bool) -> float:
        """Bytes/s that a collective brings to each GPU: a ring passes every link, and each node's NIC, alike."""
        slowest = min(self.gpu.link, self.nic) if over_nodes else self.gpu.link
        return 1e9 * slowest

    def __str__(self) -> str:
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        return f"{nodes} × {self.gpus} {self.gpu.name} ({self.memory / GIB:g} GB)"
