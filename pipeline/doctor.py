"""Is this machine, or are these hosts, fit to run?

    python -m pipeline.doctor                                          this machine
    python -m pipeline.doctor --hostfile FILE --shared data --shared runs      the hosts of a launch, and between them

Every line is OK, WARN or FAIL. The code is 0 if nothing has failed, 1 if something has, 2 for a mistake in the command.
On each host runs a probe, over ssh as in a launch, that answers questions (probe.py); the all-reduce goes through the real
DeepSpeed launcher (allreduce.py). Nothing of torch is loaded here: where it is broken, that is a line.
"""

import argparse
import contextlib
import json
import os
import queue
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import median_low
from types import ModuleType
from typing import TypeVar

from data_prep.errors import Parser, UserError, run_command, some
from pipeline import probe
from pipeline.fitness import FAIL, OK, WARN, Finding, address_of, judge, usual_value
from pipeline.hosts import Host, check_plain, exports_plainly, read_hostfile, ssh_environment
from pipeline.worker import pack

STARTING = 120  # seconds that Python and torch may take to load, from a busy file system
_COLOURS = {OK: "\033[32m", WARN: "\033[33m", FAIL: "\033[31m"}


T = TypeVar("T")


class NoAnswer(Exception):
    """A host does not answer, or that it cannot do what was asked; the message says why in plain words."""


# --- the command ------------------------------------------------------------------------------------------------------


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m pipeline.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--hostfile", type=Path, metavar="FILE", help="lines like gpu-01 slots=8 (default: this machine)"
    )
    parser.add_argument(
        "--shared", type=Path, metavar="DIR", action="append", default=[], help="a folder that all hosts must share"
    )
    parser.add_argument("--size", type=_number, default=64, metavar="MIB", help="of the large tensor (default: 64)")
    parser.add_argument(
        "--timeout", type=_number, default=60, metavar="S", help="a host silent for so long is given up (default: 60)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for machines")
    parser.set_defaults(include="", exclude="", master_addr=None, master_port=None)  # of a launch, see places.py
    # What the doctor itself runs on the hosts.
    parser.add_argument("--probe", metavar="TOKEN", help=argparse.SUPPRESS)
    parser.add_argument("--rank", metavar="TOKEN", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    options = _parser().parse_args()
    if options.probe:
        probe.main(options.probe)
        return 0
    if options.rank:
        from pipeline import allreduce

        allreduce.main(options.rank, options.size)
        return 0
    hosts = read_hostfile(options.hostfile) if options.hostfile else None
    show = _show_json if options.json else _show
    counts: Counter = Counter()
    former = None
    for finding in examine(hosts, options):
        show(finding, former != finding.host)
        former = finding.host
        counts[finding.level] += 1
    if options.json:
        print(json.dumps({"summary": {level: counts[level] for level in (OK, WARN, FAIL)}}), flush=True)
    else:
        print("\n" + _summary(counts), flush=True)
    return 1 if counts[FAIL] else 0


def _show(finding: Finding, first: bool) -> None:
    if first:
        print(f"\n{finding.host or 'together'}", flush=True)
    colour, end = (_COLOURS[finding.level], "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"  {colour}{finding.level:4}{end}  {finding.check:14} {finding.text}", flush=True)


def _show_json(finding: Finding, first: bool) -> None:
    print(json.dumps(asdict(finding)), flush=True)


def _summary(counts: Counter) -> str:
    if counts[FAIL]:
        return f"Not fit to run: {counts[FAIL]} FAIL, {counts[WARN]} WARN, {counts[OK]} OK."
    return f"Fit to run: {counts[OK]} OK" + (f", {counts[WARN]} WARN." if counts[WARN] else ".")


# --- the order of things ----------------------------------------------------------------------------------------------


def examine(hosts: list[Host] | None, options: argparse.Namespace) -> Iterator[Finding]:
    """Every finding, host by host, and last what concerns all of them. Without ``hosts``: of this machine."""
    token = f"doctor-{secrets.token_hex(8)}"
    names = [host.name for host in hosts] if hosts else ["localhost"]
    folders = [str(folder.absolute()) for folder in options.shared]
    probes = {}
    try:
        for name in names:
            probes[name] = Probe(name, probe_command(name if hosts else None, token, options), token, options.timeout)
        facts, lost = everywhere(probes, lambda each: each.ask("facts", folders=folders))
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
    yield from check_all_reduce(hosts, facts, options, token)


def everywhere(probes: dict[str, "Probe"], work: Callable[["Probe"], T]) -> tuple[dict[str, T], dict[str, str]]:
    """What ``work`` returns for all hosts, by name, done at the same time; and for those that give no answer why."""
    done, lost = {}, {}
    with ThreadPoolExecutor(max(1, len(probes))) as pool:
        futures = {name: pool.submit(work, each) for name, each in probes.items()}
    for name, future in futures.items():
        try:
            done[name] = future.result()
        except NoAnswer as error:
            lost[name] = str(error)
    return done, lost


# --- talking to a host ------------------------------------------------------------------------------------------------


def probe_command(host: str | None, token: str, options: argparse.Namespace) -> list[str]:
    """What starts a probe: on ``host`` by ssh, with the options that pdsh will give it, or here."""
    variables = load_places().forwarded(dict(os.environ)) if host else {}
    here = [sys.executable, "-u", "-m", "pipeline.worker", pack("pipeline.doctor", ["--probe", token], variables)]
    if host is None:
        return here
    check_plain("the folder", str(Path.cwd()))
    check_plain("the Python", sys.executable)
    ssh = shlex.split(ssh_environment(options.timeout)["PDSH_SSH_ARGS_APPEND"])
    # What a shell reads there: paths that it reads as they are, as those of DeepSpeed's own line, and one packed word.
    paths = ":".join(filter(None, [str(Path.cwd()), exports_plainly(os.environ).get("PYTHONPATH")]))
    remote = f"cd {Path.cwd()} && PYTHONPATH={paths} exec {' '.join(here)}"
    return ["ssh", f"-oConnectTimeout={min(10, options.timeout)}", *ssh, host, remote]


def load_places() -> ModuleType:
    """pipeline.places, which loads torch. Raises UserError where that is broken."""
    try:
        from pipeline import places
    except (ImportError, OSError) as error:
        why = f"torch cannot be loaded on this machine ({error})"
        raise UserError(f"{why}; run the doctor here without --hostfile, and pip install the project again") from None
    return places


class Probe:
    """A conversation with the probe on the host ``name``."""

    def __init__(self, name: str, command: list[str], token: str, patience: float):
        self.name = name
        self.delay = 0.0  # seconds from the start to the first answer
        self._token, self._patience = token, patience
        self._lines: queue.Queue[str | None] = queue.Queue()  # of its output; None at its end
        self._errors: deque[str] = deque(maxlen=50)
        self._lost = ""  # why there will be no answer any more
        self._started = time.monotonic()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            self._process = subprocess.Popen(command, **pipes, text=True, errors="replace", start_new_session=True)
        except FileNotFoundError:
            raise UserError(f"{command[0]}: is not installed here; install it (Debian: openssh-client)") from None
        self._readers = [
            threading.Thread(target=self._errors.extend, args=[self._process.stderr], daemon=True),
            threading.Thread(target=read_lines, args=[self._process.stdout, self._lines.put], daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def ask(self, question: str, **arguments):
        """The answer to one question (a method of probe.Answers). Raises NoAnswer with the reason in plain words."""
        if self._lost:
            raise NoAnswer(self._lost)
        try:
            self._process.stdin.write(json.dumps({"ask": question, **arguments}) + "\n")
            self._process.stdin.flush()
            reply = None
            patience = self._patience if self.delay else max(self._patience, STARTING)
            deadline = time.monotonic() + patience
            while reply is None:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
                if line is None:
                    raise BrokenPipeError
                reply = read_line(line, self._token)
        except BrokenPipeError:
            self._readers[0].join(2)
            self.close()
            self._lost = plain_words(self._process.returncode, list(self._errors))
        except queue.Empty:
            self.close()
            self._lost = f"silent for {patience} s when asked for {question!r}; does a file system hang there?"
        if self._lost:
            raise NoAnswer(self._lost)
        self.delay = self.delay or time.monotonic() - self._started
        if "error" in reply:
            raise NoAnswer(reply["error"].lower())
        return reply["answer"]

    def close(self) -> None:
        """End the probe: it leaves when its input ends, and is killed if it does not."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def read_lines(pipe: Iterable[str], keep: Callable[[str | None], object]) -> None:
    """Give each line to ``keep``, and None after the last."""
    for line in pipe:
        keep(line)
    keep(None)


def read_line(line: str, token: str) -> dict | None:
    """What a line of a host's output says behind the token; None for whatever else a host prints."""
    try:
        return json.loads(line.partition(f"{token} ")[2])
    except ValueError:
        return None


_REASONS = (
    ("could not resolve hostname", "unknown host: its name does not resolve; mend the hostfile, DNS or ~/.ssh/config"),
    (
        "remote host identification has changed",
        "its ssh host key is not the one in known_hosts; ask why, then ssh-keygen -R",
    ),
    ("host key verification failed", "its ssh host key is not known here; run ssh to it once by hand, or ssh-keyscan"),
    ("permission denied", "ssh there refuses this user's key; run ssh-copy-id"),
    ("too many authentication failures", "ssh offers too many keys; name one by IdentityFile in ~/.ssh/config"),
    ("connection refused", "refused: nothing listens on its ssh port; start sshd there"),
    ("timed out", "time-out: no way there, or it is off; look at the network and its firewall"),
    ("no route to host", "no route: it is off, or in another network"),
    ("network is unreachable", "no route: it is off, or in another network"),
)


def plain_words(code: int, errors: list[str]) -> str:
    """Why ssh, or the probe behind it, has ended, from its exit code and what it wrote on stderr."""
    said = [line.strip() for line in errors if line.strip()]
    text = "\n".join(said).lower()
    if code == 255:  # ssh's own
        for sign, reason in _REASONS:
            if sign in text:
                return reason
    if code == 127:
        return f"no {sys.executable} there; install the project at the same path on every host"
    if "no such file or directory" in text or "can't cd" in text:
        return f"no folder {Path.cwd()} there; start in one that all hosts share"
    if "no module named" in text:
        return f"{said[-1]}; install the project there, in the environment of {sys.executable}"
    last = said[-1].removeprefix("error: ") if said else "nothing was said"
    return f"the probe ended with code {code}: {last}"


# --- between the hosts ------------------------------------------------------------------------------------------------


def check_clocks(probes: dict[str, Probe]) -> list[Finding]:
    """Each clock against the median one; over 1 s apart, times of files, TensorBoard and logs are out of order."""
    measured, lost = everywhere(probes, clock_offset)
    findings = [Finding(name, "clock", FAIL, why) for name, why in lost.items()]
    if len(measured) < 2:
        return findings
    middle = min(measured, key=lambda name: abs(measured[name][0] - median_low([own[0] for own in measured.values()])))
    for name, (offset, error) in measured.items():
        apart, error = offset - measured[middle][0], error + measured[middle][1]
        values = {"seconds": apart, "error": error, "against": middle}
        level, text = OK, f"{abs(apart):.3f} s {'ahead of' if apart > 0 else 'behind'} {middle} (± {error:.3f})"
        if name == middle:
            text = "the others are compared with it"
        elif abs(apart) - error > 1:
            level, text = FAIL, f"{text}: times of files and logs mislead; start chrony or ntpd there"
        elif error > 1:
            level, text = WARN, f"{text}: the answers are too slow to tell"
        findings.append(Finding(name, "clock", level, text, values))
    return findings


def clock_offset(each: Probe, tries: int = 10) -> tuple[float, float]:
    """Seconds by which a host's clock is ahead of ours, and half the fastest round trip, by which that can be wrong."""
    trips = []
    for _ in range(tries):
        sent = time.time()
        there = each.ask("clock")
        back = time.time()
        trips.append(((back - sent) / 2, there - (sent + back) / 2))
    error, offset = min(trips)
    return offset, error


def check_connections(probes: dict[str, Probe], addresses: dict[str, str | None]) -> list[Finding]:
    """Whether each host can connect to each other one on a free port, as ranks do on any."""
    ports, lost = everywhere(probes, lambda each: each.ask("listen"))
    targets = {name: (addresses[name], port) for name, port in ports.items() if addresses[name]}

    def reach(each: Probe) -> dict[str, str]:
        others = {name: target for name, target in targets.items() if name != each.name}
        answers = each.ask("reach", targets=list(others.values()), patience=10)
        return {name: why for name, why in zip(others, answers, strict=True) if why}

    unreached, gone = everywhere({name: each for name, each in probes.items() if name in ports}, reach)
    findings = [Finding(name, "connect", FAIL, why) for name, why in (lost | gone).items()]
    for name, others in unreached.items():
        if others:
            told = [f"{other} ({targets[other][0]} port {targets[other][1]}): {why}" for other, why in others.items()]
            text = f"cannot connect to {some(told, 2, '; ')}; open all ports between the hosts"
            findings.append(Finding(name, "connect", FAIL, text, {"lost": others}))
        else:
            findings.append(Finding(name, "connect", OK, f"to {some([other for other in targets if other != name])}"))
    return findings


_LOCKS = "mount it so that locks are passed on (Lustre: flock, NFS 4: without local_lock)"


def check_shared(probes: dict[str, Probe], folder: str) -> list[Finding]:
    """Whether all hosts see in ``folder`` what each writes there, and a lock that one holds keeps all others out."""
    names = {name: f".doctor-{secrets.token_hex(8)}" for name in probes}
    contents = {file: secrets.token_hex(16) for file in names.values()}

    def write(each: Probe) -> None:
        each.ask("write", folder=folder, name=names[each.name], content=contents[names[each.name]])

    try:
        written, broken = everywhere(probes, write)
        expected = {names[name]: contents[names[name]] for name in written}
        able = {name: probes[name] for name in written}
        seen, lost = everywhere(able, lambda each: each.ask("read", folder=folder, contents=expected, patience=5))
        broken |= lost
        if seen:
            usual = usual_value({name: sorted(files) for name, files in seen.items()})
            for name in seen:
                if name not in usual.hosts:
                    broken[name] = (
                        f"what {some(usual.hosts)} write there is not here: not shared; mount it on all hosts"
                    )
            sharing = {name: probes[name] for name in usual.hosts}
            for name in sharing:
                for other, why in check_lock(sharing, name, folder, names[name]).items():
                    broken.setdefault(other, why)
    finally:
        everywhere(probes, lambda each: each.ask("remove", folder=folder, name=names[each.name]))
    text = f"{folder}: files are seen by all, locks exclude" if len(probes) > 1 else f"{folder}: locks exclude"
    return [
        Finding(name, "shared folder", FAIL, f"{folder}: {broken[name]}")
        if name in broken
        else Finding(name, "shared folder", OK, text)
        for name in probes
    ]


def check_lock(probes: dict[str, Probe], holder: str, folder: str, file: str) -> dict[str, str]:
    """What is wrong, by host, when ``holder`` locks and unlocks a file that all see. One host alone tries it itself."""
    others = {name: each for name, each in probes.items() if name != holder} or probes
    held, broken = everywhere({holder: probes[holder]}, lambda each: each.ask("lock", folder=folder, name=file))
    for locked in (True, False) if held else ():
        got, lost = everywhere(others, lambda each: each.ask("try_lock", folder=folder, name=file))
        broken |= lost
        for name, free in got.items():
            if free and locked:
                broken[name] = f"could lock what {holder} had locked; {_LOCKS}"
            if not free and not locked:
                broken[name] = f"could not lock what {holder} had unlocked; {_LOCKS}"
        _, lost = everywhere({holder: probes[holder]}, lambda each: each.ask("unlock"))
        broken |= lost
    return broken


# --- between the ranks ------------------------------------------------------------------------------------------------


def check_all_reduce(
    hosts: list[Host], facts: dict[str, dict], options: argparse.Namespace, token: str
) -> Iterator[Finding]:
    """Whether all ranks find each other and add up right, how fast, and if not, who is at fault."""
    unfit = [
        name for name in (host.name for host in hosts) if not facts.get(name) or facts[name]["accelerator"]["error"]
    ]
    if unfit or not hosts:
        yield Finding("", "all-reduce", WARN, f"not tried, because of {some(unfit) or 'what has failed above'}")
        return
    places, environment = load_places(), dict(os.environ)
    try:
        if options.hostfile:
            slots = {host.name: list(range(host.slots)) for host in hosts}
            place = places.over_ssh(slots, options, environment, places.forwarded(environment))
        else:
            place = places.this_machine(hosts[0].slots, environment, {})
    except UserError as error:
        yield Finding("", "all-reduce", FAIL, str(error))
        return
    command = place.command("pipeline.doctor", ["--rank", token, "--size", str(options.size)])
    names = [host.name for host in hosts for _ in range(host.slots)]
    yield Ranks(command, place.environment, token, names).follow(options.timeout)


_LOST_PEER = ("closed by peer", "reset by peer", "broken pipe", "remote process exited")


class Ranks:
    """The ranks of an all-reduce, as told by the lines that they print."""

    def __init__(self, command: list[str], environment: dict[str, str], token: str, places: list[str]):
        """``places``: the host of each rank."""
        self._command, self._environment, self._token, self._places = command, environment, token, places
        self._rows: dict[int, dict[str, dict]] = {rank: {} for rank in range(len(places))}  # by stage, in order
        self._others: deque[str] = deque(maxlen=50)  # what else was printed

    def follow(self, patience: float) -> Finding:
        """Run them to their end, or until one or all have made no sign for ``patience`` s. None of them is left here."""
        lines: queue.Queue[str | None] = queue.Queue()
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(
            self._command, **pipes, env=self._environment, text=True, errors="replace", start_new_session=True
        )
        reader = threading.Thread(target=read_lines, args=[process.stdout, lines.put], daemon=True)
        reader.start()
        begin = progress = time.monotonic()  # progress: when any rank came to another stage
        heard = dict.fromkeys(self._rows, begin)  # when, of each rank
        noticed: dict[int, str] = {}  # what ranks say of another one that is gone
        try:
            while True:
                now = time.monotonic()
                if noticed and now > progress + 3:
                    return self._gone(noticed, heard, progress)
                loading = max(patience, STARTING)
                late = any(now > when + (patience if self._rows[rank] else loading) for rank, when in heard.items())
                # A little later than one that is silent: that one is to blame, and not all that wait for it.
                if late or (all(self._rows.values()) and now > progress + patience + 5):
                    return self._stuck(patience, {rank: now - when for rank, when in heard.items()})
                with contextlib.suppress(queue.Empty):
                    if (line := lines.get(timeout=1)) is None:
                        code = process.wait()
                        return self._gone(noticed, heard, progress) if noticed else self._outcome(code)
                    row = read_line(line, self._token)
                    if row is None:
                        self._others.append(line.strip())
                        continue
                    heard[row["rank"]] = time.monotonic()
                    if any(sign in row.get("error", "").lower() for sign in _LOST_PEER):
                        progress = progress if noticed else heard[row["rank"]]
                        noticed[row["rank"]] = row["error"]
                    elif "error" in row:
                        return self._failed([row["rank"]], row["error"])
                    elif "round" in row:
                        progress = heard[row["rank"]]
                    elif "stage" in row:
                        progress = heard[row["rank"]]
                        self._rows[row["rank"]][row["stage"]] = row
                        if row["stage"] == "done":
                            del heard[row["rank"]]
        finally:  # ranks of other hosts end when they see that their connection has
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join(10)  # the last of them, busy or not, is gone when all have closed their output

    def _outcome(self, code: int) -> Finding:
        """What the ranks have told, once all are gone."""
        lost = [rank for rank, rows in self._rows.items() if "done" not in rows]
        if lost:
            told = [line for line in self._others if "error" in line.lower()] or [*filter(None, self._others)]
            why = (told or ["nothing was said"])[-1]
            return self._failed(lost, f"gone after {self._stage(lost[0])}; the launch ended with code {code}: {why}")
        first = self._rows[0]
        values = {stage: row for stage, row in first.items() if "seconds" in row}
        for stage in values:
            for rank, rows in self._rows.items():
                if wrong := rows[stage]["wrong"]:
                    return self._failed([rank], f"{wrong} of {rows[stage]['count']} sums are wrong ({stage})")
        large, small = values["fp32 large"], values["fp32 small"]
        speed = large["bandwidth"] / 1e9
        text = f"{len(self._rows)} ranks, {first['joined']['backend']}: sums exact in bf16 and fp32"
        if len(self._rows) > 1:
            text += (
                f"; {large['count'] / 2**18:.0f} MiB at {speed:.2f} GB/s (bus), latency {small['seconds'] * 1e3:.2f} ms"
            )
        if len(set(self._places)) > 1 and speed < 0.1:
            text += "; slower than Gigabit Ethernet: is it the right interface?"
            return Finding("", "all-reduce", WARN, text, values)
        return Finding("", "all-reduce", OK, text, values)

    def _gone(self, noticed: dict[int, str], heard: dict[int, float], when: float) -> Finding:
        """Ranks have lost their connection to one that has made no sign since."""
        rank, text = next(iter(noticed.items()))
        gone = [other for other in heard if other not in noticed and heard[other] <= when]
        return self._failed(gone, f"gone after {self._stage(gone[0])}") if gone else self._failed([rank], text)

    def _stuck(self, patience: float, silence: dict[int, float]) -> Finding:
        """A rank is silent, for so many s, or all live and none gets on."""
        if silent := [
            rank for rank, seconds in silence.items() if seconds > 3
        ]:  # a rank that lives says so every second
            return self._failed(silent, f"silent for {max(silence.values()):.0f} s, after {self._stage(silent[0])}")
        least = min(len(rows) for rows in self._rows.values())
        late = [rank for rank, rows in self._rows.items() if len(rows) == least]
        text = f"no progress for {patience} s after {self._stage(late[0])}"
        if len(late) < len(self._rows):
            return self._failed(late, f"{text}, while the others wait")
        return self._failed(late, f"{text}; is traffic between them blocked (a firewall, the MTU)?")

    def _failed(self, ranks: list[int], text: str) -> Finding:
        places = dict.fromkeys(self._places[rank] for rank in ranks)
        name = f"rank {some(ranks)} on {some(list(places))}"
        return Finding("", "all-reduce", FAIL, f"{name}: {text}", {"ranks": ranks})

    def _stage(self, rank: int) -> str:
        return repr(list(self._rows[rank])[-1]) if self._rows[rank] else "its start"


if __name__ == "__main__":
    run_command(main)
