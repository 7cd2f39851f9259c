"""data_prep.machine: cores, threads and memory as OMP_NUM_THREADS, control groups and the affinity mask allow them."""

import os
import subprocess
import sys

import pytest

from data_prep import __main__ as command
from data_prep import options
from data_prep.machine import Allowed, cores, memory, threads
from tests.parts.launching import ROOT

MANY = set(range(16))


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A function that makes a system of these files, seen by a process whose affinity mask has 16 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: MANY)

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def grouped(path="0::/\n", **files):
    """Files of control groups, by their path below sys/fs/cgroup with _ for each slash and - for each dot."""
    return {"proc/self/cgroup": path} | {
        f"sys/fs/cgroup/{name.replace('__', '/').replace('-', '.')}": text for name, text in files.items()
    }


def old(quota, period):
    return {"cpu__cpu-cfs_quota_us": f"{quota}\n", "cpu__cpu-cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    "files, number, why",
    [
        ({}, 16, "16 cores"),
        (grouped(**{"cpu-max": "max 100000\n"}), 16, "16 cores"),
        (grouped(**{"cpu-max": "150000 100000\n"}), 2, "a CPU quota of 1.5"),
        (grouped(**{"cpu-max": "10000 100000\n"}), 1, "a CPU quota of 0.1"),
        (grouped(**{"cpu-max": "6400000 100000\n"}), 16, "16 cores"),
        # nested: the group above allows less; and less than the root says nothing of
        (grouped("0::/pod/box\n", **{"pod__box__cpu-max": "800000 100000", "pod__cpu-max": "300000 100000"}), 3, None),
        # version 1, as Docker shows it inside: the path is the host's, the files are at the root
        (grouped("4:cpu,cpuacct:/docker/ab\n", **old(200000, 50000)), 4, None),
        (grouped("4:cpu:/\n", **old(-1, 100000)), 16, None),
        # both versions, of which only the first governs the CPU
        (grouped("3:cpu:/\n0::/\n", **old(500000, 100000)), 5, None),
        ({"proc/self/cgroup": "nonsense"}, 16, None),
    ],
)  # fmt: skip
def test_cores_follow_a_quota_rounded_up_and_then_the_mask(system, files, number, why):
    found = cores(system(files))
    assert found.number == number and why in (None, found.why)


QUOTA = grouped(**{"cpu-max": "600000 100000"})
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    "environment, ranks, number, why",
    [
        ({}, 1, 6, "a CPU quota of 6"),
        ({}, 2, 3, "a CPU quota of 6 for 2 ranks"),
        ({}, 8, 1, "a CPU quota of 6 for 8 ranks"),
        ({"OMP_NUM_THREADS": "1"}, 2, 1, "OMP_NUM_THREADS=1"),
        ({"OMP_NUM_THREADS": "12"}, 2, 12, "OMP_NUM_THREADS=12"),
        ({"OMP_NUM_THREADS": "4,2"}, 2, 4, "OMP_NUM_THREADS=4"),
        ({"OMP_NUM_THREADS": ""}, 2, 3, None),
        ({"OMP_NUM_THREADS": "all"}, 2, 3, None),
        ({"OMP_NUM_THREADS": "0"}, 2, 3, None),
        (TORCHRUN, 2, 3, "a CPU quota of 6 for 2 ranks"),  # torchrun's own, by its parent's environment: see below
        (TORCHRUN | {"OMP_NUM_THREADS": "2"}, 2, 2, "OMP_NUM_THREADS=2"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "1"}, 1, 1, "OMP_NUM_THREADS=1"),
    ],
)
def test_threads_are_those_that_the_user_asks_for_or_a_share_of_the_cores(system, environment, ranks, number, why):
    found = threads(ranks, environment, system(QUOTA))
    assert found.number == number and why in (None, found.why)


@pytest.mark.parametrize("given, number", [("PATH=/bin\0HOME=/\0", 3), ("PATH=/bin\0OMP_NUM_THREADS=1\0", 1)])
def test_what_torchrun_sets_by_itself_is_not_the_users_wish(system, given, number):
    """torchrun, a rank's parent, was started without the variable, or with it."""
    files = QUOTA | {f"proc/{os.getppid()}/environ": given}
    assert threads(2, TORCHRUN, system(files)).number == number


@pytest.mark.slow
@pytest.mark.parametrize("asked", [None, "1"])
def test_under_the_real_torchrun_both_are_told_apart(asked):
    """Two ranks; the mask has one core at least, so a share of it is a number that only the reason tells from a wish."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": asked} if asked else {})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    code = "from data_prep.machine import threads; print(threads(2).why, flush=True)"
    script = ["--no-python", sys.executable, "-c", code]
    said = subprocess.run([*torchrun, *script], env=environment, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert said.returncode == 0, said.stderr[-2000:]
    assert said.stdout.count("OMP_NUM_THREADS=1" if asked else "for 2 ranks") == 2


@pytest.mark.parametrize(
    "files",
    [
        grouped("0::/slurm/job\n", **{
            "slurm__job__memory-max": "max\n", "slurm__job__memory-current": "5\n",
            "slurm__memory-max": f"{2**28}\n", "slurm__memory-current": f"{2**27}\n",
        }),
        grouped("9:memory:/box\n", **{
            "memory__box__memory-limit_in_bytes": f"{2**28}", "memory__box__memory-usage_in_bytes": f"{2**27}",
            "memory__memory-limit_in_bytes": f"{2**63 - 4096}", "memory__memory-usage_in_bytes": "1",
        }),
    ],
)  # fmt: skip
def test_a_control_groups_limit_counts_as_memory(system, files):
    assert memory(system(files)) == {"total": 2**28, "free": 2**27}


@pytest.mark.parametrize(
    "files",
    [
        grouped("0::/box\n", **{
            "box__memory-max": f"{2**28}\n", "box__memory-current": f"{2**28}\n",
            "box__memory-stat": f"anon {2**26}\nfile {2**27}\ninactive_file {2**27}\nactive_file 0\n",
        }),
        grouped("9:memory:/box\n", **{
            "memory__box__memory-limit_in_bytes": f"{2**28}", "memory__box__memory-usage_in_bytes": f"{2**28}",
            "memory__box__memory-stat": f"cache {2**27}\ninactive_file 0\ntotal_inactive_file {2**27}\n",
        }),
    ],
)  # fmt: skip
def test_pages_of_files_that_were_read_are_free(system, files):
    assert memory(system(files))["free"] == 2**27


def test_workers_are_as_many_as_the_cores(monkeypatch):
    monkeypatch.setattr(options, "cores", lambda: Allowed(37, "37 cores"))
    assert command.parser().parse_args(["extend", "--out", "corpus"]).workers == 37
