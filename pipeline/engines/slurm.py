"""Ranks from Slurm: what srun says about a task, in the words that torch and DeepSpeed read. See distill.sbatch."""

import os
import re
from collections.abc import MutableMapping

from data_prep.cli import UserError


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in ``environment``.

    A task that sees one GPU, as with --gpus-per-task, has its own; others take that of their number among those that they see.

    Does nothing under another launcher (RANK is set) or outside of a step of several tasks; a batch script itself, which has
    SLURM_PROCID too, is no step. Raises UserError if Slurm's variables do not say enough.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or tasks == "1":
        return
    per_node = tasks_per_node(_read(environment, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    node = int(_read(environment, "SLURM_NODEID"))
    if sum(per_node) != int(tasks) or node >= len(per_node):
        raise UserError(
            f"SLURM_STEP_TASKS_PER_NODE={per_node} does not fit to {tasks} tasks and node {node}; start the run with srun"
        )
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if 1 < len(visible) < per_node[node]:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES={','.join(visible)}: each of {per_node[node]} tasks on this node must see one GPU of its "
            "own, or those of all; ask for --gpus-per-node or --gpus-per-task=1"
        )
    job = int(_read(environment, "SLURM_JOB_ID")) + int(environment.get("SLURM_STEP_ID", 0))
    ranks = {
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(environment),
        "MASTER_PORT": environment.get("MASTER_PORT")
        or str(10000 + job % 20000),  # below the ports that systems hand out
        "WORLD_SIZE": tasks,
        "LOCAL_WORLD_SIZE": str(per_node[node]),
        "LOCAL_RANK": "0" if len(visible) == 1 else _read(environment, "SLURM_LOCALID"),
        "RANK": _read(environment, "SLURM_PROCID"),
    }
    environment.update(ranks)


def tasks_per_node(text: str) -> list[int]:
    """``4(x2),3`` -> [4, 4, 3]."""
    counts: list[int] = []
    for part in text.split(","):
        form = re.fullmatch(r"([1-9][0-9]*)(?:\(x([1-9][0-9]*)\))?", part)
        if not form:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE={text}: is not of the form 4(x2),3; start the run with srun")
        counts += [int(form[1])] * int(form[2] or 1)
    return counts


def first_host(environment: MutableMapping[str, str]) -> str:
    """The first host of the step's nodes: of gpu[07-08,11],big1 gpu07, of r[1-2]n[01-04] r1n01."""
    nodes = _read(environment, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    host = re.sub(r"\[(\d+)[^\]]*\]", r"\1", first)
    if not re.fullmatch(r"[\w.:-]+", host):
        raise UserError(
            f"SLURM_STEP_NODELIST={nodes}: names no host that is understood; set MASTER_ADDR to the first one"
        )
    return host


def _read(environment: MutableMapping[str, str], *names: str) -> str:
    """The value of the first variable of ``names`` that is set."""
    for name in names:
        if environment.get(name):
            return environment[name]
    raise UserError(f"{names[0]} is not set, though SLURM_STEP_NUM_TASKS is; start the run with srun")
