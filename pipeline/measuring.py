"""Measuring of time and memory: works in turn, peaks of memory, and forwards of whole encoders.

A machine's speed changes while it is measured. So what is compared runs in turn, again and again, and medians count: of the
times, and of the ratios of each repetition.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import re
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data_prep.cli import shows_bars
from pipeline.models.arithmetic import has_fast_bf16

Batch = dict[str, Tensor]
# Made-up ids begin here where the vocabulary is large enough: below are special and unused ones.
_FIRST_ORDINARY = 1000
_M_MMAP_THRESHOLD = -3  # glibc's number of that option

# --- where it is measured ---------------------------------------------------------------------------------------------


def device_here() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def usual_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device is faster in it, else fp32."""
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def device_name(device: torch.device, dtype: torch.dtype) -> str:
    """Device, threads and precision, as a report names them."""
    kind = "bf16" if dtype == torch.bfloat16 else "fp32"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {kind}"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'' if threads == 1 else 's'}), {kind}"


# --- time -------------------------------------------------------------------------------------------------------------


def interleaved_times(
    works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each work in each of ``repeats`` repetitions, after one that warms up.

    A repetition runs every work once, each time beginning with another one, so that a machine that grows slower or busier
    does so for all of them alike.
    """
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repeats + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds = seconds_of(works[name], device)
            if number:
                times[name].append(seconds)
    return times


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work`` takes: on a GPU between two events, on a CPU by the clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    torch.cuda.synchronize(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median of the repetitions' own ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def summed(*times: list[float]) -> list[float]:
    """The sums of several works, repetition by repetition."""
    return [sum(each) for each in zip(*times, strict=True)]


# --- memory -----------------------------------------------------------------------------------------------------------


def extra_memory(make: Callable[..., Callable], argument: object, device: torch.device) -> int:
    """Bytes by which memory rises, at its peak, in a call of ``make(argument)()``; what ``make`` itself holds is not counted.

    On a GPU this is what torch allocates; on a CPU the resident set of a fresh process.
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


def _rise_of_resident_set(make: Callable[..., Callable], argument: object, threads: int) -> int:
    torch.set_num_threads(threads)
    return_freed_memory()
    work = make(argument)
    work()

    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew

    before = process_status("VmRSS")
    work()
    peak = process_status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(0, peak - before)


def return_freed_memory() -> None:
    """Make glibc return what is freed instead of keeping it, so that the resident set is what is held."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**16)


def process_status(key: str) -> int:
    """A line of /proc/self/status, in bytes; 0 where there is none."""
    try:
        found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 0


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device, or by this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


# --- forwards of encoders ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def forward_seconds(
    models: Mapping[str, Callable], batches: Mapping[str, Sequence[Batch]], device: torch.device
) -> dict[str, float]:
    """Median seconds of a forward by each model: batch 1 by one after the other, then batch 2, …

    ``batches`` holds each model's inputs (its own ids of the same text). A forward of the first batch by each warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    for name, model in models.items():
        _seconds_of_forward(model, batches[name][0], device)

    turns = range(len(next(iter(batches.values()))))
    for turn in tqdm(turns, unit="batch", disable=not shows_bars() or len(turns) < 20, leave=False):
        for name, model in models.items():
            times[name].append(_seconds_of_forward(model, batches[name][turn], device))
    return {name: statistics.median(each) for name, each in times.items()}


def _seconds_of_forward(model: Callable, batch: Batch, device: torch.device) -> float:
    inputs = {key: tensor.to(device) for key, tensor in batch.items()}
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    model(**inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def made_up_batches(models: Mapping[str, Any], batches: int, batch: int, length: int) -> dict[str, list[Batch]]:
    """Random ids of full length that every model's vocabulary holds, by its config; each model gets the same ones."""
    vocabulary = min(model.config.vocab_size for model in models.values())
    low = min(_FIRST_ORDINARY, vocabulary // 2)
    ids = torch.randint(low, vocabulary, (batches, batch, length), generator=torch.Generator().manual_seed(0))
    made = [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]
    return dict.fromkeys(models, made)
