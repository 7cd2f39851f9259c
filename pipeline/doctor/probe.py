"""The probe: a program on each host that answers the doctor's questions, one JSON object a line.

A question is {"ask": NAME, …} on its input, an answer ``TOKEN {"answer": …}`` or ``TOKEN {"error": …}`` on its output; by
the token, which the doctor has chosen, its lines differ from whatever else a host prints. It ends when its input does.
"""

import contextlib
import fcntl
import getpass
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import psutil

from data_prep.machine import asked_threads, cores, memory

ROOT = Path(__file__).resolve().parent.parent.parent
SYSTEM = Path("/")  # where /proc and /sys are
PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy")
# The variables that decide which network interface a rank takes.
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def serve(token: str, questions: TextIO, answers: TextIO) -> None:
    """Answer each line of ``questions`` until they end."""
    host = Answers(token)
    for line in questions:
        question = json.loads(line)
        try:
            reply = {"answer": getattr(host, question.pop("ask"))(**question)}
        except OSError as error:
            reply = {"error": error.strerror or str(error)}
        print(f"{token} {json.dumps(reply)}", file=answers, flush=True)


class Answers:
    """One method for each question. Between questions it holds a listening port and a lock."""

    def __init__(self, token: str):
        self._token = token
        self._locked: TextIO | None = None
        self._listener: socket.socket | None = None

    def facts(self, folders: list[str]) -> dict[str, Any]:
        """Everything that can be found out without another host."""
        return {
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
            "unmet": list(unmet_requirements()),
            "code": code_hash(),
            "accelerator": accelerator(),
            "cpu": processor(),
            "compiler": compiler(),
            "folders": {folder: free_space(Path(folder)) for folder in folders},
            "cache": str(compile_cache()),
            "cache_space": free_space(_existing(compile_cache())),
            "memory": memory(SYSTEM),
            "shared_memory": free_space(Path("/dev/shm")),
            "open_files": _limit(resource.RLIMIT_NOFILE),
            "locked_memory": _limit(resource.RLIMIT_MEMLOCK),
            "infiniband": sorted(path.name for path in (SYSTEM / "sys/class/infiniband").glob("*")),
            "interfaces": interfaces(),
            "variables": {name: os.environ[name] for name in INTERFACE_VARIABLES if os.environ.get(name)},
            "name": socket.gethostname(),
            "name_addresses": addresses_of(socket.gethostname()),
            # Of an ssh connection, the address at which this host was reached: "client port server port".
            "reached_at": (os.environ.get("SSH_CONNECTION", "").split() + [None] * 4)[2],
        }

    def clock(self) -> float:
        return time.time()

    def listen(self, port: int = 0) -> int:
        """Greet with the token whoever connects to ``port`` (0: any free one), which is returned."""
        if self._listener:
            self._listener.close()
        if socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            self._listener = socket.create_server(("", port))
        threading.Thread(target=self._greet, args=[self._listener], daemon=True).start()
        chosen: int = self._listener.getsockname()[1]
        return chosen

    def reach(self, targets: list[tuple[str, int]], patience: float) -> list[str | None]:
        """For each address and port None, or why the listener there does not answer within ``patience`` s."""
        with ThreadPoolExecutor(64) as pool:
            return list(pool.map(lambda target: self._why_not(target[0], target[1], patience), targets))

    def write(self, folder: str, name: str, content: str) -> None:
        (Path(folder) / name).write_text(content)

    def read(self, folder: str, contents: dict[str, str], patience: float) -> list[str]:
        """The names of the files that are there with these contents; over a network a file may take a moment to appear."""
        deadline = time.monotonic() + patience
        while True:
            seen = []
            for name, content in contents.items():
                with contextlib.suppress(FileNotFoundError):
                    if (Path(folder) / name).read_text() == content:
                        seen.append(name)
            if len(seen) == len(contents) or time.monotonic() > deadline:
                return seen
            time.sleep(0.1)

    def lock(self, folder: str, name: str) -> None:
        """Lock the file as data_prep.locks does, until ``unlock``. Raises OSError if another has it."""
        self._locked = (Path(folder) / name).open("r+")
        fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def try_lock(self, folder: str, name: str) -> bool:
        """Whether the lock was free; it is given back at once."""
        with (Path(folder) / name).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def unlock(self) -> None:
        if self._locked:
            self._locked.close()
            self._locked = None

    def remove(self, folder: str, name: str) -> None:
        (Path(folder) / name).unlink(missing_ok=True)

    def _greet(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                with listener.accept()[0] as connection:
                    connection.sendall(self._token.encode())

    def _why_not(self, address: str, port: int, patience: float) -> str | None:
        try:
            with socket.create_connection((address, port), timeout=patience) as connection:
                greeting = connection.makefile().read(len(self._token))
        except TimeoutError:
            return f"no answer within {patience:.0f} s"
        except OSError as error:
            return (error.strerror or str(error)).lower()
        return None if greeting == self._token else "something else answers there"


# --- software ---------------------------------------------------------------------------------------------------------


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def unmet_requirements() -> Iterator[str]:
    """The installed project's requirements that its packages do not meet; none where it is not installed as a package."""
    try:
        wanted = importlib.metadata.requires("minilm-distil") or []
    except importlib.metadata.PackageNotFoundError:
        return
    from packaging.requirements import Requirement  # here, since the doctor works where packages are missing

    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found = _version(requirement.name)
            if found is None or not requirement.specifier.contains(found, prereleases=True):
                yield f"{requirement.name} {found or 'is missing'} (needs {requirement.specifier})"


def code_hash() -> str:
    """The hash of the project's own source files, by name and content."""
    digest = hashlib.sha256()
    for folder in ("data_prep", "ds_configs", "pipeline"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".toml", ".json"):
                digest.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def compiler() -> dict[str, Any]:
    """The C++ compiler that torch.compile would call, tried on the headers its programs include; and Triton's version."""
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    error = None if path else f"{name} is not installed"
    if path:
        include = sysconfig.get_paths()["include"]
        source = "#include <Python.h>\n#include <omp.h>\nint cores() { return omp_get_max_threads(); }\n"
        with tempfile.NamedTemporaryFile(suffix=".so") as output:
            command = [path, "-shared", "-fPIC", "-fopenmp", f"-I{include}", "-x", "c++", "-", "-o", output.name]
            result = subprocess.run(command, input=source, capture_output=True, text=True)
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
            error = f"{name}: {(lines or ['it failed'])[0].strip()}"
    return {"name": name, "error": error, "triton": _version("triton")}


# --- hardware ---------------------------------------------------------------------------------------------------------


def accelerator() -> dict[str, Any]:
    """The GPUs that torch sees, their driver, and how fast bf16 products are; ``error`` if torch cannot be loaded."""
    driver = nvidia_driver()
    try:  # here, since a broken torch is an answer
        import torch

        from pipeline.models.arithmetic import has_fast_bf16, rates
    except Exception as error:  # whatever a broken installation raises
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0], "devices": [], "driver": driver}
    devices = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        devices.append({"name": properties.name, "memory": properties.total_memory})
    bf16 = has_fast_bf16(torch.device("cuda" if devices else "cpu"))
    found = {"error": None, "devices": devices, "driver": driver, "bf16": bf16, "build": torch.version.cuda}
    return found | {"products": "" if devices else str(rates())}


def nvidia_driver() -> str | None:
    """The version of the NVIDIA driver, if one is loaded."""
    try:
        first = (SYSTEM / "proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in first.split() if word[0].isdigit() and "." in word), "unknown")


def processor() -> dict[str, Any]:
    """The cores that this process may use, and why; the threads that OMP_NUM_THREADS asks for; the widest units in words."""
    try:
        flags = set((SYSTEM / "proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    names = (
        ("amx_bf16", "AMX bf16"),
        ("avx512_bf16", "AVX-512 bf16"),
        ("avx512f", "AVX-512"),
        ("avx2", "AVX2"),
        ("bf16", "Arm bf16"),
    )
    allowed = cores(SYSTEM)
    return {
        "cores": allowed.number,
        "why": allowed.why,
        "asked_threads": asked_threads(system=SYSTEM),
        "units": next((name for flag, name in names if flag in flags), platform.machine()),
    }


def compile_cache() -> Path:
    """Where torch.compile keeps what it has compiled."""
    if folder := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return Path(folder)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        user = f"uid_{os.getuid()}"
    return Path(tempfile.gettempdir()) / f"torchinductor_{user}"


def free_space(folder: Path) -> dict[str, Any]:
    """Bytes of the folder's file system, all and free; or why nothing can be written there."""
    try:
        space = os.statvfs(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return {"error": error.strerror, "total": 0, "free": 0}
    return {"error": None, "total": space.f_blocks * space.f_frsize, "free": space.f_bavail * space.f_frsize}


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _limit(kind: int) -> int | None:
    """A limit that applies to this process now; None if there is none."""
    soft = resource.getrlimit(kind)[0]
    return None if soft == resource.RLIM_INFINITY else soft


# --- network ----------------------------------------------------------------------------------------------------------


def interfaces() -> dict[str, dict[str, Any]]:
    """Network interfaces by name: IP addresses, whether it is up, Mbit/s (0: not known) and MTU in bytes."""
    families = (socket.AF_INET, socket.AF_INET6)
    addresses = psutil.net_if_addrs()
    found = {}
    for name, state in psutil.net_if_stats().items():
        own = [entry.address for entry in addresses.get(name, []) if entry.family in families]
        found[name] = {
            # An IPv6 address of the link alone has its interface behind a %.
            "addresses": [address for address in own if "%" not in address],
            "up": state.isup,
            "speed": state.speed,
            "mtu": state.mtu,
        }
    return found


def addresses_of(name: str) -> list[str]:
    """The addresses to which ``name`` resolves, IPv4 first."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(entry[4][0]) for entry in found}, key=lambda address: (":" in address, address))


def main(token: str) -> None:
    serve(token, sys.stdin, sys.stdout)
