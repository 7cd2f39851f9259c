"""What the measurements share: their rows, the description of the machine, and how time and memory are taken."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import re
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data_prep.errors import UserError
from pipeline.precision import lacks_bf16_units


@dataclass(frozen=True)
class Row:
    """One number that was measured, and what it says. ``case`` is what it was measured for, by name."""

    measure: str
    value: float
    unit: str
    note: str
    case: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a relation loss is made of: pairs of q, k and v, and the number of relation heads."""

    pairs: tuple[str, ...]
    heads: int

    @property
    def case(self) -> dict:
        return {"pairs": ",".join(self.pairs), "heads": self.heads}


def settings_of(heads: list[int], pairs: tuple[str, ...] | None, widths: dict[str, int]) -> list[Setting]:
    """A setting for each number of heads; without ``pairs`` 12 heads are MiniLM's, other numbers MiniLMv2's.

    ``widths`` has the width of every model by its name. Raises UserError for heads that do not divide one.
    """
    for count in heads:
        for name, width in widths.items():
            if width % count:
                fit = [n for n in range(1, width + 1) if all(other % n == 0 for other in widths.values())]
                near = [n for n in fit if n < count][-1:] + [n for n in fit if n > count][:1]
                raise UserError(
                    f"--heads {count}: does not divide the {name}'s width {width}; use {' or '.join(map(str, near))}"
                )
    defaults = {12: ("qk", "vv")}
    return [Setting(pairs or defaults.get(count, ("qq", "kk", "vv")), count) for count in heads]


def device_here() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def machine(precision: str) -> dict:
    """What the numbers depend on besides the program."""
    device = device_here()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision,
        "bf16_units": not lacks_bf16_units(device),
    }


def _processor() -> str:
    try:
        return re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1]
    except (OSError, TypeError):
        return "CPU"


# --- time -------------------------------------------------------------------------------------------------------------


def interleaved(works: dict[str, Callable], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each work in each of ``repeats`` repetitions, after one that warms up.

    A repetition runs every work once, each time beginning with another one, so that a machine that grows slower or busier
    does so for all of them alike.
    """
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repeats + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            spent = seconds(works[name], device)
            if number:
                times[name].append(spent)
    return times


def seconds(work: Callable, device: torch.device) -> float:
    """Seconds that ``work`` takes: on a GPU between two events, on a CPU by the clock."""
    if device.type != "cuda":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    torch.cuda.synchronize(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def ratio(above: list[float], below: list[float]) -> float:
    """The median of the repetitions' own ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def added(*times: list[float]) -> list[float]:
    """The sums of several works, repetition by repetition."""
    return [sum(each) for each in zip(*times, strict=True)]


# --- memory -----------------------------------------------------------------------------------------------------------


def extra_memory(make: Callable[..., Callable], argument, device: torch.device) -> int:
    """Bytes by which memory rises, at its peak, in a call of ``make(argument)()``; what ``make`` itself holds is not counted.

    On a GPU that is what torch allocates; on a CPU the resident set of a fresh process.
    """
    if device.type == "cuda":
        work = make(argument)
        work()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_rise_of_resident_set, make, argument, torch.get_num_threads()).result()


def _rise_of_resident_set(make: Callable[..., Callable], argument, threads: int) -> int:
    torch.set_num_threads(threads)
    return_at_once()
    work = make(argument)
    work()
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status("VmRSS")
    work()
    peak = _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(0, peak - before)


def return_at_once() -> None:
    """Have glibc give back what is freed, instead of keeping it: memory that is held can be told from what was."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**16)


_M_MMAP_THRESHOLD = -3


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes; 0 where there is none."""
    try:
        found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 0


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return int(re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
