"""Check that this machine, or the hosts of a launch, are ready to run.

    python -m pipeline.doctor                                          this machine
    python -m pipeline.doctor --hostfile FILE --shared data --shared runs      the hosts of a launch, and between them

Every line is OK, WARN or FAIL. The exit code is 0 if nothing has failed, 1 if something has, 2 for a user error.
A probe runs on each host over ssh, as in a launch; the all-reduce goes through the real DeepSpeed launcher. torch is not
loaded by the doctor itself: a broken torch is reported as a line.
"""

import argparse
import json
import secrets
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from data_prep.cli import Parser, run_command, sign_of_life, whole_number
from pipeline.doctor import probe
from pipeline.doctor.all_reduce import check_all_reduce
from pipeline.doctor.asking import Probe, probe_command
from pipeline.doctor.between import check_clocks, check_connections, check_shared, everywhere
from pipeline.doctor.judge import FAIL, OK, WARN, Facts, Finding, address_of, judge
from pipeline.launch.hosts import Host, read_hostfile

COLOURS = {OK: "\033[32m", WARN: "\033[33m", FAIL: "\033[31m"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    number = whole_number(1)
    parser = Parser(
        "python -m pipeline.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--hostfile", type=Path, metavar="FILE", help="lines like gpu-01 slots=8 (default: this machine)"
    )
    parser.add_argument(
        "--shared", type=Path, metavar="DIR", action="append", default=[], help="a folder that all hosts must share"
    )
    parser.add_argument("--size", type=number, default=64, metavar="MIB", help="size of the large tensor (default: 64)")
    parser.add_argument(
        "--timeout", type=number, default=60, metavar="S", help="give up a host silent for S seconds (default: 60)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one object per line")
    parser.set_defaults(include="", exclude="", master_addr=None, master_port=None)  # of a launch, see places.py
    # The doctor's own programs on the hosts: probe.py and rank.py.
    parser.add_argument("--probe", metavar="TOKEN", help=argparse.SUPPRESS)
    parser.add_argument("--rank", metavar="TOKEN", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    options = parser().parse_args()
    if options.probe:
        probe.main(options.probe)
        return 0
    if options.rank:
        from pipeline.doctor import rank  # here, since the doctor works where torch does not

        rank.main(options.rank, options.size)
        return 0

    hosts = read_hostfile(options.hostfile) if options.hostfile else None
    asked = ", ".join(host.name for host in hosts[:3]) + (", …" if len(hosts) > 3 else "") if hosts else "this machine"
    sign_of_life(f"Asking {asked} for versions, memory, devices and network; torch takes seconds to load")
    show = show_json if options.json else show_line
    counts: Counter[str] = Counter()
    host = None
    for finding in examine(hosts, options):
        show(finding, first=finding.host != host)
        host = finding.host
        counts[finding.level] += 1

    if options.json:
        print(json.dumps({"summary": {level: counts[level] for level in (OK, WARN, FAIL)}}), flush=True)
    else:
        print("\n" + summary(counts), flush=True)
    return 1 if counts[FAIL] else 0


def show_line(finding: Finding, first: bool) -> None:
    """Print a finding for people, below its host's name if it is the host's first."""
    if first:
        print(f"\n{finding.host or 'together'}", flush=True)
    level = f"{finding.level:4}"
    if sys.stdout.isatty():
        level = f"{COLOURS[finding.level]}{level}\033[0m"
    print(f"  {level}  {finding.check:14} {finding.text}", flush=True)


def show_json(finding: Finding, first: bool) -> None:
    """Print a finding for machines."""
    print(json.dumps(asdict(finding)), flush=True)


def summary(counts: Counter[str]) -> str:
    """The last line."""
    if counts[FAIL]:
        return f"Not fit to run: {counts[FAIL]} FAIL, {counts[WARN]} WARN, {counts[OK]} OK."
    return f"Fit to run: {counts[OK]} OK" + (f", {counts[WARN]} WARN." if counts[WARN] else ".")


def examine(hosts: list[Host] | None, options: argparse.Namespace) -> Iterator[Finding]:
    """Every finding, host by host, and last those that concern all of them. Without ``hosts``: of this machine."""
    token = f"doctor-{secrets.token_hex(8)}"
    names = [host.name for host in hosts] if hosts else ["localhost"]
    folders = [str(folder.absolute()) for folder in options.shared]
    probes: dict[str, Probe] = {}
    try:
        for name in names:
            probes[name] = Probe(name, probe_command(name if hosts else None, token, options), token, options.timeout)
        facts: dict[str, Facts]
        facts, lost = everywhere(probes, lambda probe: probe.ask("facts", folders=folders))
        findings = [Finding(name, "ssh" if hosts else "probe", FAIL, why) for name, why in lost.items()]
        if hosts:
            findings += [Finding(name, "ssh", OK, f"answers after {probes[name].delay:.1f} s") for name in facts]
        else:
            hosts = [Host("localhost", len(own["accelerator"]["devices"]) or 2) for own in facts.values()]
        findings += judge({host: facts[host.name] for host in hosts if host.name in facts})
        there = {name: probes[name] for name in facts}
        if len(there) > 1:
            findings += check_clocks(there)
            findings += check_connections(there, {name: address_of(own) for name, own in facts.items()})
        for folder in folders:
            findings += check_shared(there, folder)
    finally:
        for each in probes.values():
            each.close()

    for name in names:
        yield from (finding for finding in findings if finding.host == name)
    if len(names) > 1 and not folders:
        yield Finding(
            "", "shared folder", WARN, "none was looked at; name those of data and runs: --shared data --shared runs"
        )
    sign_of_life("Starting an all-reduce through DeepSpeed's launcher")
    yield from check_all_reduce(hosts, facts, options, token)


if __name__ == "__main__":
    run_command(main)
