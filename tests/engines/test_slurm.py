"""Slurm: ranks from its variables, two real processes that meet by them, and the batch script's requeue."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.cli import UserError
from pipeline.engines import slurm
from tests.parts.launching import PATIENCE, ROOT, environment
from tests.parts.tiny import make_recipe

TEMPLATE = ROOT / "pipeline" / "distill.sbatch"
TASK = {
    "SLURM_JOB_ID": "70123",
    "SLURM_STEP_ID": "4",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_STEP_NODELIST": "gpu[07-08],big1",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


def script(path: Path, *lines: str) -> None:
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)


def test_a_task_becomes_a_rank():
    variables = dict(TASK)
    slurm.adopt(variables)
    assert {name: variables[name] for name in variables.keys() - TASK.keys()} == {
        "RANK": "9",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "11",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(10000 + 70127 % 20000),
    }


def test_given_addresses_are_kept():
    variables = TASK | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501"}
    slurm.adopt(variables)
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("10.0.0.1", "29501")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"},  # a batch script, which is no step of srun
        TASK | {"SLURM_STEP_NUM_TASKS": "1"},
        TASK | {"RANK": "3"},  # another launcher inside of a step
    ],
)
def test_without_several_tasks_nothing_is_touched(variables):
    before = dict(variables)
    slurm.adopt(variables)
    assert variables == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "4(y2)"}, "SLURM_STEP_TASKS_PER_NODE=4(y2): is not of the form 4(x2),3"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, "[4, 4] does not fit to 11 tasks and node 2"),
        ({"SLURM_NODEID": "3"}, "[4, 4, 3] does not fit to 11 tasks and node 3"),
        (
            {"SLURM_STEP_NODELIST": "gpu["},
            "SLURM_STEP_NODELIST=gpu[: names no host that is understood; set MASTER_ADDR",
        ),
        ({"SLURM_PROCID": ""}, "SLURM_PROCID is not set, though SLURM_STEP_NUM_TASKS is"),
        (
            {"CUDA_VISIBLE_DEVICES": "1,2"},
            "CUDA_VISIBLE_DEVICES=1,2: each of 3 tasks on this node must see one GPU of its own, or those of all",
        ),
    ],
)
def test_what_slurm_does_not_say_is_named(changes, message):
    with pytest.raises(UserError) as error:
        slurm.adopt(TASK | changes)
    assert message in str(error.value)


@pytest.mark.parametrize("visible, local", [("0,1,2", "1"), ("1", "0"), ("GPU-8932f937", "0"), ("", "1")])
def test_a_task_has_its_own_gpu_or_that_of_its_number(visible, local):
    variables = TASK | {"CUDA_VISIBLE_DEVICES": visible}
    slurm.adopt(variables)
    assert variables["LOCAL_RANK"] == local


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("gpu[07-08],big1", "gpu07"),
        ("gpu[3,5-9]", "gpu3"),
        ("big1,gpu[07-08]", "big1"),
        ("r[1-2]n[01-04]", "r1n01"),
        ("a-b.cluster.local", "a-b.cluster.local"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert slurm.first_host({"SLURM_STEP_NODELIST": nodes}) == first


def test_tasks_on_nodes_are_counted():
    assert slurm.tasks_per_node("4(x2),3") == [4, 4, 3]
    assert slurm.tasks_per_node("2") == [2]
    assert slurm.tasks_per_node("1,2(x3)") == [1, 2, 2, 2]


@pytest.mark.slow
def test_two_tasks_train_together(tmp_path):
    recipe = make_recipe(tmp_path)
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "localhost"}
    step |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.distill", str(recipe)],
            env=environment() | step | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for task in range(2)
    ]
    output = [task.communicate(timeout=PATIENCE)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], output
    assert "2 ranks × micro-batch 2" in output[0] and (tmp_path / "run" / "COMPLETE").exists()


def test_the_template_is_a_sound_script():
    for check in (["bash", "-n"], [str(Path(sys.prefix) / "bin" / "shellcheck")]):
        result = subprocess.run([*check, TEMPLATE], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("code, requeues", [(0, False), (1, False), (2, False), (75, True), (138, True)])
def test_the_template_requeues_exactly_what_was_stopped_early(tmp_path, code, requeues):
    script(tmp_path / "srun", f'printf "%s\\n" "$@" >{tmp_path}/srun.arguments', f"exit {code}")
    script(tmp_path / "scontrol", f'echo "$*" >{tmp_path}/scontrol.arguments')
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "5"}
    result = subprocess.run(["bash", TEMPLATE, "tiny.toml", "out=a b"], env=variables | {"VENV": "/venv"})
    assert result.returncode == code
    given = (tmp_path / "srun.arguments").read_text().splitlines()
    assert given == ["--kill-on-bad-exit=0", "/venv/bin/python", "-u", "-m", "pipeline.distill", "tiny.toml", "out=a b"]
    assert (tmp_path / "scontrol.arguments").exists() == requeues
    if requeues:
        assert (tmp_path / "scontrol.arguments").read_text() == "requeue 5\n"
