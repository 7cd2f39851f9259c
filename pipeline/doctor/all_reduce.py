"""The check with ranks: an all-reduce through the real launcher, followed by the lines that its ranks print."""

import argparse
import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from data_prep.cli import UserError, some
from pipeline.doctor.asking import STARTING, load_places, read_line, read_lines
from pipeline.doctor.judge import FAIL, OK, WARN, Facts, Finding
from pipeline.launch.hosts import Host

Row = dict[str, Any]  # what a rank prints

# How libraries say that another rank is gone.
_LOST_PEER = ("closed by peer", "reset by peer", "broken pipe", "remote process exited")


def check_all_reduce(
    hosts: list[Host], facts: dict[str, Facts], options: argparse.Namespace, token: str
) -> Iterator[Finding]:
    """Whether all ranks find each other and add up right, how fast, and if not, which is at fault."""
    unfit = [host.name for host in hosts if not facts.get(host.name) or facts[host.name]["accelerator"]["error"]]
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


class Ranks:
    """The ranks of an all-reduce, known by the lines that they print."""

    def __init__(self, command: list[str], environment: dict[str, str], token: str, places: list[str]):
        """``places``: the host of each rank."""
        self._command, self._environment, self._token, self._places = command, environment, token, places
        self._rows: dict[int, dict[str, Row]] = {rank: {} for rank in range(len(places))}  # by stage, in order
        self._heard: dict[int, float] = {}  # when a rank that is not done was heard last
        self._progress = 0.0  # when any rank came to another stage
        self._noticed: dict[int, str] = {}  # what ranks say of another one that is gone
        self._others: deque[str] = deque(maxlen=50)  # what else was printed

    def follow(self, patience: float) -> Finding:
        """Run them to their end, or until one or all have made no sign for ``patience`` s. None of them is left here."""
        lines: queue.Queue[str | None] = queue.Queue()
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        reader = threading.Thread(target=read_lines, args=[process.stdout, lines.put], daemon=True)
        reader.start()
        self._progress = time.monotonic()
        self._heard = dict.fromkeys(self._rows, self._progress)
        try:
            while True:
                finding = self._overdue(patience)
                if finding:
                    return finding
                try:
                    line = lines.get(timeout=1)
                except queue.Empty:
                    continue
                if line is None:
                    code = process.wait()
                    return self._gone() if self._noticed else self._outcome(code)
                finding = self._take(line)
                if finding:
                    return finding
        finally:  # ranks of other hosts end when they see that their connection has
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join(10)  # the last of them, busy or not, is gone when all have closed their output

    def _overdue(self, patience: float) -> Finding | None:
        """The finding if a sign of life, or progress, is overdue now."""
        now = time.monotonic()
        if self._noticed and now > self._progress + 3:
            return self._gone()
        loading = max(patience, STARTING)
        limits = {rank: patience if rows else loading for rank, rows in self._rows.items()}
        silent = any(now > when + limits[rank] for rank, when in self._heard.items())
        # A little later than one that is silent: that one is to blame, and not all that wait for it.
        if silent or (all(self._rows.values()) and now > self._progress + patience + 5):
            return self._stuck(patience, {rank: now - when for rank, when in self._heard.items()})
        return None

    def _take(self, line: str) -> Finding | None:
        """Keep what a line says; the finding if it is a rank's own error."""
        row = read_line(line, self._token)
        if row is None:
            self._others.append(line.strip())
            return None
        rank, error, now = row["rank"], row.get("error"), time.monotonic()
        self._heard[rank] = now
        if error and any(sign in error.lower() for sign in _LOST_PEER):
            if not self._noticed:
                self._progress = now
            self._noticed[rank] = error
        elif error is not None:
            return self._failed([rank], error)
        elif "round" in row:
            self._progress = now
        elif "stage" in row:
            self._progress = now
            self._rows[rank][row["stage"]] = row
            if row["stage"] == "done":
                del self._heard[rank]
        return None

    def _outcome(self, code: int) -> Finding:
        """The finding from the ranks' reports, once all are gone."""
        lost = [rank for rank, rows in self._rows.items() if "done" not in rows]
        if lost:
            said = [line for line in self._others if line]
            errors = [line for line in said if "error" in line.lower()]
            why = (errors or said or ["nothing was said"])[-1]
            return self._failed(lost, f"gone after {self._stage(lost[0])}; the launch ended with code {code}: {why}")

        first = self._rows[0]
        values = {stage: row for stage, row in first.items() if "seconds" in row}
        for stage in values:
            for rank, rows in self._rows.items():
                row = rows[stage]
                if row["wrong"]:
                    return self._failed([rank], f"{row['wrong']} of {row['count']} sums are wrong ({stage})")

        large, small = values["fp32 large"], values["fp32 small"]
        speed = large["bandwidth"] / 1e9
        text = f"{len(self._rows)} ranks, {first['joined']['backend']}: sums exact in bf16 and fp32"
        if len(self._rows) > 1:
            size, latency = f"{large['count'] / 2**18:.0f} MiB", f"{small['seconds'] * 1e3:.2f} ms"
            text += f"; {size} at {speed:.2f} GB/s (bus), latency {latency}"
        if len(set(self._places)) > 1 and speed < 0.1:
            text += "; slower than Gigabit Ethernet: is it the right interface?"
            return Finding("", "all-reduce", WARN, text, values)
        return Finding("", "all-reduce", OK, text, values)

    def _gone(self) -> Finding:
        """The finding where ranks have lost their connection to one that has made no sign since."""
        gone = [rank for rank, when in self._heard.items() if rank not in self._noticed and when <= self._progress]
        if gone:
            return self._failed(gone, f"gone after {self._stage(gone[0])}")
        rank, text = next(iter(self._noticed.items()))
        return self._failed([rank], text)

    def _stuck(self, patience: float, silence: dict[int, float]) -> Finding:
        """The finding where a rank is silent, for so many s, or all live and none makes progress."""
        silent = [rank for rank, seconds in silence.items() if seconds > 3]  # a rank that lives says so every second
        if silent:
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
        stages = list(self._rows[rank])
        return repr(stages[-1]) if stages else "its start"
