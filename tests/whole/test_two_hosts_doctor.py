"""pipeline.doctor between two real hosts (namespaces.py): ssh, the network between them, what they share, and who is named."""

import contextlib
import importlib.metadata
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.parts import launching, namespaces

MISSING = namespaces.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"two hosts need {MISSING}, which is not here"),
]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with namespaces.TwoHosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
    return tmp_path


def start(hosts, folder: Path, *arguments: str, ssh: str = "", **variables: str) -> subprocess.Popen:
    """`python -m pipeline.doctor --json` on the host alpha, for the hosts of ``folder``/hosts."""
    command = [sys.executable, "-m", "pipeline.doctor", "--json", "--hostfile", str(folder / "hosts"), *arguments]
    environment = {"PDSH_SSH_ARGS_APPEND": ssh or hosts.ssh_options()} | variables
    return subprocess.Popen(
        inside(hosts, "alpha", *command),
        env=launching.environment() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def inside(hosts, name: str, *command: str) -> list[str]:
    return hosts.command(name, *command, folder=launching.ROOT)


def findings(process: subprocess.Popen) -> dict[tuple[str, str], list[str]]:
    """[level, text] by host and check (the last word of the text too for folders), and code 1 if something is red."""
    output, errors = process.communicate(timeout=launching.PATIENCE)
    *rows, last = map(json.loads, output.splitlines())
    assert process.returncode == (1 if last["summary"]["FAIL"] else 0), errors
    assert all(line.endswith(" …") for line in errors.splitlines()), errors  # signs of life
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        found.setdefault((row["host"], row["check"]), []).append(f"{row['level']} {row['text']}")
    return found


def ranks(hosts, name: str) -> list[psutil.Process]:
    """The processes of the all-reduce that live on a host."""
    found = []
    for process in psutil.Process(hosts.inits[name]).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if {"pipeline.doctor", "--rank"} <= set(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def sent(hosts, name: str) -> int:
    """Bytes that a host has sent over the cable."""
    path = f"/sys/class/net/{namespaces.INTERFACE}/statistics/tx_bytes"
    return int(subprocess.check_output(inside(hosts, name, "cat", path)))


def mount(hosts, name: str, *arguments: str) -> None:
    """Mount something on one host; the other, and the machine itself, do not see it."""
    subprocess.run(inside(hosts, name, "mount", *arguments), check=True)


def test_fit_hosts_are_green_and_a_folder_that_each_has_for_itself_is_red(hosts, folder):
    for name in ("shared", "own"):
        (folder / name).mkdir()
    for name in namespaces.NAMES:
        mount(hosts, name, "-t", "tmpfs", "tmpfs", str(folder / "own"))
    options = ["--shared", str(folder / "shared"), "--shared", str(folder / "own")]
    found = findings(start(hosts, folder, *options, "--size", "16", GLOO_SOCKET_IFNAME=namespaces.INTERFACE))

    for name, other, address in zip(namespaces.NAMES, namespaces.NAMES[::-1], namespaces.ADDRESSES, strict=True):
        assert found[name, "ssh"][0].startswith("OK answers after ")
        assert found[name, "network"][0].startswith(f"OK {namespaces.INTERFACE} {address}, ")
        assert found[name, "connect"] == [f"OK to {other}"]
        assert found[name, "host name"] == [f"OK {name} does not resolve; GLOO_SOCKET_IFNAME is used"]
        assert found[name, "versions"][0].startswith("OK ") and found[name, "clock"][0].startswith("OK ")
    shared, own = found["alpha", "shared folder"]
    assert shared == f"OK {folder}/shared: files are seen by all, locks exclude"
    assert own == f"OK {folder}/own: files are seen by all, locks exclude"  # the first of two is what the others have
    shared, own = found["beta", "shared folder"]
    assert shared == f"OK {folder}/shared: files are seen by all, locks exclude"
    assert own == f"FAIL {folder}/own: what alpha write there is not here: not shared; mount it on all hosts"
    form = r"OK 2 ranks, gloo: sums exact in bf16 and fp32; 16 MiB at (\d+\.\d\d) GB/s \(bus\), latency \d+\.\d\d ms"
    assert float(re.fullmatch(form, found["", "all-reduce"][0])[1]) > 0


def test_a_host_with_other_versions_other_code_and_another_clock_is_red(hosts, folder):
    site = Path(importlib.metadata.distribution("safetensors").locate_file("")).resolve()
    version = importlib.metadata.version("safetensors")
    metadata = site / f"safetensors-{version}.dist-info" / "METADATA"
    (folder / "METADATA").write_text(
        metadata.read_text().replace(f"\nVersion: {version}\n", f"\nVersion: {version}.post1\n")
    )
    source = launching.ROOT / "pipeline" / "doctor" / "probe.py"
    late = source.read_text().replace("return time.time()", "return time.time() - 90")
    (folder / "probe.py").write_text(late)
    mount(hosts, "beta", "--bind", str(folder / "METADATA"), str(metadata))
    mount(hosts, "beta", "--bind", str(folder / "probe.py"), str(source))
    try:
        found = findings(start(hosts, folder, "--timeout", "10", "--size", "1"))
    finally:
        for path in (metadata, source):
            subprocess.run(inside(hosts, "beta", "umount", str(path)), check=True)
    text = f"FAIL safetensors {version}.post1, but {version} on alpha; install the same everywhere"
    assert found["beta", "versions"] == [text] and found["alpha", "versions"][0].startswith("OK ")
    code = found["alpha", "code"][0].removeprefix("OK ")
    assert re.fullmatch(
        rf"FAIL \w{{12}}, but {code} on alpha; put the same source files on .*", found["beta", "code"][0]
    )
    clocks = found["alpha", "clock"] + found["beta", "clock"]
    assert any(re.match(r"FAIL (90\.0|89\.9)\d\d s (behind alpha|ahead of beta) ", clock) for clock in clocks), clocks
    # Nothing names an interface here, and the hosts' own names mean nothing.
    for name in namespaces.NAMES:
        assert found[name, "host name"][0].startswith(f"FAIL {name} does not resolve: others cannot reach that; mend")
        assert found[name, "host name"][0].endswith(f"or set GLOO_SOCKET_IFNAME={namespaces.INTERFACE}")
    assert found["", "shared folder"][0].startswith("WARN none was looked at")
    assert found["", "all-reduce"][0].startswith("FAIL rank ")


def test_hosts_that_ssh_does_not_enter_say_why(hosts, folder):
    own = Path(hosts.ssh_options().split()[-1])
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    known = (own.parent / "known_hosts").read_text()
    (folder / "none").write_text("")
    (folder / "other").write_text(re.sub(r"AAAA\S+", (folder / "key.pub").read_text().split()[1], known))
    text = own.read_text()
    for changed, why in (
        (text.replace(f"{own.parent}/user_key", f"{folder}/key"), "ssh there refuses this user's key; run ssh-copy-id"),
        (text.replace(f"{own.parent}/known_hosts", f"{folder}/none"), "its ssh host key is not known here; run ssh to"),
        (
            text.replace(f"{own.parent}/known_hosts", f"{folder}/other"),
            "its ssh host key is not the one in known_hosts",
        ),
    ):
        (folder / "ssh_config").write_text(changed)
        found = findings(start(hosts, folder, ssh=f"-F {folder}/ssh_config"))
        for name in namespaces.NAMES:
            assert found[name, "ssh"][0].startswith(f"FAIL {why}")
        assert found["", "all-reduce"] == ["WARN not tried, because of alpha, beta"]


def test_a_host_that_is_off_and_one_that_nobody_knows_are_red_and_the_others_are_still_looked_at(hosts, folder):
    (folder / "hosts").write_text("alpha slots=1\nbeta slots=1\ngamma slots=1\n")
    hosts.unplug("beta")
    try:
        found = findings(start(hosts, folder, "--timeout", "5", GLOO_SOCKET_IFNAME=namespaces.INTERFACE))
    finally:
        hosts.plug("beta")
    assert found["alpha", "ssh"][0].startswith("OK ") and found["alpha", "versions"][0].startswith("OK ")
    assert re.match("FAIL (no route|time-out): ", found["beta", "ssh"][0])
    assert found["gamma", "ssh"][0].startswith("FAIL unknown host: its name does not resolve")
    assert found["", "all-reduce"] == ["WARN not tried, because of beta, gamma"]


def test_a_host_that_is_cut_off_during_the_all_reduce_is_named_in_time(hosts, folder):
    timeout = 8
    before = sent(hosts, "beta")
    process = start(hosts, folder, "--timeout", str(timeout), "--size", "256", GLOO_SOCKET_IFNAME=namespaces.INTERFACE)
    deadline = time.monotonic() + 150
    while sent(hosts, "beta") < before + 2**26:  # the large tensor is on its way
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    hosts.unplug("beta")
    begin = time.monotonic()
    try:
        found = findings(process)
        took = time.monotonic() - begin
    finally:
        hosts.plug("beta")
    assert re.match(r"FAIL rank 1 on beta: silent for \d+ s, after '", found["", "all-reduce"][0])
    assert took < timeout + 5
    deadline = time.monotonic() + timeout + 60  # connections that were cut try again after as long as they have waited
    while left := ranks(hosts, "alpha") + ranks(hosts, "beta"):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
