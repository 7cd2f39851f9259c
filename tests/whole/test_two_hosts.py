"""Two real hosts (namespaces.py): the DeepSpeed launcher over pdsh and ssh, and every way a run on several hosts is cut short.

Whatever happens to it, the run ends in time with a line that says who was lost, and the same command leads to the same student
as one host alone does, bit for bit.
"""

import contextlib
import itertools
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parts import launching, namespaces, task_files
from tests.parts.killed_cells import records
from tests.parts.runs import final_state, untimed
from tests.parts.tiny import make_recipe, make_teacher

MISSING = namespaces.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"two hosts need {MISSING}, which is not here"),
]

STEPS = 200
RANK = "-m pipeline.distill"
TIMEOUT = 10  # --timeout of the runs, in seconds
OPTIONS = [f"steps={STEPS}", "eval_every=100", "checkpoint_every=40", "--timeout", str(TIMEOUT)]
# A folder's name that any shell on the way would trip over, or follow.
TRICKY = "run $(touch executed);touch executed;`touch executed` \"%n\" 'é\\' & *"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with namespaces.TwoHosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_recipe(folder)
    (folder / "hosts").write_text("# two\nalpha slots=1\n\nbeta slots=1  # and its end\n")
    (folder / "inner").mkdir()
    for name in ("tiny.toml", "hosts"):
        shutil.copy(folder / name, folder / "inner")
    (folder / "gamma").write_text("alpha slots=1\ngamma slots=1\n")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return torchrun_alone(folder)


def torchrun_alone(folder: Path) -> Path:
    """The run of two ranks on one host, by torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pipeline.distill"]
    result = subprocess.run(
        [*torchrun, "tiny.toml", "out=alone", *OPTIONS],
        cwd=folder,
        env=launching.environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder / "alone"


class Launch:
    """`python -m pipeline.launch` on a host, started; its output is in the file ``output``."""

    _numbers = itertools.count()

    def __init__(self, hosts, folder: Path, *arguments: str, host: str = "alpha", hostfile: str = "hosts"):
        self.output = folder / f"output-{next(self._numbers)}"
        command = [sys.executable, "-m", "pipeline.launch", "tiny.toml", "--hostfile", hostfile, *OPTIONS, *arguments]
        ssh = {"PDSH_SSH_ARGS_APPEND": hosts.ssh_options(), "GLOO_SOCKET_IFNAME": namespaces.INTERFACE}
        self._outer = subprocess.Popen(
            hosts.command(host, *command, folder=folder),
            cwd=folder,
            env=launching.environment() | ssh,
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
        )
        self._hosts, self._host = hosts, host

    @property
    def alive(self) -> bool:
        return self._outer.poll() is None

    def signal(self, number: int) -> None:
        (inner,) = [p for p in self._hosts.processes(self._host, "pipeline.launch") if p.ppid() == self._outer.pid]
        inner.send_signal(number)

    def wait(self, seconds: float = 600) -> tuple[int, str]:
        """Its exit code and output."""
        try:
            code = self._outer.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"not ended after {seconds} s: {self.output.read_text()}")
        return code, self.output.read_text()


def wait_for_progress(launch: Launch) -> None:
    """Until ``launch`` has logged three steps of its own."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if launch.output.read_text().count("tokens/s") >= 3:
            return
        assert launch.alive, launch.output.read_text()
        time.sleep(0.02)
    pytest.fail(f"no progress: {launch.output.read_text()}")


def newest_step(run: Path) -> int:
    return max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def seconds_to_end(hosts, name: str, word: str) -> float:
    """How long it takes until the last process with ``word`` in its command line has ended on the host."""
    start = time.monotonic()
    while found := hosts.processes(name, word):
        assert time.monotonic() - start < 60, [process.cmdline() for process in found]
        time.sleep(0.1)
    return time.monotonic() - start


def assert_same(run: Path, other: Path) -> None:
    ours, theirs = (final_state(path, STEPS) for path in (run, other))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert untimed(run) == untimed(other)


def test_two_hosts_train_the_student_of_one_and_no_shell_reads_the_arguments(hosts, folder, alone):
    value = "a 'b' $HOME `id` \\ %h\n\tc"
    launch = Launch(hosts, folder, f"out={TRICKY}", "--env", f"WANDERING={value}")
    wait_for_progress(launch)
    for name in namespaces.NAMES:
        (rank,) = hosts.processes(name, RANK)
        assert rank.environ()["WANDERING"] == value
    code, output = launch.wait()
    assert code == 0, output
    heading = "Hosts: alpha, beta. Variables forwarded to them: "
    (forwarded,) = [line.removeprefix(heading) for line in output.splitlines() if line.startswith(heading)]
    assert {"GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS", "WANDERING"} <= set(forwarded.removesuffix(".").split(", "))
    assert "[launch.py" not in output  # DeepSpeed's lines about itself
    assert not (folder / "executed").exists() and not (Path.home() / "executed").exists()
    assert_same(folder / TRICKY, alone)


def test_a_run_that_is_stopped_killed_and_cut_off_comes_to_the_same_student(hosts, folder, alone):
    run = folder / "disturbed"
    again = ("out=disturbed",)

    # SIGTERM to the launch: a checkpoint, and code 75.
    launch = Launch(hosts, folder, *again)
    wait_for_progress(launch)
    launch.signal(signal.SIGTERM)
    code, output = launch.wait(60)
    assert code == 75, output
    assert "Stopping after one of the next steps, with a checkpoint." in output and not (run / "STOP").exists()
    assert 0 < newest_step(run) < STEPS and "error" not in output

    # A host is gone, with all its processes: the other ends in time and names the lost one.
    launch = Launch(hosts, folder, *again)
    wait_for_progress(launch)
    hosts.kill("beta")
    assert seconds_to_end(hosts, "alpha", RANK) < TIMEOUT + 10
    code, output = launch.wait(TIMEOUT + 10)
    assert code == 1 and "rank 1 (host beta" in output, output
    assert f"disturbed has step {newest_step(run)}; the same command continues from there" in output
    hosts.boot("beta")

    # A host is cut off: both end in time, with all that was started, and so does the launcher.
    launch = Launch(hosts, folder, *again)
    wait_for_progress(launch)
    hosts.unplug("beta")
    assert seconds_to_end(hosts, "alpha", RANK) < TIMEOUT + 10
    assert seconds_to_end(hosts, "beta", RANK) < 10  # beta has waited at the same time
    code, output = launch.wait(TIMEOUT + 10)
    assert code == 1 and "rank 1 (host beta" in output, output
    assert seconds_to_end(hosts, "beta", "deepspeed") < 10
    hosts.plug("beta")

    # Ctrl-C, twice: everything ends at once, on both.
    launch = Launch(hosts, folder, *again)
    wait_for_progress(launch)
    launch.signal(signal.SIGINT)
    time.sleep(0.05)  # or the two would be one
    launch.signal(signal.SIGINT)
    code, output = launch.wait(30)
    assert code == 1 and "has ended early" in output, output
    assert max(seconds_to_end(hosts, name, "deepspeed") for name in namespaces.NAMES) < 10

    # To its end, with one command on each host and without ssh.
    node = [*again, "--no-ssh", "--master-addr", namespaces.ADDRESSES[0], "--node-rank"]
    launches = [Launch(hosts, folder, *node, str(rank), host=host) for rank, host in enumerate(namespaces.NAMES)]
    assert [launch.wait()[0] for launch in launches] == [0, 0], [launch.output.read_text() for launch in launches]
    assert_same(run, alone)


def test_rows_travel_between_hosts_that_share_an_evaluation_meanwhile(hosts, tmp_path):
    make_teacher(tmp_path / "teacher", vocab_size=1000)  # far more than what a step reads
    make_recipe(tmp_path)
    (tmp_path / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
    task_files.write_glue(tmp_path / "glue", "rte", train=64, dev=20)
    evaluate = [sys.executable, "-m", "pipeline.evaluate", "--model", "teacher", "--data", "glue", "--task", "rte"]
    evaluate += ["--length", "16", "--batch", "4", "--epochs", "2", "--keep", "predictions", "--seeds", *"1234"]
    variables = [f"{key}={value}" for key, value in launching.environment().items()]
    wanted = torchrun_alone(tmp_path)
    subprocess.run([*evaluate, "--out", "one"], cwd=tmp_path, env=launching.environment(), check=True)

    launch = Launch(hosts, tmp_path, "out=both")
    shared = [
        subprocess.Popen(hosts.command(name, "env", *variables, *evaluate, "--out", "two", folder=tmp_path))
        for name in namespaces.NAMES
    ]
    code, output = launch.wait()
    assert code == 0 and "word embedding travels as rows" in output, output
    assert_same(tmp_path / "both", wanted)
    assert [process.wait(600) for process in shared] == [0, 0]
    one, two = (records(tmp_path / name, "teacher") for name in ("one", "two"))
    assert one == two and len(one) == 8  # cells and predictions


def test_a_host_that_cannot_take_part_is_named_before_anything_starts(hosts, folder):
    code, output = Launch(hosts, folder, "out=none", hostfile="gamma").wait(60)
    assert code == 2 and output.count("\n") == 2, output  # the sign of life and the error
    assert output.splitlines()[1].startswith(
        "error: gamma: cannot take part (gamma: ssh: Could not resolve hostname gamma"
    )
    with hidden(hosts, folder):
        code, output = Launch(hosts, folder / "inner", "out=none").wait(60)
    assert code == 2 and output.count("\n") == 2, output
    assert "error: beta: cannot take part (beta: " in output and "inner: No such file or directory)" in output


def test_a_host_that_fails_at_once_takes_the_others_along(hosts, folder):
    with hidden(hosts, folder / "inner"):  # there is such a folder on beta, but the recipe is not in it
        code, output = Launch(hosts, folder / "inner", "out=none").wait(120)
    assert code == 1, output
    assert "beta: error: tiny.toml: no such recipe file" in output
    assert f"error: 1 of 2 hosts ended {TIMEOUT + 10} s ago; what still runs on others is ended" in output
    assert max(seconds_to_end(hosts, name, "deepspeed") for name in namespaces.NAMES) < 10


@contextlib.contextmanager
def hidden(hosts, folder: Path):
    """An empty folder over ``folder``, on beta alone."""
    subprocess.run(hosts.command("beta", "mount", "-t", "tmpfs", "none", str(folder), folder=Path("/")), check=True)
    try:
        yield
    finally:
        subprocess.run(hosts.command("beta", "umount", "--lazy", str(folder), folder=Path("/")), check=True)
