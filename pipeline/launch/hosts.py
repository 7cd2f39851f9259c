"""The hosts of a run: the hostfile, which slots of it are used, and how they are entered by pdsh and ssh.

A hostfile has one host a line, as DeepSpeed and MPI read it; a ``#`` starts a comment:

    gpu-01 slots=8
    alice@gpu-02 slots=8    # another user name there

DeepSpeed pastes what it is given into a command line that a shell on each host reads. Whatever that shell could read as
anything but itself is rejected here.
"""

import ipaddress
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.cli import UserError, some

PORT = 29500  # DeepSpeed's own, where each node must be given the same without asking another

# The names end up in command lines of pdsh and ssh: nothing that these or a shell would read as more than a name.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_PLAIN = re.compile(r"[\w./@+,=-]*")  # pdsh itself replaces % and what follows it

Slots = dict[str, list[int]]  # host -> numbers of its slots (GPUs)


@dataclass(frozen=True)
class Host:
    """A host as ssh knows it, and how many processes (one for each GPU) it takes."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Host]:
    """The hosts of a hostfile, in its order. Raises UserError with file and line for whatever is not ``NAME slots=N``."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"{path}: cannot be read as a hostfile ({reason}); it holds lines like gpu-01 slots=8"
        ) from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        form = re.fullmatch(r"(\S+)\s+slots=([0-9]+)", text)
        if not form:
            raise UserError(f"{path}:{number}: {text!r}: is not a host; write NAME slots=N, as in gpu-01 slots=8")
        name, slots = form[1], int(form[2])
        if not is_host(name):
            raise UserError(
                f"{path}:{number}: {name!r}: is not a host's name or address; use letters, digits, '.', '-' and '_', "
                "or user@host"
            )
        if slots < 1:
            raise UserError(
                f"{path}:{number}: {name} slots={slots}: must be at least 1; remove the line to leave it out"
            )
        if name in hosts:
            raise UserError(f"{path}:{number}: {name}: is listed twice; give it one line with all its slots")
        hosts[name] = Host(name, slots)
    if not hosts:
        raise UserError(f"{path}: names no host; write one a line, as in gpu-01 slots=8")
    return list(hosts.values())


def choose_slots(hosts: Iterable[Host], include: str = "", exclude: str = "") -> Slots:
    """The slots of ``hosts`` that DeepSpeed's ``--include`` or ``--exclude`` leaves, as in ``a@b:0,2``.

    Raises UserError for both at once, an unknown host or slot, or if nothing is left.
    """
    slots = {host.name: list(range(host.slots)) for host in hosts}
    if include and exclude:
        raise UserError(f"--include {include} and --exclude {exclude}: give one of them")
    option, text = ("--include", include) if include else ("--exclude", exclude)
    addresses = [name for name in slots if ":" in name]
    if text and addresses:
        raise UserError(
            f"{addresses[0]}: an IPv6 address does not go with --include and --exclude; give the host a name"
        )

    named: Slots = {}
    for part in text.split("@") if text else []:
        form = re.fullmatch(r"([^:]+)(?::([0-9]+(?:,[0-9]+)*))?", part)
        if not form:
            raise UserError(
                f"{option} {text}: {part!r}: write HOST or HOST:SLOT,SLOT, and @ between hosts, as in a@b:0,2"
            )
        if form[1] not in slots:
            raise UserError(f"{option} {text}: {form[1]}: not in the hostfile, which has {some(list(slots))}")
        numbers = [int(number) for number in form[2].split(",")] if form[2] else slots[form[1]]
        if wrong := set(numbers) - set(slots[form[1]]):
            raise UserError(f"{option} {text}: {form[1]} has slots 0 to {len(slots[form[1]]) - 1}, not {min(wrong)}")
        named[form[1]] = named.get(form[1], []) + numbers

    if include:
        slots = {name: sorted(set(named.get(name, []))) for name in slots}
    if exclude:
        slots = {name: [number for number in own if number not in named.get(name, [])] for name, own in slots.items()}
    slots = {name: own for name, own in slots.items() if own}
    if not slots:
        raise UserError(f"{option} {text}: leaves no slot; leave something of the hostfile")
    return slots


def is_host(name: str) -> bool:
    """Whether ``name`` is a host name, an IPv4 or IPv6 address, or one of them behind ``user@``."""
    user, at, address = name.rpartition("@")
    if at and not _NAME.fullmatch(user):
        return False
    return bool(_NAME.fullmatch(address)) or _is_ipv6(address)


def _is_ipv6(address: str) -> bool:
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return "%" not in address  # a zone (%eth0) may hold any character


def ssh_environment(timeout: float) -> dict[str, str]:
    """Variables for pdsh: ssh that never asks, and ends by itself ``timeout`` s after the other host has gone silent.

    Options of the user in PDSH_SSH_ARGS_APPEND come before ours, and the first of two counts. A shared connection
    (ControlMaster) would outlive the ssh that uses it, and so would what runs at its other end.
    """
    interval = max(1, int(timeout / 4))
    ours = f"-oBatchMode=yes -oServerAliveInterval={interval} -oServerAliveCountMax=3 -oControlMaster=no -oControlPath=none"
    users = os.environ.get("PDSH_SSH_ARGS_APPEND", "")
    return {"PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": f"{users} {ours}".strip()}


def meet(names: list[str], timeout: float) -> tuple[str, int]:
    """Enter all hosts by pdsh, as the launch will; return the first one's own address and a port that is free there.

    Raises UserError if pdsh is missing, or if a host cannot be entered or lacks this folder or this Python.
    """
    for name in names:
        if "@" in name and _is_ipv6(name.rpartition("@")[2]):
            raise UserError(f"{name}: pdsh takes no user before an IPv6 address; give the host a name in ~/.ssh/config")
    check_plain("the folder", str(Path.cwd()))
    check_plain("the Python", sys.executable)
    if not shutil.which("pdsh"):
        raise UserError("pdsh is not installed: apt-get install pdsh, or run one command on each host with --no-ssh")

    port = "import socket; s = socket.socket(); s.bind((str(), 0)); print(s.getsockname()[1])"
    # pdsh replaces %n by the number of the host.
    line = f"cd {Path.cwd()} && port=$({sys.executable} -c '{port}') && echo ready %n $port $(hostname -I)"
    result = subprocess.run(
        ["pdsh", "-S", "-w", ",".join(names), line],
        env=os.environ | ssh_environment(timeout),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    lines = [line.split() for line in result.stdout.splitlines()]
    ready = {int(words[2]): words[3:] for words in lines if words[1:2] == ["ready"]}  # by number: port, addresses
    absent = [name for number, name in enumerate(names) if number not in ready]
    if absent:
        why = [line for line in result.stderr.splitlines() if not line.startswith("pdsh@")]
        raise UserError(
            f"{some(absent)}: cannot take part ({some(why, 2, '; ') or 'pdsh says nothing'}); `ssh {absent[0]}` must work "
            "without a question and find this folder and this Python there"
        )

    first = ready[0]
    if len(first) < 2:
        raise UserError(f"{names[0]}: `hostname -I` gives no address there; name one with --master-addr")
    return first[1], int(first[0])


def check_plain(what: str, path: str) -> None:
    """Raise UserError if a shell would read ``path`` as anything but itself."""
    if not _PLAIN.fullmatch(path):
        wrong = next(character for character in path if not _PLAIN.fullmatch(character))
        raise UserError(f"{path}: {what} has {wrong!r} in its name, which ssh would pass to a shell; use another")


def check_environment_file() -> None:
    """Raise UserError naming file and line if DeepSpeed would stumble over a .deepspeed_env (or DS_ENV_FILE)."""
    for folder in (Path.home(), Path()):
        path = folder / os.environ.get("DS_ENV_FILE", ".deepspeed_env")
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            name, equals, value = (part.strip() for part in line.partition("="))
            if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise UserError(
                    f"{path}:{number}: {line!r}: DeepSpeed takes lines NAME=VALUE, no comments and no blank ones; remove it"
                )
            wrong = set(value) & set('"\\$`%')
            if wrong:
                raise UserError(
                    f"{path}:{number}: {name}: has {min(wrong)!r} in its value, which a shell on each host would interpret; "
                    f"remove the line and give --env {name}=…"
                )


def exports_plainly(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without the variables that DeepSpeed would paste into a shell's line and whose value is not plain."""
    pasted = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")  # names that begin so; EXPORT_ENVS in its launcher/runner.py
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(pasted) or re.fullmatch(r"[\w@+=:,./-]*", value)
    }
