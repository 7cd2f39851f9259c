"""pipeline.launch: where processes run, what it refuses before it starts any, and the truth about a run's end."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from deepspeed.launcher import runner

from data_prep.errors import UserError
from pipeline import hosts, launch, places, worker
from tests import launching
from tests.tiny import make_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    make_recipe(folder)
    (folder / "hosts").write_text("a slots=2\nb slots=4\n")
    return folder


@pytest.fixture
def gpus(monkeypatch):
    """As on a machine with so many GPUs."""
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def given(place: places.Place):
    """What the real launcher of DeepSpeed reads from a place's command."""
    return runner.parse_args(place.command("pipeline.distill", ["recipe"])[3:])


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["r", "--hostfil", "f"], "unrecognized arguments: --hostfil f; did you mean --hostfile?"),
        (["r", "--num_gpus", "2"], "unrecognized arguments: --num_gpus 2; see ./run.sh distill --help"),
        (["r", "--node_rank=2"], "unrecognized arguments: --node_rank=2; did you mean --node-rank?"),
        (["r", "--stop-at", "x"], "argument --stop-at: invalid int value: 'x'; see ./run.sh distill --help"),
        ([], "the following arguments are required: recipe; see ./run.sh distill --help"),
        (["r", "--stop-at", "0"], "--stop-at 0: must be at least 1"),
        (["r", "--ranks", "0"], "--ranks 0: must be at least 1"),
        (["r", "--timeout", "1"], "--timeout 1.0: must be at least 5"),
        (["r", "--timeout", "nan"], "--timeout nan: must be at least 5"),
        (["r", "--max-hours", "0"], "--max-hours 0: must be above 0"),
        (["r", "--max-hours", "nan"], "--max-hours nan: must be above 0"),
        (["r", "--hostfile", "f", "--master-port", "65536"], "--master-port 65536: must be a port, from 1 to 65535"),
        (["r", "--hostfile", "f", "--master-port", "0"], "--master-port 0: must be a port"),
        (["r", "--hostfile", "f", "--ranks", "2"], "--ranks 2: with a hostfile its slots say how many"),
        (["r", "--include", "a"], "--include: is for several hosts; name them with --hostfile FILE"),
        (["r", "--no-ssh"], "--no-ssh: is for several hosts"),
        (["r", "--hostfile", "f", "--node-rank", "1"], "--node-rank: goes with --no-ssh"),
        (["r", "--hostfile", "f", "--master-addr", "-x"], "expected one argument"),
        (["r", "--hostfile", "f", "--master-addr", "a;b"], "--master-addr a;b: is not a host's name or address"),
    ],
)
def test_a_mistyped_command_is_told_with_a_hint(arguments, message):
    with pytest.raises(UserError) as error:
        launch.parse(arguments)
    assert message in str(error.value)


def test_options_and_overrides_may_stand_in_any_order():
    options = launch.parse(["steps=3", "--ranks", "2", "batch=4"])
    assert (options.recipe, options.overrides, options.ranks) == ("steps=3", ["batch=4"], 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["absent"], "absent: no such recipe file"),
        (["tiny.toml", "step=3"], "tiny.toml: step = 3: unknown key; did you mean steps?"),
        (["tiny.toml", "student.ds_config=x.json"], "ds_config = 'x.json': no such file"),
        (["tiny.toml", "--ranks", "3"], "batch = 8: not a multiple of 3 ranks"),
        (["tiny.toml", "--env", "a b"], "--env a b: write NAME, or NAME=VALUE"),
        (
            ["tiny.toml", "--env", "NOT_THERE"],
            "--env NOT_THERE: is not set here; set it, or write --env NOT_THERE=VALUE",
        ),
        (["tiny.toml", "--hostfile", "absent"], "absent: cannot be read as a hostfile"),
        (["tiny.toml", "--hostfile", "hosts", "--no-ssh"], "--no-ssh: needs --node-rank I"),
        (
            ["tiny.toml", "--hostfile", "hosts", "--no-ssh", "--master-addr", "a", "--node-rank", "2"],
            "--node-rank 2: the hostfile has hosts 0 to 1",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_launched(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["launch", *arguments])
    monkeypatch.setattr(launch, "follow", lambda *_: pytest.fail("it was launched"))
    with pytest.raises(UserError) as error:
        launch.main()
    assert message in str(error.value)


# --- where ------------------------------------------------------------------------------------------------------------


def test_without_a_gpu_there_is_one_process_or_as_many_as_asked(gpus):
    gpus(0)
    for ranks, variables, count in (
        (None, {}, 1),
        (3, {}, 3),
        (None, {"RANKS": "2"}, 2),
        (3, {"RANKS": "2"}, 3),
        (None, {"RANKS": ""}, 1),
    ):
        place = places.this_machine(ranks, variables | {"CUDA_VISIBLE_DEVICES": "0"}, {})
        assert place.ranks == given(place).num_gpus == count
        assert place.environment["DS_ACCELERATOR"] == "cpu"
        assert "CUDA_VISIBLE_DEVICES" not in place.environment  # DeepSpeed would print a page about it


@pytest.mark.parametrize("ranks", ["two", "0", "-1", "1.5"])
def test_ranks_of_the_environment_must_be_a_number(ranks):
    with pytest.raises(UserError, match=f"RANKS={ranks}: must be a whole number of at least 1"):
        places.this_machine(None, {"RANKS": ranks}, {})


@pytest.mark.parametrize(
    "ranks, visible, devices, include",
    [
        (None, None, 4, "localhost:0,1,2,3"),
        (2, None, 4, "localhost:0,1"),
        (None, "3,1", 2, "localhost:3,1"),
        (1, "3,1", 2, "localhost:3"),
    ],
)
def test_each_visible_gpu_gets_a_process_or_the_first_of_them(gpus, ranks, visible, devices, include):
    gpus(devices)
    place = places.this_machine(ranks, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, {})
    assert given(place).include == include and place.ranks == include.count(",") + 1
    assert "DS_ACCELERATOR" not in place.environment and "CUDA_VISIBLE_DEVICES" not in place.environment


def test_gpus_that_are_not_there_or_have_no_number_are_refused(gpus):
    gpus(2)
    with pytest.raises(UserError, match="--ranks 3: more than the 2 GPUs that are visible"):
        places.this_machine(3, {}, {})
    with pytest.raises(UserError, match="RANKS=3: more than the 2 GPUs that are visible"):
        places.this_machine(None, {"RANKS": "3"}, {})
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=GPU-8f: DeepSpeed takes numbers"):
        places.this_machine(None, {"CUDA_VISIBLE_DEVICES": "GPU-8f"}, {})


def test_a_local_run_never_reads_the_hostfile_that_deepspeed_looks_for():
    assert runner.fetch_hostfile(given(places.this_machine(1, {}, {})).hostfile) is None
    assert runner.parse_args(["script"]).hostfile == "/job/hostfile"  # which it would take without being told


def test_the_processes_of_a_local_run_know_whom_to_end_with():
    place = places.this_machine(1, {}, {"ADDED": "1"})
    assert place.variables == {"DISTILL_PARENT": str(os.getpid()), "ADDED": "1"}


def test_what_deepspeed_is_given_is_one_plain_word():
    options = given(places.this_machine(1, {}, {}))
    assert options.no_local_rank and options.module and options.user_script == "--log_level=critical"
    module, packed = options.user_args
    assert module == "pipeline.worker" and worker.unpack(packed)["arguments"] == ["recipe"]


def test_a_node_without_ssh_starts_its_own_part_of_the_hostfile(folder):
    options = launch.parse(
        [
            "r",
            "--hostfile",
            str(folder / "hosts"),
            "--exclude",
            "b:3",
            "--no-ssh",
            "--node-rank",
            "1",
            "--master-addr",
            "a",
        ]
    )
    place = places.choose_place(options, {"OMP_NUM_THREADS": "1"})
    told = given(place)
    assert place.ranks == 5
    assert (told.no_ssh, told.node_rank, told.master_addr, told.master_port) == (True, 1, "a", 29500)
    pool = runner.parse_inclusion_exclusion(runner.fetch_hostfile(told.hostfile), told.include, told.exclude)
    assert pool == {"a": [0, 1], "b": [0, 1, 2]}


def test_named_variables_and_those_of_the_libraries_go_to_the_hosts(folder, monkeypatch, capsys):
    monkeypatch.setattr(hosts, "meet", lambda names, timeout: ("10.0.0.1", 12345))
    monkeypatch.chdir(folder)
    options = launch.parse(["r", "--hostfile", "hosts", "--env", "A", "--env", "B=x=y", "--include", "b:1@a"])
    environment = {
        "NCCL_DEBUG": "INFO",
        "HF_HOME": "/h",
        "HF_TOKEN": "secret",
        "HOME": "/root",
        "A": "1",
        "PATH": "/bin",
    }
    place = places.choose_place(options, environment)
    assert place.variables == {"NCCL_DEBUG": "INFO", "HF_HOME": "/h", "A": "1", "B": "x=y"}
    said = "Hosts: a, b. Variables forwarded to them: A, B, HF_HOME, NCCL_DEBUG.\n"
    assert capsys.readouterr().out == said
    told = given(place)
    assert (told.master_addr, told.master_port, told.force_multi, told.no_ssh_check) == ("10.0.0.1", 12345, True, True)
    pool = runner.parse_inclusion_exclusion(runner.fetch_hostfile(told.hostfile), told.include, told.exclude)
    assert pool == {"a": [0, 1], "b": [1]} and place.ranks == 3
    options = launch.parse(["r", "--hostfile", "hosts", "--env", "HF_TOKEN"])
    assert places.choose_place(options, environment).variables["HF_TOKEN"] == "secret"


# --- until its end ----------------------------------------------------------------------------------------------------


@pytest.fixture
def signals_restored():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    former = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, former, strict=True):
        signal.signal(number, handler)


def follow(tmp_path: Path, code: str, patience: float = 100, **variables: str) -> int:
    """What launch makes of a launcher that is ``code``."""
    environment = os.environ | {launch.MARK: "t0ken", "FOLDER": str(tmp_path)} | variables
    return launch.follow([sys.executable, "-c", code], environment, "t0ken", tmp_path / "run" / "STOP", patience)


def send(*numbers: int, after: Path) -> threading.Thread:
    """Send the signals to this process, 0.5 s apart, once the file ``after`` is there."""

    def work() -> None:
        while not after.exists():
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


READY = "import os, pathlib, subprocess, sys, time\nf = pathlib.Path(os.environ['FOLDER'])\n(f / 'ready').touch()\n"
UNTIL_STOP = READY + "while not (f / 'run' / 'STOP').exists(): time.sleep(0.01)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_asks_the_run_to_stop(tmp_path, capsys, signals_restored, number):
    send(number, after=tmp_path / "ready")
    # The run removes an old STOP while it starts: one that was asked for must come back.
    again = "(f / 'run' / 'STOP').unlink()\nwhile not (f / 'run' / 'STOP').exists(): time.sleep(0.01)\nsys.exit(75)"
    assert follow(tmp_path, UNTIL_STOP + again) == 75
    assert capsys.readouterr().err == (
        "Stopping after this step, with a checkpoint. Ctrl-C (or SIGTERM) again ends it at once.\n"
    )
    assert not (tmp_path / "run" / "STOP").exists()


def test_sigusr1_may_come_often(tmp_path, signals_restored):
    send(*[signal.SIGUSR1] * 4, after=tmp_path / "ready")
    assert follow(tmp_path, UNTIL_STOP + "time.sleep(2)\nsys.exit(75)") == 75


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)])
def test_the_second_ends_everything_even_in_sessions_of_its_own(tmp_path, signals_restored, numbers):
    # ssh under pdsh has a session of its own.
    child = "import time; time.sleep(100)"
    start = f"p = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
    write = "(f / 'child').write_text(str(p.pid))\n(f / 'ready').touch()\ntime.sleep(100)"
    send(*numbers, after=tmp_path / "ready")
    began = time.monotonic()
    code = READY.replace("(f / 'ready').touch()\n", "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n")
    assert follow(tmp_path, code + start + write) == -signal.SIGKILL
    assert time.monotonic() - began < 20 and _gone(int((tmp_path / "child").read_text()))


def test_what_a_killed_launcher_leaves_behind_is_ended(tmp_path, signals_restored):
    start = "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
    end = "(f / 'child').write_text(str(p.pid))\nos.kill(os.getpid(), 9)"
    assert follow(tmp_path, READY + start + end) == -signal.SIGKILL
    assert _gone(int((tmp_path / "child").read_text()))


def test_a_script_that_has_started_it_takes_it_along(tmp_path, signals_restored):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as script:
        pass
    assert follow(tmp_path, READY + "time.sleep(100)", DISTILL_PARENT=str(script.pid)) == -signal.SIGKILL


def test_no_host_outlives_another_for_long(tmp_path, capsys, signals_restored):
    (tmp_path / "ssh").symlink_to(shutil.which("sleep"))
    # Two connections; the first ends after a second.
    start = "p = [subprocess.Popen([str(f / 'ssh'), seconds], start_new_session=True) for seconds in ('1', '100')]\n"
    wait = "(f / 'child').write_text(str(p[1].pid))\nfor one in p: one.wait()"
    began = time.monotonic()
    assert follow(tmp_path, READY + start + wait, patience=2) == -signal.SIGKILL
    assert 3 < time.monotonic() - began < 20 and _gone(int((tmp_path / "child").read_text()))
    said = capsys.readouterr().err
    assert said == "error: 1 of 2 hosts ended 2 s ago; what still runs on others is ended\n"


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    "record, launcher, code, told",
    [
        ({"launch": "TOKEN", "code": 0}, 0, 0, ""),
        ({"launch": "TOKEN", "code": 75}, 0, 75, ""),
        ({"launch": "TOKEN", "code": 75}, 255, 75, ""),  # pdsh lost a connection, after all was done
        ({"launch": "TOKEN", "code": 2}, 1, 2, ""),
        (None, 2, 2, ""),  # a mistake that was told before there was a run folder
        ({"launch": "TOKEN", "code": 1}, 0, 1, "error: the run has ended early; run has no checkpoint yet; the same"),
        (None, 0, 1, "error: the run has ended early"),
        (None, -9, 1, "error: the run has ended early"),
        ({"launch": "another", "code": 0}, 0, 1, "error: the run has ended early"),
        ({"launch": None, "code": 0}, 0, 1, "error: the run has ended early"),
    ],
)
def test_the_exit_code_is_what_rank_0_has_recorded(tmp_path, monkeypatch, capsys, folder, record, launcher, code, told):
    given = [str(folder / "tiny.toml"), "out=run"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["launch", *given])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".ended").write_text('{"launch": "former", "code": 0}\n')

    def follow(command, environment, token, stop, patience):
        assert stop == Path("run/STOP")
        assert worker.unpack(command[-1])["arguments"] == [*given, "--launch", token]
        if record:
            text = json.dumps(record).replace("TOKEN", token)
            (tmp_path / "run" / ".ended").write_text(text)
        return launcher

    monkeypatch.setattr(launch, "follow", follow)
    clock = itertools.count(0, 5)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert launch.main() == code
    said = capsys.readouterr().err
    assert said.startswith(told) if told else not said


def test_other_nodes_take_the_record_of_the_first(tmp_path, monkeypatch, folder):
    given = [str(folder / "tiny.toml"), "out=run"]
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    monkeypatch.chdir(tmp_path)
    node = [
        "--hostfile",
        "hosts",
        "--no-ssh",
        "--master-addr",
        "a",
        "--node-rank",
        "1",
        "--max-hours",
        "2",
        "--timeout",
        "9",
    ]
    monkeypatch.setattr(sys, "argv", ["launch", *given, *node])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".ended").write_text('{"launch": "former", "code": 75}\n')

    def follow(command, environment, token, stop, patience):
        arguments = worker.unpack(command[-1])["arguments"]
        assert arguments == [*given, "--launch", token, "--max-hours", "2.0", "--timeout", "9.0"]
        # The first node's record comes a moment later.
        later = threading.Timer(1, (tmp_path / "run" / ".ended").write_text, ['{"launch": "another", "code": 75}\n'])
        later.start()
        return 75

    monkeypatch.setattr(launch, "follow", follow)
    assert launch.main() == 75


# --- the real thing ---------------------------------------------------------------------------------------------------

LONG = ("steps=4000", "eval_every=4000", "checkpoint_every=4000")


@pytest.fixture
def start(folder):
    """Start a launch of tiny.toml with further arguments. What a failed test leaves of it ends with the test."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.launch", "tiny.toml", *arguments],
            cwd=folder,
            env=launching.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def read_until(process: subprocess.Popen, word: str) -> str:
    said = ""
    for line in process.stdout:
        said += line
        if word in line:
            return said
    pytest.fail(f"ended without {word!r}: {said}")


def test_ctrl_c_leaves_a_checkpoint_the_same_command_goes_on_and_when_it_is_killed_nothing_lives_on(folder, start):
    out = '$(touch executed) `touch executed` "it\'s"'  # a value that a shell would not leave as it is
    process = start(f"out={out}", *LONG, "--ranks", "2")
    said = read_until(process, "tokens/s")
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=launching.PATIENCE)[0]
    assert process.returncode == 75, said
    assert "Traceback" not in said and "[launch.py" not in said and "error" not in said
    assert list((folder / out / "checkpoints").glob("step-*")) and not (folder / "executed").exists()
    process = start(f"out={out}", *LONG, "--ranks", "2")
    assert "Going on from" in read_until(process, "tokens/s")
    expect_end(process, "pipeline.launch")


def test_a_mistake_that_the_ranks_find_is_one_line_and_code_2(start):
    process = start("data=absent", "--ranks", "2")
    said = process.communicate(timeout=launching.PATIENCE)[0]
    assert process.returncode == 2
    assert said.count("error:") == 1 and said.startswith("error: absent") and said.count("\n") == 1, said


def test_when_the_launcher_is_killed_nothing_lives_on(start):
    process = start("out=killed", *LONG, "--ranks", "2")
    read_until(process, "tokens/s")
    said = expect_end(process, "deepspeed.launcher.runner")
    assert process.returncode == 1 and "error: the run has ended early; killed has no checkpoint yet" in said


def expect_end(process: subprocess.Popen, victim: str) -> str:
    """Kill the ``victim``, a part of the launch ``process``: nothing of it lives on. Returns what was said."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(family) == 5  # launch, the launcher's two parts, two ranks
    (chosen,) = [one for one in family if f"-m {victim}" in " ".join(one.cmdline())]
    chosen.kill()
    said = process.communicate(timeout=60)[0]  # first: psutil would take its exit code
    _, alive = psutil.wait_procs(family[1:], timeout=30)
    assert not alive
    return said
