"""Where the processes of a launch run, and the options that DeepSpeed's launcher needs for it.

Processes get their arguments and variables packed (worker.py): no shell reads them on the way.
"""

import argparse
import os
import re
import sys
from dataclasses import dataclass

import torch

from data_prep.cli import UserError
from pipeline.launch.hosts import (
    PORT,
    Slots,
    check_environment_file,
    choose_slots,
    exports_plainly,
    meet,
    read_hostfile,
    ssh_environment,
)
from pipeline.launch.worker import pack
from pipeline.processes import TIMEOUT, asked_ranks, free_port

FORWARDED = (
    "NCCL_", "GLOO_", "DS_", "TORCH", "PYTORCH_", "TRITON_", "CUDA_", "OMP_", "MKL_", "HF_", "TOKENIZERS_", "UCX_", "FI_",
)  # fmt: skip
KEPT_HERE = ("HF_TOKEN", "CUDA_VISIBLE_DEVICES")  # others on the hosts can read command lines; GPUs are this machine's


@dataclass(frozen=True)
class Place:
    """The number of processes, the launcher's options and environment, and the variables of the processes."""

    ranks: int
    options: list[str]
    environment: dict[str, str]
    variables: dict[str, str]

    def command(self, module: str, arguments: list[str]) -> list[str]:
        """The launcher's command that runs ``module`` with ``arguments`` in each process; it needs ``environment``."""
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical", *self.options]
        # The launcher takes what follows -- for a script and its arguments, and pastes it into the command of its second
        # part, on each host, which would otherwise print a page of its own.
        script = ["--log_level=critical", "pipeline.launch.worker", pack(module, arguments, self.variables)]
        return [*launcher, "--no_local_rank", "--module", "--", *script]


def choose_place(options: argparse.Namespace, environment: dict[str, str]) -> Place:
    """The place that the options name: this machine, the hosts of a hostfile over ssh, or this one of them without."""
    named = named_variables(options.env, environment)
    if not options.hostfile:
        return this_machine(options.ranks, environment, named)
    slots = choose_slots(read_hostfile(options.hostfile), options.include, options.exclude)
    if options.no_ssh:
        return this_node(slots, options, environment, named)
    variables = forwarded(environment) | named
    place = over_ssh(slots, options, environment, variables)
    print(
        f"Hosts: {', '.join(slots)}. Variables forwarded to them: {', '.join(sorted(variables)) or 'none'}.", flush=True
    )
    return place


def this_machine(ranks: int | None, environment: dict[str, str], named: dict[str, str]) -> Place:
    """A process for each visible GPU, or for the first ``ranks`` of them; without a GPU, ``ranks`` processes or one.

    CUDA_VISIBLE_DEVICES may name GPUs by number, UUID or MIG instance. DeepSpeed's launcher takes numbers only: it counts the
    processes, and each gets the names as they are.
    """
    name = f"--ranks {ranks}" if ranks else f"RANKS={environment.get('RANKS')}"
    ranks = ranks or asked_ranks(environment)
    devices = torch.cuda.device_count()
    launcher = {key: value for key, value in environment.items() if key != "CUDA_VISIBLE_DEVICES"}
    variables = {"DISTILL_PARENT": str(os.getpid())}
    if devices:
        if ranks and ranks > devices:
            raise UserError(f"{name}: more than the {devices} GPUs that are visible; use at most {devices}")
        ranks = ranks or devices
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        names = [part.strip() for part in visible.split(",")] if visible else list(map(str, range(devices)))
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(names[:ranks])
        where = ["--include", f"localhost:{','.join(map(str, range(ranks)))}"]
    else:
        launcher.setdefault("DS_ACCELERATOR", "cpu")
        ranks = ranks or 1
        where = ["--num_gpus", str(ranks)]

    # Without a hostfile DeepSpeed would read /job/hostfile, if there is one.
    where += ["--hostfile", os.devnull, "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    return Place(ranks, where, launcher, variables | named)


def over_ssh(
    slots: Slots, options: argparse.Namespace, environment: dict[str, str], variables: dict[str, str]
) -> Place:
    """All of ``slots``, started from here by pdsh. Raises UserError if a host cannot take part."""
    check_environment_file()
    timeout = options.timeout or TIMEOUT
    address, port = meet(list(slots), timeout)
    where = _of_hostfile(options, slots, options.master_addr or address, options.master_port or port)
    launcher = exports_plainly(environment) | ssh_environment(timeout)
    if not torch.cuda.is_available():
        launcher.setdefault("DS_ACCELERATOR", "cpu")  # of the launcher here; the hosts look for themselves
    return Place(_count(slots), [*where, "--force_multi", "--no_ssh_check"], launcher, variables)


def this_node(slots: Slots, options: argparse.Namespace, environment: dict[str, str], named: dict[str, str]) -> Place:
    """This host's part of ``slots``, where the same command is given on each of the hosts."""
    if options.node_rank is None or not options.master_addr:
        raise UserError(
            "--no-ssh: needs --node-rank I, this host's place in the hostfile from 0, and --master-addr HOST, the first"
        )
    if not 0 <= options.node_rank < len(slots):
        raise UserError(f"--node-rank {options.node_rank}: the hostfile has hosts 0 to {len(slots) - 1}")
    where = _of_hostfile(options, slots, options.master_addr, options.master_port or PORT)
    where += ["--no_ssh", "--node_rank", str(options.node_rank)]
    return Place(_count(slots), where, environment, {"DISTILL_PARENT": str(os.getpid())} | named)


def forwarded(environment: dict[str, str]) -> dict[str, str]:
    """The variables that go to all hosts by themselves."""
    return {name: value for name, value in environment.items() if name.startswith(FORWARDED) and name not in KEPT_HERE}


def named_variables(wishes: list[str], environment: dict[str, str]) -> dict[str, str]:
    """The variables that ``--env NAME`` and ``--env NAME=VALUE`` ask for."""
    named = {}
    for wish in wishes:
        name, equals, value = wish.partition("=")
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"--env {wish}: write NAME, or NAME=VALUE")
        if not equals and name not in environment:
            raise UserError(f"--env {name}: is not set here; set it, or write --env {name}=VALUE")
        named[name] = value if equals else environment[name]
    return named


def _of_hostfile(options: argparse.Namespace, slots: Slots, address: str, port: int) -> list[str]:
    chosen = "@".join(f"{name}:{','.join(map(str, own))}" for name, own in slots.items())
    include = ["--include", chosen] if options.include or options.exclude else []
    return ["--hostfile", str(options.hostfile), *include, "--master_addr", address, "--master_port", str(port)]


def _count(slots: Slots) -> int:
    return sum(map(len, slots.values()))
