"""Where the processes of a launch run, and what DeepSpeed's launcher reads of it."""

import os

import pytest
import torch
from deepspeed.launcher import runner

from data_prep.cli import UserError
from pipeline.launch import places
from pipeline.launch.__main__ import parse
from pipeline.launch.places import Place, choose_place, forwarded, this_machine
from pipeline.launch.worker import unpack


@pytest.fixture
def gpus(monkeypatch):
    """As on a machine with so many GPUs."""
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def given(place: Place):
    """The options that the real launcher of DeepSpeed reads from a place's command."""
    return runner.parse_args(place.command("pipeline.distill", ["recipe"])[3:])


def test_without_a_gpu_there_is_one_process_or_as_many_as_asked(gpus):
    gpus(0)
    for ranks, variables, count in (
        (None, {}, 1),
        (3, {}, 3),
        (None, {"RANKS": "2"}, 2),
        (3, {"RANKS": "2"}, 3),
        (None, {"RANKS": ""}, 1),
    ):
        place = this_machine(ranks, variables | {"CUDA_VISIBLE_DEVICES": "0"}, {})
        assert place.ranks == given(place).num_gpus == count
        assert place.environment["DS_ACCELERATOR"] == "cpu"
        assert "CUDA_VISIBLE_DEVICES" not in place.environment  # DeepSpeed would print a page about it


@pytest.mark.parametrize("ranks", ["two", "0", "-1", "1.5"])
def test_ranks_of_the_environment_must_be_a_number(ranks):
    with pytest.raises(UserError, match=f"RANKS={ranks}: must be a whole number of at least 1"):
        this_machine(None, {"RANKS": ranks}, {})


@pytest.mark.parametrize(
    "ranks, visible, devices, given_names",
    [
        (None, None, 4, "0,1,2,3"),
        (2, None, 4, "0,1"),
        (None, "3,1", 2, "3,1"),
        (1, "3,1", 2, "3"),
        (None, "0, 1 ", 2, "0,1"),
        (None, "GPU-8932f937-d72c-4106,GPU-5d3b0b1c-2f6a-4c4e", 2, "GPU-8932f937-d72c-4106,GPU-5d3b0b1c-2f6a-4c4e"),
        (1, "MIG-8f6e2c1a-1b2c,MIG-11a2", 2, "MIG-8f6e2c1a-1b2c"),
        (None, "2,0,-1,3", 2, "2,0"),  # CUDA takes what stands before a number that is none
    ],
)
def test_each_visible_gpu_gets_a_process_or_the_first_of_them(gpus, ranks, visible, devices, given_names):
    """The launcher counts the processes; each process has the names of the GPUs, whatever their form."""
    gpus(devices)
    place = this_machine(ranks, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, {})
    count = given_names.count(",") + 1
    assert given(place).include == f"localhost:{','.join(map(str, range(count)))}" and place.ranks == count
    assert place.variables["CUDA_VISIBLE_DEVICES"] == given_names
    assert "DS_ACCELERATOR" not in place.environment and "CUDA_VISIBLE_DEVICES" not in place.environment


def test_gpus_that_are_not_there_are_rejected(gpus):
    gpus(2)
    with pytest.raises(UserError, match="--ranks 3: more than the 2 GPUs that are visible"):
        this_machine(3, {}, {})
    with pytest.raises(UserError, match="RANKS=3: more than the 2 GPUs that are visible"):
        this_machine(None, {"RANKS": "3"}, {})


def test_variables_of_the_libraries_go_to_hosts_but_not_what_is_this_machines():
    own = {"CUDA_VISIBLE_DEVICES": "0", "HF_TOKEN": "secret", "PATH": "/bin", "EDITOR": "vi"}
    names = ("PYTORCH_CUDA_ALLOC_CONF", "CUDA_DEVICE_MAX_CONNECTIONS", "TRITON_CACHE_DIR", "TORCH_LOGS", "NCCL_DEBUG")
    theirs = dict.fromkeys(names, "1")
    assert forwarded(own | theirs) == theirs


def test_a_local_run_never_reads_the_hostfile_that_deepspeed_looks_for():
    assert runner.fetch_hostfile(given(this_machine(1, {}, {})).hostfile) is None
    assert runner.parse_args(["script"]).hostfile == "/job/hostfile"  # which it would take without being told


def test_the_processes_of_a_local_run_know_whom_to_end_with():
    place = this_machine(1, {}, {"ADDED": "1"})
    assert place.variables == {"DISTILL_PARENT": str(os.getpid()), "ADDED": "1"}


def test_what_deepspeed_is_given_is_one_plain_word():
    options = given(this_machine(1, {}, {}))
    assert options.no_local_rank and options.module and options.user_script == "--log_level=critical"
    module, packed = options.user_args
    assert module == "pipeline.launch.worker" and unpack(packed)["arguments"] == ["recipe"]


def test_a_node_without_ssh_starts_its_own_part_of_the_hostfile(folder):
    hostfile = ["--hostfile", str(folder / "hosts"), "--exclude", "b:3"]
    options = parse(["r", *hostfile, "--no-ssh", "--node-rank", "1", "--master-addr", "a"])
    place = choose_place(options, {"OMP_NUM_THREADS": "1"})
    read = given(place)
    assert place.ranks == 5
    assert (read.no_ssh, read.node_rank, read.master_addr, read.master_port) == (True, 1, "a", 29500)
    pool = runner.parse_inclusion_exclusion(runner.fetch_hostfile(read.hostfile), read.include, read.exclude)
    assert pool == {"a": [0, 1], "b": [0, 1, 2]}


def test_named_variables_and_those_of_the_libraries_go_to_the_hosts(folder, monkeypatch, capsys):
    monkeypatch.setattr(places, "meet", lambda names, timeout: ("10.0.0.1", 12345))
    monkeypatch.chdir(folder)
    options = parse(["r", "--hostfile", "hosts", "--env", "A", "--env", "B=x=y", "--include", "b:1@a"])
    environment = {"NCCL_DEBUG": "INFO", "HF_HOME": "/h", "HF_TOKEN": "secret"}
    environment |= {"HOME": "/root", "A": "1", "PATH": "/bin"}
    place = choose_place(options, environment)
    assert place.variables == {"NCCL_DEBUG": "INFO", "HF_HOME": "/h", "A": "1", "B": "x=y"}
    said = "Hosts: a, b. Variables forwarded to them: A, B, HF_HOME, NCCL_DEBUG.\n"
    assert capsys.readouterr().out == said
    read = given(place)
    assert (read.master_addr, read.master_port, read.force_multi, read.no_ssh_check) == ("10.0.0.1", 12345, True, True)
    pool = runner.parse_inclusion_exclusion(runner.fetch_hostfile(read.hostfile), read.include, read.exclude)
    assert pool == {"a": [0, 1], "b": [1]} and place.ranks == 3
    options = parse(["r", "--hostfile", "hosts", "--env", "HF_TOKEN"])
    assert choose_place(options, environment).variables["HF_TOKEN"] == "secret"
