"""Parts of the doctor's tests: a healthy host's answers, real probes, and file systems that a test mounts for itself."""

import os
import subprocess
import sys

import pytest

from pipeline.doctor import probe
from pipeline.doctor.asking import Probe
from tests.parts.launching import ROOT

TOKEN = "doctor-0123456789abcdef"
GIB = 2**30
ROOM = {"error": None, "total": 100 * GIB, "free": 80 * GIB}
# The answers of a healthy host without a GPU.
HEALTHY = {
    "python": "3.11.7",
    "packages": dict.fromkeys(probe.PACKAGES, "1.0"),
    "unmet": [],
    "code": "ab" * 32,
    "accelerator": {"error": None, "devices": [], "driver": None, "bf16": True, "build": None, "products": ""},
    "cpu": {"cores": 8, "why": "8 cores", "asked_threads": None, "units": "AMX bf16"},
    "compiler": {"name": "g++", "error": None, "triton": None},
    "folders": {"/shared": dict(ROOM)},
    "cache": "/tmp/cache",
    "cache_space": dict(ROOM),
    "memory": {"total": 64 * GIB, "free": 60 * GIB},
    "shared_memory": dict(ROOM),
    "open_files": 65536,
    "locked_memory": 2**23,
    "infiniband": [],
    "interfaces": {
        "lo": {"addresses": ["127.0.0.1", "::1"], "up": True, "speed": 0, "mtu": 65536},
        "eth0": {"addresses": ["10.0.0.1"], "up": True, "speed": 10000, "mtu": 1500},
        "eth1": {"addresses": [], "up": False, "speed": 0, "mtu": 1500},
    },
    "variables": {},
    "name": "a",
    "name_addresses": ["10.0.0.1"],
    "reached_at": "10.0.0.1",
}
H100 = {"name": "NVIDIA H100", "memory": 80 * GIB}


def program(before: str = "", name: str = "a", wrapper: tuple[str, ...] = (), patience: float = 30) -> Probe:
    """A real probe in a process of its own, in which ``before`` runs first."""
    code = f"import os; os.chdir({str(ROOT)!r})\n{before}\nfrom pipeline.doctor import probe\nprobe.main({TOKEN!r})"
    return Probe(name, [*wrapper, sys.executable, "-c", code], TOKEN, patience)


def in_own_mounts(mount: list[str], command: list[str]) -> subprocess.CompletedProcess:
    """``command`` after ``mount``, which nobody else sees. Skips the test where that is not allowed."""
    return subprocess.run([*own_mounts(mount), *command], capture_output=True, text=True, cwd=ROOT)


def own_mounts(mount: list[str]) -> tuple[str, ...]:
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    wrapper = (*unshare, "sh", "-c", f'{" ".join(mount)} && exec "$0" "$@"')
    try:
        allowed = subprocess.run([*wrapper, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("needs root, or leave to make mounts of its own")
    return wrapper
