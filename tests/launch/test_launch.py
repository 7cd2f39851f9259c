"""pipeline.launch: what is rejected before anything is started, how a run really ended, and real ranks."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from data_prep.cli import UserError
from pipeline.launch import launching
from pipeline.launch.__main__ import main, parse
from pipeline.launch.worker import unpack
from tests.parts.launching import PATIENCE, ROOT
from tests.parts.launching import environment as launching_environment

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
        (["r", "--timeout", "inf"], "--timeout inf: must be at most 1e+06 seconds"),
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
def test_a_mistyped_command_is_reported_with_a_hint(arguments, message):
    with pytest.raises(UserError) as error:
        parse(arguments)
    assert message in str(error.value)


def test_neither_help_nor_a_mistyped_option_waits_for_torch_and_the_users_variables_stay_as_they_are():
    code = "import os, sys\nbefore = dict(os.environ)\nimport pipeline.launch.__main__\n"
    code += "assert os.environ == before and not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)"
    variables = {key: value for key, value in launching_environment().items() if key != "DS_ACCELERATOR"}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables).returncode == 0


def test_options_and_overrides_may_stand_in_any_order():
    options = parse(["steps=3", "--ranks", "2", "batch=4"])
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
def test_a_mistake_is_reported_before_anything_is_launched(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["launch", *arguments])
    monkeypatch.setattr(launching, "follow", lambda *_: pytest.fail("it was launched"))
    with pytest.raises(UserError) as error:
        main()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=nowhere", "nowhere: no such folder; make a corpus with"),
        ("teacher.model=./nowhere", "./nowhere: no such folder"),
        ("teacher.model=data", "data: no config.json"),
        ("stepz=1", "unknown key; did you mean steps?"),
    ],
)
def test_a_mistake_in_the_recipe_is_told_without_loading_torch(folder, override, message):
    code = "import sys; from pipeline.launch.__main__ import main\ntry: main()\n"
    code += "except Exception as error: print(error); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "tiny.toml", override]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0 and message in done.stdout and done.stderr == ""


# --- the exit code ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record, launcher, code, line",
    [
        ({"launch": "TOKEN", "code": 0}, 0, 0, ""),
        ({"launch": "TOKEN", "code": 75}, 0, 75, ""),
        ({"launch": "TOKEN", "code": 75}, 255, 75, ""),  # pdsh lost a connection, after all was done
        ({"launch": "TOKEN", "code": 2}, 1, 2, ""),
        (None, 2, 2, ""),  # a mistake that was reported before there was a run folder
        ({"launch": "TOKEN", "code": 1}, 0, 1, "error: the run has ended early; run has no checkpoint yet; the same"),
        (None, 0, 1, "error: the run has ended early"),
        (None, -9, 1, "error: the run has ended early"),
        ({"launch": "another", "code": 0}, 0, 1, "error: the run has ended early"),
        ({"launch": None, "code": 0}, 0, 1, "error: the run has ended early"),
    ],
)
def test_the_exit_code_is_what_rank_0_has_recorded(tmp_path, monkeypatch, capsys, folder, record, launcher, code, line):
    given = [str(folder / "tiny.toml"), "out=run"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["launch", *given])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".ended").write_text('{"launch": "former", "code": 0}\n')

    def follow(command, environment, token, stop, patience):
        assert stop == Path("run/STOP")
        assert unpack(command[-1])["arguments"] == [*given, "--launch", token]
        if record:
            text = json.dumps(record).replace("TOKEN", token)
            (tmp_path / "run" / ".ended").write_text(text)
        return launcher

    monkeypatch.setattr(launching, "follow", follow)
    clock = itertools.count(0, 5)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert main() == code
    said = capsys.readouterr().err.partition("torch is loading …\n")[2]
    assert said.startswith(line) if line else not said


def test_other_nodes_take_the_record_of_the_first(tmp_path, monkeypatch, folder):
    given = [str(folder / "tiny.toml"), "out=run"]
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    monkeypatch.chdir(tmp_path)
    node = ["--hostfile", "hosts", "--no-ssh", "--master-addr", "a", "--node-rank", "1"]
    node += ["--max-hours", "2", "--timeout", "9"]
    monkeypatch.setattr(sys, "argv", ["launch", *given, *node])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".ended").write_text('{"launch": "former", "code": 75}\n')

    def follow(command, environment, token, stop, patience):
        arguments = unpack(command[-1])["arguments"]
        assert arguments == [*given, "--launch", token, "--max-hours", "2.0", "--timeout", "9.0"]
        # The first node's record comes a moment later.
        later = threading.Timer(1, (tmp_path / "run" / ".ended").write_text, ['{"launch": "another", "code": 75}\n'])
        later.start()
        return 75

    monkeypatch.setattr(launching, "follow", follow)
    assert main() == 75


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
            env=launching_environment(),
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


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_the_same_command_continues_and_when_it_is_killed_nothing_lives_on(folder, start):
    out = '$(touch executed) `touch executed` "it\'s"'  # a value that a shell would not leave as it is
    process = start(f"out={out}", *LONG, "--ranks", "2")
    said = read_until(process, "tokens/s")
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 75, said
    assert "Traceback" not in said and "[launch.py" not in said and "error" not in said
    assert list((folder / out / "checkpoints").glob("step-*")) and not (folder / "executed").exists()
    process = start(f"out={out}", *LONG, "--ranks", "2")
    assert "Resuming from" in read_until(process, "tokens/s")
    expect_end(process, "pipeline.launch")


@pytest.mark.slow
def test_a_mistake_that_the_ranks_find_is_one_line_and_code_2(start):
    process = start("data=absent", "--ranks", "2")
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 2
    assert said.count("error:") == 1 and said.startswith("error: absent") and said.count("\n") == 1, said


@pytest.mark.slow
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
