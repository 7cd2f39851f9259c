"""What pipeline.doctor makes of a host's answers: a line for each thing, OK, WARN or FAIL, with the way out.

Everything here is a function of what probe.Answers.facts has said; nothing is looked at.
"""

from collections import Counter
from dataclasses import dataclass, field

from data_prep.errors import some
from pipeline.hosts import Host
from pipeline.probe import PACKAGES

OK, WARN, FAIL = "OK", "WARN", "FAIL"
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at on ``host`` ("" for what concerns all), how it is, and the numbers behind it."""

    host: str
    check: str
    level: str
    text: str
    values: dict = field(default_factory=dict)


# --- one host ---------------------------------------------------------------------------------------------------------


def judge(facts: dict[Host, dict]) -> list[Finding]:
    """What each host's answers to ``facts`` say about it, alone and beside the others."""
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
            *([("locked memory", *locked_memory(own))] if own["infiniband"] else []),
            ("compile cache", *space(own["cache"], own["cache_space"], fail=0, warn=GIB)),
            *(("disk", *space(path, own["folders"][path], fail=GIB, warn=20 * GIB)) for path in own["folders"]),
            ("network", *network(own, several, mtu)),
            ("host name", *host_name(own, several)),
        ]
        findings += [Finding(host.name, *line) for line in lines]
    return findings


@dataclass(frozen=True)
class Usual:
    """What most hosts have, or the first of them if opinions are divided, and which."""

    value: object
    hosts: list[str]


def usual_value(values: dict[str, object]) -> Usual:
    """The most common of the hosts' values; of equally common ones the first host's."""
    value = max(values.values(), key=list(values.values()).count, default=None)
    return Usual(value, [host for host, own in values.items() if own == value])


Judged = tuple[str, str, dict]  # level, text, values


def versions(own: dict, usual: dict[str, Usual]) -> Judged:
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


def same_code(own: str, usual: Usual) -> Judged:
    if own != usual.value:
        text = f"{own[:12]}, but {usual.value[:12]} on {some(usual.hosts)}; put the same source files on every host"
        return FAIL, text, {"sha256": own}
    return OK, own[:12], {"sha256": own}


def kind_of(facts: dict) -> str:
    names = Counter(device["name"] for device in facts["accelerator"]["devices"])
    return ", ".join(f"{count} × {name}" for name, count in names.items()) or "no GPU"


def accelerator(own: dict, slots: int, kinds: Usual) -> Judged:
    found = own["accelerator"]
    devices, kind = found["devices"], kind_of(own)
    if found["error"]:
        return FAIL, f"torch and transformers cannot be loaded: {found['error']}; pip install the project again", found
    if not devices and found["driver"]:
        why = "is a CPU build" if not found["build"] else f"(CUDA {found['build']}) cannot use it"
        return (
            FAIL,
            f"an NVIDIA driver {found['driver']} is here, but torch {why}: no GPU; install another torch",
            found,
        )
    if devices and len(devices) < slots:
        return FAIL, f"{kind}, fewer than the hostfile's slots={slots}; lower slots", found
    if kind != kinds.value:
        # GPUs beside no GPU cannot talk; unlike GPUs wait for each other.
        level = FAIL if "no GPU" in (kind, kinds.value) else WARN
        return level, f"{kind}, but {kinds.value} on {some(kinds.hosts)}", found
    if not devices:
        return OK, "no GPU: ranks run on the CPU", found
    memory = min(device["memory"] for device in devices) / GIB
    text = f"{kind}, {memory:.0f} GiB, driver {found['driver'] or '?'}, CUDA {found['build']}"
    if not found["bf16"]:
        return WARN, f"{text}; no bf16 units: set precision = 'fp32' in the recipe", found
    return OK, f"{text}, bf16", found


def processor(own: dict, slots: int) -> Judged:
    found, here = own["cpu"], not own["accelerator"]["devices"]
    text = f"{found['cores']} cores, {found['units']}"
    if here and found["cores"] < slots:
        return WARN, f"{text}: fewer than its {slots} ranks, which will wait for each other; lower slots", found
    if here and not own["accelerator"].get("bf16"):
        text += "; no bf16 units: products are taken in fp32"
    return OK, text, found


def compiler(own: dict) -> Judged:
    found = own["compiler"]
    if found["error"]:
        return WARN, f"{found['error']}; without a compiler runs are slower (Debian: g++, python3-dev)", found
    if own["accelerator"]["devices"] and not found["triton"]:
        return WARN, "Triton is not installed; without it runs are slower: pip install triton", found
    triton = f", Triton {found['triton']}" if found["triton"] else ""
    return OK, f"{found['name']}{triton}", found


def memory(own: dict, slots: int) -> Judged:
    found = own["memory"]
    each = found["free"] / slots
    text = f"{gib(found['free'])} of {gib(found['total'])} free"
    if each < GIB:
        return FAIL, f"{text}, under 1 GiB for each of {slots} ranks; end other programs or lower slots", found
    if each < 4 * GIB:
        return WARN, f"{text}, under 4 GiB for each of {slots} ranks", found
    return OK, text, found


def shared_memory(own: dict, slots: int) -> Judged:
    found = own["shared_memory"]
    text = found["error"] or f"{gib(found['free'])} free"
    if found["error"] or found["free"] < 2**28:
        # NCCL puts the buffers between the GPUs of one host there, some 10 to 30 MiB for each pair.
        level = FAIL if len(own["accelerator"]["devices"]) > 1 and slots > 1 else WARN
        return level, f"{text}, under 0.25 GiB; give the container more (docker run --shm-size=8g)", found
    return OK, text, found


def open_files(own: dict) -> Judged:
    limit, found = own["open_files"], {"limit": own["open_files"]}
    if limit is not None and limit < 1024:
        # A rank holds a connection to every other rank for each group, its libraries and its files.
        return (FAIL if limit < 256 else WARN), f"{limit} allowed; raise it (ulimit -n 65536)", found
    return OK, "no limit" if limit is None else f"{limit} allowed", found


def locked_memory(own: dict) -> Judged:
    limit, found = own["locked_memory"], {"limit": own["locked_memory"], "infiniband": own["infiniband"]}
    if limit is not None:
        text = f"{gib(limit)} allowed; {', '.join(own['infiniband'])} needs no limit (memlock unlimited in limits.conf)"
        return FAIL, text, found
    return OK, f"no limit, for {', '.join(own['infiniband'])}", found


def space(path: str, found: dict, fail: int, warn: int) -> Judged:
    """``fail`` and ``warn``: the bytes below which the free space is told."""
    if found["error"]:
        return (FAIL if fail else WARN), f"{path}: cannot be written to ({found['error'].lower()})", found
    level = FAIL if found["free"] < fail else WARN if found["free"] < warn else OK
    least = "" if level == OK else f", under {gib(fail if level == FAIL else warn)}; free some"
    return level, f"{path}: {gib(found['free'])} free{least}", found


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 or not size else f"{size / 2**20:.1f} MiB"


# --- the network of one host ------------------------------------------------------------------------------------------


def address_of(own: dict) -> str | None:
    """The address where ranks will be found: that of GLOO_SOCKET_IFNAME, or of our ssh connection, or the first there is."""
    reached = (own["reached_at"] or "").removeprefix("::ffff:")
    chosen = own["interfaces"].get(own["variables"].get("GLOO_SOCKET_IFNAME", "").split(",")[0])
    found = [a for each in own["interfaces"].values() if each["up"] for a in each["addresses"] if not is_loopback(a)]
    for addresses in (chosen["addresses"] if chosen else [], [reached] if reached in found else [], found):
        if addresses:
            return addresses[0]
    return None


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def interface_of(own: dict) -> str | None:
    """The interface of the host's address."""
    address = address_of(own)
    return next((name for name, each in own["interfaces"].items() if address in each["addresses"]), None)


def mtu_of(own: dict) -> int | None:
    name = interface_of(own)
    return own["interfaces"][name]["mtu"] if name else None


def network(own: dict, several: bool, mtu: Usual) -> Judged:
    there = own["interfaces"]
    for variable, value in own["variables"].items():
        for name in chosen_interfaces(variable, value):
            if not any(fits(variable, name, each) for each in there):
                return FAIL, f"{variable}={value}: there is no interface {name}; here are {', '.join(there)}", there
            if not any(fits(variable, name, each) and there[each]["up"] and there[each]["addresses"] for each in there):
                return FAIL, f"{variable}={value}: {name} is down or has no address", there
    name = interface_of(own)
    if name is None:
        if several:
            return FAIL, f"no interface that is up has an address that others can reach: {', '.join(there)}", there
        return OK, "none but the loopback", there
    state = there[name]
    speed = f", {state['speed'] / 1000:g} Gbit/s" if state["speed"] > 0 else ""
    text = f"{name} {(state['addresses'] or ['without an address'])[0]}{speed}, MTU {state['mtu']}"
    text += "".join(f", {variable}={value}" for variable, value in own["variables"].items())
    if several and state["mtu"] != mtu.value:
        return WARN, f"{text}, but MTU {mtu.value} on {some(mtu.hosts)}: large packets may be lost; set the same", there
    return OK, text, there


def chosen_interfaces(variable: str, value: str) -> list[str]:
    """The interface names in a variable of gloo's or NCCL's; none where NCCL's excludes some (^docker0)."""
    if variable.startswith("NCCL"):
        if value.startswith("^"):
            return []
        value = value.removeprefix("=")
    return [name.partition(":")[0] for name in value.split(",") if name]


def fits(variable: str, name: str, interface: str) -> bool:
    """gloo wants the whole name, NCCL only how it begins."""
    return interface.startswith(name) if variable.startswith("NCCL") else interface == name


def host_name(own: dict, several: bool) -> Judged:
    """gloo binds to the address that the host's own name resolves to, unless GLOO_SOCKET_IFNAME names an interface."""
    name, addresses = own["name"], own["name_addresses"]
    found = {"name": name, "addresses": addresses}
    text = f"{name} is {some(addresses, 2)}" if addresses else f"{name} does not resolve"
    if not several or (addresses and not is_loopback(addresses[0])):
        return OK, text, found
    if "GLOO_SOCKET_IFNAME" in own["variables"]:
        return OK, f"{text}; GLOO_SOCKET_IFNAME is used", found
    return (
        FAIL,
        f"{text}: others cannot reach that; mend /etc/hosts there, or set GLOO_SOCKET_IFNAME={interface_of(own)}",
        found,
    )
