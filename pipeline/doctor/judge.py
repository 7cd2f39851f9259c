"""Judgements of a host's answers: a line for each thing, OK, WARN or FAIL, with the way out.

Everything here is a function of the answers to probe.Answers.facts; nothing is looked at.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from data_prep.cli import some
from pipeline.doctor.probe import PACKAGES
from pipeline.launch.hosts import Host

OK, WARN, FAIL = "OK", "WARN", "FAIL"
GIB = 2**30

T = TypeVar("T")
Facts = dict[str, Any]  # a host's answer to probe.Answers.facts
Judged = tuple[str, str, dict[str, Any]]  # level, text, values


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at on ``host`` ("" if it concerns all), how it is, and the numbers behind it."""

    host: str
    check: str
    level: str
    text: str
    values: dict[str, Any] = field(default_factory=dict)


# --- one host ---------------------------------------------------------------------------------------------------------


def judge(facts: dict[Host, Facts]) -> list[Finding]:
    """The findings from each host's answers to ``facts``, alone and compared with the others."""
    if not facts:
        return []
    several = len(facts) > 1
    usual = {name: usual_value({h.name: f["packages"][name] for h, f in facts.items()}) for name in PACKAGES}
    usual["Python"] = usual_value({h.name: f["python"] for h, f in facts.items()})
    code = usual_value({h.name: f["code"] for h, f in facts.items()})
    kinds = usual_value({h.name: kind_of(f) for h, f in facts.items()})
    mtu = usual_value({h.name: mtu_of(f) for h, f in facts.items()})
    findings = []
    for host, own in facts.items():
        lines = [
            ("versions", *versions(own, usual)),
            ("code", *same_code(own["code"], code)),
            ("accelerator", *accelerator(own, host.slots, kinds)),
            ("CPU", *processor(own, host.slots)),
            ("compiler", *compiler(own)),
            ("memory", *memory(own, host.slots)),
            ("/dev/shm", *shared_memory(own, host.slots)),
            ("open files", *open_files(own)),
        ]
        if own["infiniband"]:
            lines.append(("locked memory", *locked_memory(own)))
        lines.append(("compile cache", *space(own["cache"], own["cache_space"], fail=0, warn=GIB)))
        lines += [("disk", *space(path, found, fail=GIB, warn=20 * GIB)) for path, found in own["folders"].items()]
        lines += [("network", *network(own, several, mtu)), ("host name", *host_name(own, several))]
        findings += [Finding(host.name, *line) for line in lines]
    return findings


@dataclass(frozen=True)
class Usual(Generic[T]):
    """The value that most hosts have, or the first of them where no value has a majority; and the hosts that have it."""

    value: T
    hosts: list[str]


def usual_value(values: dict[str, T]) -> Usual[T]:
    """The most common of the hosts' values; of equally common ones the first host's."""
    found = list(values.values())
    value = max(found, key=found.count)
    return Usual(value, [host for host, own in values.items() if own == value])


def versions(own: Facts, usual: dict[str, Usual[str | None]]) -> Judged:
    """The same version of each package on all hosts, and one that the project allows."""
    found = {"Python": own["python"], **own["packages"]}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        return FAIL, f"{', '.join(missing)} not installed; pip install the project", found
    other = [
        f"{name} {version}, but {usual[name].value} on {some(usual[name].hosts)}"
        for name, version in found.items()
        if version != usual[name].value
    ]
    if other:
        return FAIL, f"{'; '.join(other)}; install the same everywhere", found
    if own["unmet"]:
        return FAIL, f"{'; '.join(own['unmet'])}; pip install the project again", found
    return OK, ", ".join(f"{name} {version}" for name, version in found.items()), found


def same_code(own: str, usual: Usual[str]) -> Judged:
    """The same source files on all hosts."""
    if own != usual.value:
        text = f"{own[:12]}, but {usual.value[:12]} on {some(usual.hosts)}; put the same source files on every host"
        return FAIL, text, {"sha256": own}
    return OK, own[:12], {"sha256": own}


def kind_of(facts: Facts) -> str:
    """The GPUs of a host, in words."""
    names = Counter(device["name"] for device in facts["accelerator"]["devices"])
    return ", ".join(f"{count} × {name}" for name, count in names.items()) or "no GPU"


def accelerator(own: Facts, slots: int, kinds: Usual[str]) -> Judged:
    """As many GPUs as slots, which torch can use, and of the same kind on all hosts."""
    found = own["accelerator"]
    devices, kind = found["devices"], kind_of(own)
    if found["error"]:
        return FAIL, f"torch and transformers cannot be loaded: {found['error']}; pip install the project again", found
    if not devices and found["driver"]:
        why = "is a CPU build" if not found["build"] else f"(CUDA {found['build']}) cannot use it"
        text = f"an NVIDIA driver {found['driver']} is here, but torch {why}: no GPU; install another torch"
        return FAIL, text, found
    if devices and len(devices) < slots:
        return FAIL, f"{kind}, fewer than the hostfile's slots={slots}; lower slots", found
    if kind != kinds.value:
        # GPUs and CPUs cannot talk to each other; unlike GPUs wait for each other.
        level = FAIL if "no GPU" in (kind, kinds.value) else WARN
        return level, f"{kind}, but {kinds.value} on {some(kinds.hosts)}", found
    if not devices:
        return OK, "no GPU: ranks run on the CPU", found
    memory = min(device["memory"] for device in devices) / GIB
    text = f"{kind}, {memory:.0f} GiB, driver {found['driver'] or '?'}, CUDA {found['build']}"
    if not found["bf16"]:
        return WARN, f"{text}; no bf16 units: set precision = 'fp32' in the recipe", found
    return OK, f"{text}, bf16", found


def processor(own: Facts, slots: int) -> Judged:
    """A core for each thread of each rank, where ranks run on the CPU."""
    found, here = own["cpu"], not own["accelerator"]["devices"]
    quota = "" if found["why"].startswith(f"{found['cores']} core") else f" ({found['why']})"
    text = f"{found['cores']} core{'s' * (found['cores'] != 1)}{quota}, {found['units']}"
    if here and found["cores"] < slots:
        return WARN, f"{text}: fewer than its {slots} ranks, which will wait for each other; lower slots", found
    if here:
        asked = found["asked_threads"]
        each = asked or max(1, found["cores"] // slots)
        text += f"; {each} thread{'s' * (each > 1)} a rank" + (f" (OMP_NUM_THREADS={asked})" if asked else "")
        if each * slots > found["cores"]:
            return WARN, f"{text}: more than the cores; lower OMP_NUM_THREADS or unset it", found
    if here and (products := own["accelerator"].get("products")):
        text += f"; bf16 products: {products}"
    return OK, text, found


def compiler(own: Facts) -> Judged:
    """A C++ compiler, and for GPUs Triton, for torch.compile."""
    found = own["compiler"]
    if found["error"]:
        return WARN, f"{found['error']}; without a compiler runs are slower (Debian: g++, python3-dev)", found
    if own["accelerator"]["devices"] and not found["triton"]:
        return WARN, "Triton is not installed; without it runs are slower: pip install triton", found
    triton = f", Triton {found['triton']}" if found["triton"] else ""
    return OK, f"{found['name']}{triton}", found


def memory(own: Facts, slots: int) -> Judged:
    """Memory for each rank."""
    found = own["memory"]
    each = found["free"] / slots
    text = f"{gib(found['free'])} of {gib(found['total'])} free"
    if each < GIB:
        return FAIL, f"{text}, under 1 GiB for each of {slots} ranks; end other programs or lower slots", found
    if each < 4 * GIB:
        return WARN, f"{text}, under 4 GiB for each of {slots} ranks", found
    return OK, text, found


def shared_memory(own: Facts, slots: int) -> Judged:
    """Room for NCCL's buffers in /dev/shm."""
    found = own["shared_memory"]
    text = found["error"] or f"{gib(found['free'])} free"
    if found["error"] or found["free"] < 2**28:
        # NCCL puts the buffers between the GPUs of one host there, some 10 to 30 MiB for each pair.
        level = FAIL if len(own["accelerator"]["devices"]) > 1 and slots > 1 else WARN
        return level, f"{text}, under 0.25 GiB; give the container more (docker run --shm-size=8g)", found
    return OK, text, found


def open_files(own: Facts) -> Judged:
    """A limit that is high enough."""
    limit, found = own["open_files"], {"limit": own["open_files"]}
    if limit is not None and limit < 1024:
        # A rank holds a connection to every other rank for each group, its libraries and its files.
        level = FAIL if limit < 256 else WARN
        return level, f"{limit} allowed; raise it (ulimit -n 65536)", found
    return OK, "no limit" if limit is None else f"{limit} allowed", found


def locked_memory(own: Facts) -> Judged:
    """No limit, where there is InfiniBand."""
    limit, found = own["locked_memory"], {"limit": own["locked_memory"], "infiniband": own["infiniband"]}
    if limit is not None:
        text = f"{gib(limit)} allowed; {', '.join(own['infiniband'])} needs no limit (memlock unlimited in limits.conf)"
        return FAIL, text, found
    return OK, f"no limit, for {', '.join(own['infiniband'])}", found


def space(path: str, found: Facts, fail: int, warn: int) -> Judged:
    """Free space on a disk; below ``warn`` and ``fail`` bytes it is too little."""
    if found["error"]:
        level = FAIL if fail else WARN
        return level, f"{path}: cannot be written to ({found['error'].lower()})", found
    text = f"{path}: {gib(found['free'])} free"
    for level, least in ((FAIL, fail), (WARN, warn)):
        if found["free"] < least:
            return level, f"{text}, under {gib(least)}; free some", found
    return OK, text, found


def gib(size: float) -> str:
    """A size in GiB, or in MiB if it is small."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 or not size else f"{size / 2**20:.1f} MiB"


# --- the network of one host ------------------------------------------------------------------------------------------


def address_of(own: Facts) -> str | None:
    """The address where ranks will be found: that of GLOO_SOCKET_IFNAME, or of our ssh connection, or the first there is."""
    named = own["variables"].get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    chosen = own["interfaces"].get(named)
    if chosen and chosen["addresses"]:
        first: str = chosen["addresses"][0]
        return first

    up = [interface for interface in own["interfaces"].values() if interface["up"]]
    found = [address for interface in up for address in interface["addresses"] if not is_loopback(address)]
    reached = (own["reached_at"] or "").removeprefix("::ffff:")
    if reached in found:
        return reached
    return found[0] if found else None


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def interface_of(own: Facts) -> str | None:
    """The interface of the host's address."""
    address = address_of(own)
    return next((name for name, each in own["interfaces"].items() if address in each["addresses"]), None)


def mtu_of(own: Facts) -> int | None:
    """The MTU of that interface."""
    name = interface_of(own)
    return own["interfaces"][name]["mtu"] if name else None


def network(own: Facts, several: bool, mtu: Usual[int | None]) -> Judged:
    """The interface that ranks will use: named right, up, with an address, and with the others' MTU."""
    there = own["interfaces"]
    for variable, value in own["variables"].items():
        for wanted in chosen_interfaces(variable, value):
            fitting = [there[name] for name in there if fits(variable, wanted, name)]
            if not fitting:
                return FAIL, f"{variable}={value}: there is no interface {wanted}; here are {', '.join(there)}", there
            if not any(interface["up"] and interface["addresses"] for interface in fitting):
                return FAIL, f"{variable}={value}: {wanted} is down or has no address", there

    name = interface_of(own)
    if name is None:
        if several:
            return FAIL, f"no interface that is up has an address that others can reach: {', '.join(there)}", there
        return OK, "none but the loopback", there
    state = there[name]
    speed = f", {state['speed'] / 1000:g} Gbit/s" if state["speed"] > 0 else ""
    address = (state["addresses"] or ["without an address"])[0]
    text = f"{name} {address}{speed}, MTU {state['mtu']}"
    text += "".join(f", {variable}={value}" for variable, value in own["variables"].items())
    if several and state["mtu"] != mtu.value:
        return WARN, f"{text}, but MTU {mtu.value} on {some(mtu.hosts)}: large packets may be lost; set the same", there
    return OK, text, there


def chosen_interfaces(variable: str, value: str) -> list[str]:
    """The interface names in a variable of gloo or NCCL; none where NCCL's excludes some (^docker0)."""
    if variable.startswith("NCCL"):
        if value.startswith("^"):
            return []
        value = value.removeprefix("=")
    return [name.partition(":")[0] for name in value.split(",") if name]


def fits(variable: str, name: str, interface: str) -> bool:
    """Whether ``name`` in the variable means ``interface``: to gloo it is the whole name, to NCCL its beginning."""
    return interface.startswith(name) if variable.startswith("NCCL") else interface == name


def host_name(own: Facts, several: bool) -> Judged:
    """A name that resolves to what others can reach: gloo binds there, unless GLOO_SOCKET_IFNAME names an interface."""
    name, addresses = own["name"], own["name_addresses"]
    found = {"name": name, "addresses": addresses}
    text = f"{name} is {some(addresses, 2)}" if addresses else f"{name} does not resolve"
    if not several or (addresses and not is_loopback(addresses[0])):
        return OK, text, found
    if "GLOO_SOCKET_IFNAME" in own["variables"]:
        return OK, f"{text}; GLOO_SOCKET_IFNAME is used", found
    remedy = f"mend /etc/hosts there, or set GLOO_SOCKET_IFNAME={interface_of(own)}"
    return FAIL, f"{text}: others cannot reach that; {remedy}", found
