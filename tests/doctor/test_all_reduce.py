"""The doctor's all-reduce: sums known by hand, real ranks of which one fails, and lines that a launch prints."""

import contextlib
import os
import re
import socket
import sys
from argparse import Namespace
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.doctor import all_reduce
from pipeline.doctor.all_reduce import Ranks, check_all_reduce
from pipeline.doctor.judge import FAIL, OK, WARN, Finding
from pipeline.doctor.rank import addend, bus_bandwidth, total
from pipeline.launch.hosts import Host
from tests.parts.doctored import HEALTHY, TOKEN
from tests.parts.launching import environment


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("world", [1, 2, 3, 8, 300])
def test_addends_come_to_the_known_sum_in_any_order(world, dtype):
    parts = [addend(rank, world, 5000, dtype) for rank in range(world)]
    right = total(5000, dtype)
    for order in (parts, parts[::-1]):
        assert torch.equal(sum(order), right)
    assert right.unique().tolist() == [2, 4, 6, 8, 10, 12, 14]
    if world > 1:  # and without any one of them it is wrong
        assert all(not torch.equal(right - part, right) for part in parts)


def test_bus_bandwidth_is_what_a_link_carries():
    assert bus_bandwidth(100, 2.0, 2) == 50
    assert bus_bandwidth(100, 2.0, 4) == 75
    assert bus_bandwidth(100, 2.0, 1) == 0


def ranks(before: str = "", patience: float = 60) -> Finding:
    """The finding of two real ranks, on hosts a and b, of an all-reduce of 1 MiB, in which ``before`` runs first.

    ``rank`` is known to it. They are started as a launcher starts them, but neither is ended when the other has.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    code = f"import os, torch, torch.distributed as dist\nrank = int(os.environ['RANK'])\n{before}\n"
    code += f"from pipeline.doctor.rank import main\nmain({TOKEN!r}, 1)"
    start = (
        "import os, subprocess, sys\n"
        "each = [subprocess.Popen([sys.executable, '-c', sys.argv[1]], env=os.environ | {'RANK': str(r), 'LOCAL_RANK': "
        "str(r)}) for r in range(2)]\n"
        "sys.exit(max(one.wait() for one in each))"
    )
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", start, code]
    return Ranks(command, environment() | variables, TOKEN, ["a", "b"]).follow(patience)


_AT_ALL_REDUCE = """
real = dist.all_reduce
def all_reduce(tensor):
    if rank == 1 and len(tensor) > 1000: {}
    real(tensor)
dist.all_reduce = all_reduce
"""


@pytest.mark.slow
def test_a_wrong_sum_is_red_and_counted():
    found = ranks(_AT_ALL_REDUCE.format("tensor[7:9] += 1"))
    assert (found.level, found.text) == (FAIL, "rank 0 on a: 2 of 524288 sums are wrong (bf16 large)")


@pytest.mark.slow
def test_a_rank_that_dies_is_named_and_not_the_one_that_notices():
    found = ranks(_AT_ALL_REDUCE.format("os.kill(os.getpid(), 9)"))
    assert (found.level, found.text) == (FAIL, "rank 1 on b: gone after 'bf16 small'")


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_in_time_and_ended(monkeypatch):
    monkeypatch.setattr(all_reduce, "STARTING", 120)
    found = ranks(_AT_ALL_REDUCE.format("os.kill(os.getpid(), 19)"), patience=8)  # SIGSTOP
    assert found.level == FAIL and re.fullmatch("rank 1 on b: silent for [89] s, after 'bf16 small'", found.text)
    for process in psutil.process_iter():
        try:
            assert TOKEN not in " ".join(process.cmdline()), process.cmdline()
        except psutil.Error:
            continue


@pytest.mark.slow
def test_whom_a_rank_has_started_is_gone_too_however_long_that_takes(monkeypatch, tmp_path):
    monkeypatch.setattr(all_reduce, "STARTING", 8)  # of wall-clock time, for two starts of Python
    child = f"import os, time; d = b'1' * 2**29; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    found = Ranks([sys.executable, "-c", code], dict(os.environ), TOKEN, ["a"]).follow(1)
    assert found.level == FAIL and (tmp_path / "pid").exists()
    with contextlib.suppress(OSError):  # its memory, half a GiB, is freed before its files are closed
        assert not list(Path("/proc", (tmp_path / "pid").read_text(), "fd").iterdir())


LINES = """
import json, sys, time
def say(rank, **row): print("noise", f"{}", json.dumps({{"rank": rank, **row}}), flush=True)
"""


def lines(script: str, patience: float = 3) -> Finding:
    """The finding from what a launch with two ranks prints."""
    code = LINES.format(TOKEN) + script
    return Ranks([sys.executable, "-c", code], dict(os.environ), TOKEN, ["a", "b"]).follow(patience)


@pytest.mark.slow
def test_ranks_that_live_and_get_nowhere_are_reported(monkeypatch):
    monkeypatch.setattr(all_reduce, "STARTING", 0)
    beat = "\nwhile True: time.sleep(0.2); say(0, alive=True); say(1, alive=True)"
    both = "say(0, stage='started'); say(1, stage='started'); say(1, round=1)"
    assert lines(both + beat).text == (
        "rank 0, 1 on a, b: no progress for 3 s after 'started'; is traffic between them blocked (a firewall, the MTU)?"
    )
    assert lines(both + "; say(0, stage='joined')" + beat).text == (
        "rank 1 on b: no progress for 3 s after 'started', while the others wait"
    )


@pytest.mark.slow
def test_a_rank_that_never_starts_is_named(monkeypatch):
    monkeypatch.setattr(all_reduce, "STARTING", 4)
    found = lines("say(0, stage='started')\nwhile True: time.sleep(0.2); say(0, alive=True)")
    assert found.text == "rank 1 on b: silent for 4 s, after its start"


def test_a_ranks_own_error_is_reported():
    found = lines("say(0, error='Connection closed by peer'); say(1, error='unable to find interface'); time.sleep(60)")
    assert (found.level, found.text) == (FAIL, "rank 1 on b: unable to find interface")


def test_a_launch_that_fails_is_reported_with_its_last_error():
    found = lines("print('RuntimeError: no slot here'); print('bye'); sys.exit(5)")
    assert found.text == (
        "rank 0, 1 on a, b: gone after its start; the launch ended with code 5: RuntimeError: no slot here"
    )
    assert lines("sys.exit(5)").text.endswith("the launch ended with code 5: nothing was said")


def test_a_launch_that_cannot_start_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nosuch")
    monkeypatch.setenv("HOME", str(tmp_path))
    options = Namespace(hostfile=tmp_path / "hosts", timeout=5, size=1, master_addr=None, master_port=None)
    [found] = check_all_reduce([Host("a", 1)], {"a": HEALTHY}, options, TOKEN)
    assert found.level == FAIL and found.text.startswith("pdsh is not installed: ")


def test_a_slow_network_between_hosts_is_warned_of():
    script = """
for rank in (0, 1):
    say(rank, stage="started"); say(rank, stage="joined", backend="gloo")
    for stage in ("bf16 small", "bf16 large", "fp32 small", "fp32 large"):
        say(rank, stage=stage, count=2**18, wrong=0, seconds=1e-3, bandwidth=0.09e9)
    say(rank, stage="done")
"""
    found = lines(script)
    assert found.level == WARN
    assert found.text == (
        "2 ranks, gloo: sums exact in bf16 and fp32; 1 MiB at 0.09 GB/s (bus), latency 1.00 ms; "
        "slower than Gigabit Ethernet: is it the right interface?"
    )
    assert lines(script.replace("0.09e9", "0.2e9")).level == OK
