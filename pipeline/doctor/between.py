"""The checks between hosts: clocks, connections, and the folders that they share."""

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median_low
from typing import TypeVar

from data_prep.cli import some
from pipeline.doctor.asking import NoAnswer, Probe
from pipeline.doctor.judge import FAIL, OK, WARN, Finding, usual_value

T = TypeVar("T")
_LOCKS = "mount it so that locks are passed on (Lustre: flock, NFS 4: without local_lock)"


def everywhere(probes: dict[str, Probe], work: Callable[[Probe], T]) -> tuple[dict[str, T], dict[str, str]]:
    """Do ``work`` for all hosts at the same time; its results by host, and the reasons of hosts without an answer."""
    done: dict[str, T] = {}
    lost: dict[str, str] = {}
    with ThreadPoolExecutor(max(1, len(probes))) as pool:
        futures = {name: pool.submit(work, each) for name, each in probes.items()}
    for name, future in futures.items():
        try:
            done[name] = future.result()
        except NoAnswer as error:
            lost[name] = str(error)
    return done, lost


def check_clocks(probes: dict[str, Probe]) -> list[Finding]:
    """Compare each clock with the median one; over 1 s apart, times of files, TensorBoard and logs are out of order."""
    measured, lost = everywhere(probes, clock_offset)
    findings = [Finding(name, "clock", FAIL, why) for name, why in lost.items()]
    if len(measured) < 2:
        return findings
    usual = median_low([offset for offset, _ in measured.values()])
    middle = min(measured, key=lambda name: abs(measured[name][0] - usual))
    for name, (offset, own_error) in measured.items():
        apart, error = offset - measured[middle][0], own_error + measured[middle][1]
        values = {"seconds": apart, "error": error, "against": middle}
        side = "ahead of" if apart > 0 else "behind"
        level, text = OK, f"{abs(apart):.3f} s {side} {middle} (± {error:.3f})"
        if name == middle:
            text = "the others are compared with it"
        elif abs(apart) - error > 1:
            level, text = FAIL, f"{text}: times of files and logs mislead; start chrony or ntpd there"
        elif error > 1:
            level, text = WARN, f"{text}: the answers are too slow to tell"
        findings.append(Finding(name, "clock", level, text, values))
    return findings


def clock_offset(probe: Probe, tries: int = 10) -> tuple[float, float]:
    """Seconds by which a host's clock is ahead of ours, and half the fastest round trip, by which that can be wrong."""
    trips = []
    for _ in range(tries):
        sent = time.time()
        there = probe.ask("clock")
        back = time.time()
        trips.append(((back - sent) / 2, there - (sent + back) / 2))
    error, offset = min(trips)
    return offset, error


def check_connections(probes: dict[str, Probe], addresses: dict[str, str | None]) -> list[Finding]:
    """Whether each host can connect to each other one on a free port, as ranks do on any."""
    ports, lost = everywhere(probes, lambda probe: probe.ask("listen"))
    targets = {name: (addresses[name], port) for name, port in ports.items() if addresses[name]}

    def reach(probe: Probe) -> dict[str, str]:
        others = {name: target for name, target in targets.items() if name != probe.name}
        answers = probe.ask("reach", targets=list(others.values()), patience=10)
        return {name: why for name, why in zip(others, answers, strict=True) if why}

    unreached, gone = everywhere({name: probe for name, probe in probes.items() if name in ports}, reach)
    findings = [Finding(name, "connect", FAIL, why) for name, why in (lost | gone).items()]
    for name, others in unreached.items():
        if others:
            ends = [f"{other} ({targets[other][0]} port {targets[other][1]}): {why}" for other, why in others.items()]
            text = f"cannot connect to {some(ends, 2, '; ')}; open all ports between the hosts"
            findings.append(Finding(name, "connect", FAIL, text, {"lost": others}))
        else:
            reached = [other for other in targets if other != name]
            findings.append(Finding(name, "connect", OK, f"to {some(reached)}"))
    return findings


def check_shared(probes: dict[str, Probe], folder: str) -> list[Finding]:
    """Whether all hosts see in ``folder`` what each writes there, and a lock that one holds keeps all others out."""
    names = {name: f".doctor-{secrets.token_hex(8)}" for name in probes}
    contents = {file: secrets.token_hex(16) for file in names.values()}

    def write(probe: Probe) -> None:
        probe.ask("write", folder=folder, name=names[probe.name], content=contents[names[probe.name]])

    def remove(probe: Probe) -> None:
        probe.ask("remove", folder=folder, name=names[probe.name])

    try:
        written, broken = everywhere(probes, write)
        expected = {names[name]: contents[names[name]] for name in written}
        able = {name: probes[name] for name in written}
        seen, lost = everywhere(able, lambda probe: probe.ask("read", folder=folder, contents=expected, patience=5))
        broken |= lost
        if seen:
            usual = usual_value({name: sorted(files) for name, files in seen.items()})
            here = f"what {some(usual.hosts)} write there is not here: not shared; mount it on all hosts"
            broken |= {name: here for name in seen if name not in usual.hosts}
            sharing = {name: probes[name] for name in usual.hosts}
            for name in sharing:
                for other, why in check_lock(sharing, name, folder, names[name]).items():
                    broken.setdefault(other, why)
    finally:
        everywhere(probes, remove)

    fine = "files are seen by all, locks exclude" if len(probes) > 1 else "locks exclude"
    findings = []
    for name in probes:
        level, text = (FAIL, broken[name]) if name in broken else (OK, fine)
        findings.append(Finding(name, "shared folder", level, f"{folder}: {text}"))
    return findings


def check_lock(probes: dict[str, Probe], holder: str, folder: str, file: str) -> dict[str, str]:
    """Faults, by host, when ``holder`` locks and unlocks a file that all see. One host alone tries it itself."""
    others = {name: probe for name, probe in probes.items() if name != holder} or probes
    held, broken = everywhere({holder: probes[holder]}, lambda probe: probe.ask("lock", folder=folder, name=file))
    if not held:
        return broken
    for locked in (True, False):
        got, lost = everywhere(others, lambda probe: probe.ask("try_lock", folder=folder, name=file))
        broken |= lost
        for name, free in got.items():
            if free and locked:
                broken[name] = f"could lock what {holder} had locked; {_LOCKS}"
            if not free and not locked:
                broken[name] = f"could not lock what {holder} had unlocked; {_LOCKS}"
        _, lost = everywhere({holder: probes[holder]}, lambda probe: probe.ask("unlock"))
        broken |= lost
    return broken
