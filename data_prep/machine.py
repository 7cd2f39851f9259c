"""What a process may use of its machine: cores, threads and memory, by affinity mask, control groups and OMP_NUM_THREADS."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

SYSTEM = Path("/")  # whose proc and sys are read
OMP = "OMP_NUM_THREADS"


class Allowed(NamedTuple):
    """A number of cores or threads, and why it is this one."""

    number: int
    why: str


def cores(system: Path = SYSTEM) -> Allowed:
    """The cores that this process may use: a container's CPU quota, rounded up, or those of its affinity mask if fewer."""
    masked = len(os.sched_getaffinity(0))
    quota = min(_quotas(system), default=math.inf)
    if quota < masked:
        return Allowed(max(1, math.ceil(quota)), f"a CPU quota of {quota:g}")
    return Allowed(masked, f"{masked} core{'s' * (masked > 1)}")


def threads(ranks: int = 1, environment: Mapping[str, str] = os.environ, system: Path = SYSTEM) -> Allowed:
    """The threads with which this process, one of ``ranks`` on this machine, computes on the CPU.

    As many as OMP_NUM_THREADS says, if the user has set it; or else this rank's share of the cores, at least one.
    """
    if asked := asked_threads(environment, system):
        return Allowed(asked, f"{OMP}={asked}")
    allowed = cores(system)
    share = f" for {ranks} ranks" if ranks > 1 else ""
    return Allowed(max(1, allowed.number // ranks), allowed.why + share)


def asked_threads(environment: Mapping[str, str] = os.environ, system: Path = SYSTEM) -> int | None:
    """The user's OMP_NUM_THREADS, if it is set. torchrun sets it to 1 for several processes where the user has not.

    Which of the two it was shows in the environment with which torchrun, a rank's parent, was itself started. DeepSpeed's
    launcher sets it with --bind_cores_to_rank alone, to the cores that it has bound.
    """
    value = environment.get(OMP, "").partition(",")[0].strip()  # of a list, the outermost loop's
    if not value.isdecimal() or not int(value):
        return None
    if value == "1" and "TORCHELASTIC_RUN_ID" in environment and environment.get("LOCAL_WORLD_SIZE", "1") != "1":
        try:
            given = (system / f"proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        except OSError:
            return None
        if not any(each.startswith(f"{OMP}=".encode()) for each in given):
            return None
    return int(value)


def memory(system: Path = SYSTEM) -> dict[str, int]:
    """Bytes of memory, all and available; the limits of this process's control groups count too.

    What a group uses includes the page cache, as of shards that are mapped; the part not lately used is there for the taking.
    """
    whole = psutil.virtual_memory()
    total, free = whole.total, whole.available
    for group in _control_groups("memory", system):
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                most = int((group / limit).read_text())
                used = int((group / usage).read_text()) - _statistics(group).get(cached, 0)
                total, free = min(total, most), min(free, max(0, most - max(0, used)))
    return {"total": total, "free": free}


def _statistics(group: Path) -> dict[str, int]:
    """The figures of a group's memory.stat, in bytes for the most part; none if it has no such file."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
        return {key: int(value) for key, value in (line.split() for line in lines)}
    except (OSError, ValueError):
        return {}


def _quotas(system: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of this process's control group and of those above it, whose limits hold as well."""
    for group in _control_groups("cpu", system):
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            quota, period = (group / "cpu.max").read_text().split()
            yield int(quota) / int(period)
        with contextlib.suppress(OSError, ValueError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # -1 is no limit
                yield int(quota) / int(period)


def _control_groups(controller: str, system: Path) -> Iterator[Path]:
    """The folders of this process's control groups, version 2 and 1, and those above them, as far as they are visible.

    In a container the path may be the host's, which is not there: the root is the container's own.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in (system / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                root = system / "sys/fs/cgroup" / (controller if controllers else "")
                group = root / path.strip("/")
                yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))
