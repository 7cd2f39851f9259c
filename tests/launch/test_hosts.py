"""The hostfile, and entering its hosts: what is read, and what is refused because a shell there would read it otherwise."""

import sys
from pathlib import Path

import pytest
from deepspeed.launcher import runner

from data_prep.cli import UserError
from pipeline.launch.hosts import (
    Host,
    check_environment_file,
    choose_slots,
    exports_plainly,
    is_host,
    meet,
    read_hostfile,
    ssh_environment,
)


def test_hosts_keep_their_order_and_comments_are_skipped(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(
        "# ours\n\ngpu-02 slots=8\n  alice@gpu-01\tslots=4   # two are broken\n10.0.0.3 slots=1\nfd00::4 slots=2\n"
    )
    assert read_hostfile(path) == [
        Host("gpu-02", 8),
        Host("alice@gpu-01", 4),
        Host("10.0.0.3", 1),
        Host("fd00::4", 2),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a slots=1\nb\n", "hosts:2: 'b': is not a host; write NAME slots=N"),
        ("a slots=1\nb slots=two\n", "hosts:2: 'b slots=two': is not a host"),
        ("a slots=1 max_slots=2\n", "hosts:1: 'a slots=1 max_slots=2': is not a host"),
        ("a:1 slots=1\n", "hosts:1: 'a:1': is not a host's name or address"),
        ("-oProxyCommand=x slots=1\n", "hosts:1: '-oProxyCommand=x': is not a host's name or address"),
        ("a;reboot slots=1\n", "hosts:1: 'a;reboot': is not a host's name or address"),
        ("a$(id) slots=1\n", "hosts:1: 'a$(id)': is not a host's name or address"),
        ("a,b slots=1\n", "hosts:1: 'a,b': is not a host's name or address"),
        ("a[1-4] slots=1\n", "hosts:1: 'a[1-4]': is not a host's name or address"),
        ("x@y@z slots=1\n", "hosts:1: 'x@y@z': is not a host's name or address"),
        ("gerät slots=1\n", "hosts:1: 'gerät': is not a host's name or address"),
        ("a slots=1\nb slots=0\n", "hosts:2: b slots=0: must be at least 1"),
        ("a slots=1\n\na slots=2\n", "hosts:3: a: is listed twice"),
        ("# nothing\n", "hosts: names no host"),
    ],
)
def test_a_line_that_is_no_host_is_named_by_file_and_number(tmp_path, text, message):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_hostfile(path)
    assert message in str(error.value)


def test_a_hostfile_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"hosts: cannot be read as a hostfile \(No such file"):
        read_hostfile(tmp_path / "hosts")
    (tmp_path / "hosts").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"hosts: cannot be read as a hostfile \(not UTF-8"):
        read_hostfile(tmp_path / "hosts")


@pytest.mark.parametrize("name", ["a", "a.b-c_d", "10.0.0.1", "fd00::1", "u@fd00::1", "u.v@h"])
def test_names_and_addresses_are_hosts(name):
    assert is_host(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        "u@v@fd00::1",
        "@a",
        "u@",
        "-u@a",
        "-u@fd00::1",
        "a b",
        "a%n",
        "a\n",
        "u@-a",
        "a/b",
        "fe80::1%eth0",
        "fe80::1%;id",
    ],
)
def test_what_ssh_or_a_shell_would_read_otherwise_is_no_host(name):
    assert not is_host(name)


def test_deepspeed_reads_the_same_hosts(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\n\na slots=8  # one\n\tu@b  slots=4\n")
    assert runner.fetch_hostfile(path) == {host.name: host.slots for host in read_hostfile(path)}


# --- slots ------------------------------------------------------------------------------------------------------------

TWO = [Host("a", 2), Host("b", 4)]


@pytest.mark.parametrize(
    "include, exclude",
    [("", ""), ("b", ""), ("b:3,1@a", ""), ("a:0@a:1", ""), ("", "a"), ("", "b:0,3"), ("", "a:0@b:1,2"), ("", "b@a:1")],
)
def test_slots_are_chosen_as_deepspeed_does(include, exclude):
    theirs = runner.parse_inclusion_exclusion({"a": 2, "b": 4}, include, exclude)
    assert choose_slots(TWO, include, exclude) == theirs


@pytest.mark.parametrize(
    "include, exclude, message",
    [
        ("a", "b", "--include a and --exclude b: give one of them"),
        ("c", "", "--include c: c: not in the hostfile, which has a, b"),
        ("", "a:2", "--exclude a:2: a has slots 0 to 1, not 2"),
        ("a:x", "", "--include a:x: 'a:x': write HOST or HOST:SLOT,SLOT"),
        ("a,b", "", "--include a,b: a,b: not in the hostfile"),
        ("a@", "", "--include a@: '': write HOST or HOST:SLOT,SLOT"),
        ("", "a@b", "--exclude a@b: leaves no slot"),
    ],
)
def test_slots_that_are_not_there_are_named(include, exclude, message):
    with pytest.raises(UserError) as error:
        choose_slots(TWO, include, exclude)
    assert message in str(error.value)


def test_ipv6_addresses_cannot_be_told_from_slots():
    with pytest.raises(UserError, match="fd00::1: an IPv6 address does not go with --include and --exclude"):
        choose_slots([Host("a", 1), Host("fd00::1", 1)], exclude="a")
    assert choose_slots([Host("fd00::1", 1)]) == {"fd00::1": [0]}


# --- entering them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pdsh(tmp_path, monkeypatch):
    """A `pdsh` that prints what the test asks for, and the only one on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def answer(*lines: str) -> Path:
        (folder / "pdsh").write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
        (folder / "pdsh").chmod(0o755)
        return folder

    return answer


def test_ranks_meet_at_the_first_hosts_first_address(pdsh):
    pdsh("echo b: ready 1 5001 10.0.0.2", "echo a: ready 0 5000 10.0.0.1 172.17.0.1")
    assert meet(["a", "b"], 120) == ("10.0.0.1", 5000)


@pytest.mark.parametrize(
    "lines, message",
    [
        (
            [
                "echo a: ready 0 1 10.0.0.1",
                "echo b: ssh: connect to host b port 22: Connection refused >&2",
                "exit 255",
            ],
            "b: cannot take part (b: ssh: connect to host b port 22: Connection refused); `ssh b` must work without a question",
        ),
        (
            ["echo 'b: bash: line 1: cd: /x: No such file or directory' >&2", "echo pdsh@here: b: ssh exited >&2"],
            "a, b: cannot take part (b: bash: line 1: cd: /x: No such file or directory); `ssh a` must work",
        ),
        (["exit 1"], "a, b: cannot take part (pdsh says nothing)"),
        (
            ["echo a: ready 0 5000", "echo b: ready 1 5000 10.0.0.2"],
            "a: `hostname -I` gives no address there; name one with",
        ),
    ],
)
def test_hosts_that_cannot_take_part_are_named_with_the_reason(pdsh, lines, message):
    pdsh(*lines)
    with pytest.raises(UserError) as error:
        meet(["a", "b"], 120)
    assert message in str(error.value)


def test_a_missing_pdsh_is_reported(pdsh):
    with pytest.raises(UserError, match="pdsh is not installed: apt-get install pdsh, or run one command on each host"):
        meet(["a", "b"], 120)


def test_a_user_before_an_ipv6_address_is_refused(pdsh):
    with pytest.raises(UserError, match="u@fd00::1: pdsh takes no user before an IPv6 address"):
        meet(["a", "u@fd00::1"], 120)


@pytest.mark.parametrize("name", ["a b", "a$b", "a%n", "a'b", "a;b", "a&b", "a*b"])
def test_a_folder_that_a_shell_would_read_otherwise_is_refused(pdsh, tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UserError, match=r"the folder has .* in its name, which ssh would pass to a shell"):
        meet(["a", "b"], 120)


def test_a_python_that_a_shell_would_read_otherwise_is_refused(pdsh, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "/home/a b/bin/python")
    with pytest.raises(UserError, match="/home/a b/bin/python: the Python has ' ' in its name"):
        meet(["a", "b"], 120)


def test_ssh_never_asks_and_ends_when_its_host_is_silent(monkeypatch):
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-F mine")
    options = ssh_environment(60)["PDSH_SSH_ARGS_APPEND"].split()
    assert options[:2] == ["-F", "mine"]
    assert {"-oBatchMode=yes", "-oServerAliveInterval=15", "-oServerAliveCountMax=3", "-oControlPath=none"} <= set(
        options
    )


# --- what DeepSpeed pastes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("A=1\n\nB=2\n", ".deepspeed_env:2: '': DeepSpeed takes lines NAME=VALUE, no comments and no blank ones"),
        ("# ours\nA=1\n", ".deepspeed_env:1: '# ours': DeepSpeed takes lines NAME=VALUE"),
        ("# a=b\n", ".deepspeed_env:1: '# a=b': DeepSpeed takes lines NAME=VALUE"),
        ("A=1\nexport B=2\n", ".deepspeed_env:2: 'export B=2': DeepSpeed takes lines NAME=VALUE"),
        ("A=$(id)\n", ".deepspeed_env:1: A: has '$' in its value, which a shell on each host would interpret"),
        ("A=`id`\n", ".deepspeed_env:1: A: has '`' in its value"),
        ('A="b"\n', ".deepspeed_env:1: A: has '\"' in its value"),
        ("A=%n\n", ".deepspeed_env:1: A: has '%' in its value"),
    ],
)
@pytest.mark.parametrize("home", [True, False])
def test_a_line_of_the_environment_file_that_deepspeed_stumbles_over_is_named(
    tmp_path, monkeypatch, home, text, message
):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".deepspeed_env" if home else tmp_path / ".deepspeed_env").write_text(text)
    with pytest.raises(UserError) as error:
        check_environment_file()
    assert message in str(error.value)


def test_a_sound_environment_file_is_left_to_deepspeed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    check_environment_file()
    monkeypatch.setenv("DS_ENV_FILE", "other")
    (tmp_path / ".deepspeed_env").write_text("# not read\n")
    (tmp_path / "other").write_text("NCCL_IB_HCA=mlx5_0:1,mlx5_1:1\nA = b c; d\n")
    check_environment_file()


def test_variables_that_deepspeed_would_paste_are_left_out_unless_plain():
    kept = {"NCCL_DEBUG": "INFO", "PYTHONNOUSERSITE": "1", "PATH": "$x", "UCX_NET": "mlx5_0:1"}
    left = {"NCCL_A": "$(id)", "PYTHONSTARTUP": "a b", "UCX_B": '"', "MLFLOW_C": "`id`", "MV2_D": "a\n;b"}
    assert exports_plainly(kept | left) == kept
