"""pipeline.doctor: each check turns red for a real cause where that can be had, and says what to do."""

import contextlib
import copy
import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import psutil
import pytest
import torch

from data_prep.errors import UserError
from pipeline import allreduce, doctor, fitness, probe
from pipeline.doctor import NoAnswer, Probe, Ranks, plain_words, read_line
from pipeline.fitness import FAIL, OK, WARN, Finding, judge
from pipeline.hosts import Host
from tests.launching import PATIENCE, ROOT, environment

TOKEN = "doctor-0123456789abcdef"
GIB = 2**30
ROOM = {"error": None, "total": 100 * GIB, "free": 80 * GIB}
# What a healthy host without a GPU answers.
HEALTHY = {
    "python": "3.11.7",
    "packages": dict.fromkeys(probe.PACKAGES, "1.0"),
    "unmet": [],
    "code": "ab" * 32,
    "accelerator": {"error": None, "devices": [], "driver": None, "bf16": True, "build": None},
    "cpu": {"cores": 8, "units": "AMX bf16"},
    "compiler": {"name": "g++", "error": None, "triton": None},
    "folders": {"/shared": dict(ROOM)},
    "cache": "/tmp/cache",
    "cache_space": dict(ROOM),
    "memory": {"total": 64 * GIB, "free": 60 * GIB},
    "shared_memory": dict(ROOM),
    "open_files": 65536,
    "locked_memory": 2**23,
    "infiniband": [],
    "interfaces": {
        "lo": {"addresses": ["127.0.0.1", "::1"], "up": True, "speed": 0, "mtu": 65536},
        "eth0": {"addresses": ["10.0.0.1"], "up": True, "speed": 10000, "mtu": 1500},
        "eth1": {"addresses": [], "up": False, "speed": 0, "mtu": 1500},
    },
    "variables": {},
    "name": "a",
    "name_addresses": ["10.0.0.1"],
    "reached_at": "10.0.0.1",
}
H100 = {"name": "NVIDIA H100", "memory": 80 * GIB}


def changed(**changes) -> dict:
    """A healthy host's answer but for ``changes``; a key such as memory__free goes one deeper."""
    answer = copy.deepcopy(HEALTHY)
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            answer[outer][inner] = value
        else:
            answer[outer] = value
    return answer


def gpus(count: int, **changes) -> dict:
    found = {"error": None, "devices": [H100] * count, "driver": "550.1", "bf16": True, "build": "12.8"}
    return changed(accelerator=found | changes.pop("found", {}), compiler__triton="3.7", **changes)


def notable(*answers: dict, slots: int = 2) -> list[tuple[str, str, str, str]]:
    """(host, check, level, text) of what is not OK when hosts a, b, c … answer so."""
    found = judge({Host("abcdef"[number], slots): answer for number, answer in enumerate(answers)})
    return [(each.host, each.check, each.level, each.text) for each in found if each.level != OK]


# --- one host ---------------------------------------------------------------------------------------------------------


def test_healthy_hosts_are_green():
    assert notable(HEALTHY) == notable(HEALTHY, HEALTHY) == notable(gpus(8), gpus(8), slots=8) == []


@pytest.mark.parametrize(
    "answer, check, level, text",
    [
        (changed(packages__torch=None), "versions", FAIL, "torch not installed; pip install the project"),
        (changed(unmet=["torch 2.1 (needs >=2.9)"]), "versions", FAIL, "torch 2.1 (needs >=2.9); pip install the"),
        (
            changed(accelerator__error="OSError: libc10.so"),
            "accelerator",
            FAIL,
            "torch and transformers cannot be loaded: OSError: lib",
        ),
        (changed(accelerator__driver="550.1"), "accelerator", FAIL, "driver 550.1 is here, but torch is a CPU build"),
        (gpus(0), "accelerator", FAIL, "driver 550.1 is here, but torch (CUDA 12.8) cannot use it"),
        (gpus(1), "accelerator", FAIL, "1 × NVIDIA H100, fewer than the hostfile's slots=2; lower slots"),
        (gpus(2, found={"bf16": False}), "accelerator", WARN, "no bf16 units: set precision = 'fp32'"),
        (changed(cpu__cores=1), "CPU", WARN, "1 cores, AMX bf16: fewer than its 2 ranks"),
        (changed(compiler__error="g++ is not installed"), "compiler", WARN, "g++ is not installed; without a compiler"),
        (gpus(2) | {"compiler": HEALTHY["compiler"]}, "compiler", WARN, "Triton is not installed"),
        (changed(memory__free=GIB), "memory", FAIL, "1.0 GiB of 64.0 GiB free, under 1 GiB for each of 2 ranks"),
        (changed(memory__free=7 * GIB), "memory", WARN, "7.0 GiB of 64.0 GiB free, under 4 GiB for each"),
        (
            changed(shared_memory__free=2**26),
            "/dev/shm",
            WARN,
            "64.0 MiB free, under 0.25 GiB; give the container more",
        ),
        (gpus(2, shared_memory__free=2**26), "/dev/shm", FAIL, "64.0 MiB free, under 0.25 GiB"),
        (changed(open_files=1000), "open files", WARN, "1000 allowed; raise it (ulimit -n 65536)"),
        (changed(open_files=200), "open files", FAIL, "200 allowed; raise it"),
        (changed(infiniband=["mlx5_0"]), "locked memory", FAIL, "8.0 MiB allowed; mlx5_0 needs no limit"),
        (
            changed(cache_space__free=GIB - 1),
            "compile cache",
            WARN,
            "/tmp/cache: 1.0 GiB free, under 1.0 GiB; free some",
        ),
        (
            changed(cache_space__error="Read-only"),
            "compile cache",
            WARN,
            "/tmp/cache: cannot be written to (read-only)",
        ),
        (changed(folders={"/s": ROOM | {"free": 0}}), "disk", FAIL, "/s: 0.0 GiB free, under 1.0 GiB; free some"),
        (changed(folders={"/s": ROOM | {"free": 2 * GIB}}), "disk", WARN, "/s: 2.0 GiB free, under 20.0 GiB"),
        (changed(folders={"/s": ROOM | {"error": "No such"}}), "disk", FAIL, "/s: cannot be written to (no such)"),
        (
            changed(variables={"GLOO_SOCKET_IFNAME": "eth"}),
            "network",
            FAIL,
            "GLOO_SOCKET_IFNAME=eth: there is no interface eth; here are lo, eth0, eth1",
        ),
        (changed(variables={"NCCL_SOCKET_IFNAME": "ib0,eth"}), "network", FAIL, "there is no interface ib0"),
        (changed(variables={"GLOO_SOCKET_IFNAME": "eth1"}), "network", FAIL, "eth1 is down or has no address"),
    ],
)
def test_a_host_that_is_not_fit_says_what_to_do(answer, check, level, text):
    [found] = notable(answer)
    assert found[:3] == ("a", check, level) and text in found[3]


@pytest.mark.parametrize("value", ["eth", "=eth0", "^docker0", "eth0:5000,eth1", "eth0"])
def test_nccl_takes_the_beginning_of_a_name_and_names_to_leave_out(value):
    answer = changed(variables={"NCCL_SOCKET_IFNAME": value})
    answer["interfaces"]["eth1"] |= {"up": True, "addresses": ["10.0.1.1"]}
    assert notable(answer) == []


@pytest.mark.parametrize(
    "changes, check, text",
    [
        ({"packages__torch": "0.9"}, "versions", "torch 0.9, but 1.0 on a, c; install the same everywhere"),
        ({"python": "3.12.1"}, "versions", "Python 3.12.1, but 3.11.7 on a, c"),
        ({"code": "cd" * 32}, "code", "cdcdcdcdcdcd, but abababababab on a, c"),
        ({"accelerator": gpus(2)["accelerator"]}, "accelerator", "2 × NVIDIA H100, but no GPU on a, c"),
    ],
)
def test_of_three_hosts_the_odd_one_is_red(changes, check, text):
    [found] = notable(HEALTHY, changed(**changes) | {"compiler": gpus(2)["compiler"]}, HEALTHY)
    assert found[:3] == ("b", check, FAIL) and text in found[3]


def test_of_two_hosts_that_differ_the_second_is_red_and_names_the_first():
    assert notable(changed(python="3.12.1"), HEALTHY) == [
        ("b", "versions", FAIL, "Python 3.11.7, but 3.12.1 on a; install the same everywhere")
    ]


def test_unlike_gpus_and_unlike_mtus_are_warned_of():
    small = changed(interfaces__eth0=HEALTHY["interfaces"]["eth0"] | {"mtu": 9000})
    assert notable(HEALTHY, small) == [
        (
            "b",
            "network",
            WARN,
            "eth0 10.0.0.1, 10 Gbit/s, MTU 9000, but MTU 1500 on a: large packets may be lost; set the same",
        )
    ]
    assert notable(gpus(8), gpus(4)) == [("b", "accelerator", WARN, "4 × NVIDIA H100, but 8 × NVIDIA H100 on a")]


@pytest.mark.parametrize("addresses", [["127.0.1.1"], ["::1"], []])
def test_a_host_name_that_is_the_loopback_is_red_between_hosts_unless_an_interface_is_named(addresses):
    trapped = changed(name="debian", name_addresses=addresses)
    assert notable(trapped) == []
    [found] = notable(HEALTHY, trapped)
    assert found[:3] == ("b", "host name", FAIL)
    told = "debian is " + addresses[0] if addresses else "debian does not resolve"
    assert found[3] == (f"{told}: others cannot reach that; mend /etc/hosts there, or set GLOO_SOCKET_IFNAME=eth0")
    trapped["variables"] = {"GLOO_SOCKET_IFNAME": "eth0"}
    assert notable(HEALTHY, trapped) == []


def test_between_hosts_an_address_is_needed_that_others_can_reach():
    alone = changed(reached_at=None)
    alone["interfaces"]["eth0"]["up"] = False
    [found] = notable(HEALTHY, alone)
    assert found[1:3] == ("network", FAIL)
    assert found[3].startswith("no interface that is up has an address that others can reach: lo, eth0, eth1")


def test_the_address_is_that_of_the_named_interface_or_of_the_ssh_connection():
    own = copy.deepcopy(HEALTHY)
    own["interfaces"]["ib0"] = {"addresses": ["10.9.0.1"], "up": True, "speed": 100000, "mtu": 2044}
    assert fitness.address_of(own) == "10.0.0.1"
    assert fitness.address_of(own | {"reached_at": "::ffff:10.9.0.1"}) == "10.9.0.1"
    assert fitness.address_of(own | {"reached_at": "127.0.0.1"}) == "10.0.0.1"
    assert fitness.address_of(own | {"variables": {"GLOO_SOCKET_IFNAME": "ib0"}}) == "10.9.0.1"
    assert fitness.interface_of(own | {"reached_at": "10.9.0.1"}) == "ib0"


# --- what a probe sees ------------------------------------------------------------------------------------------------


def asked(question: str, *arguments: str, **variables: str):
    """What a fresh process answers by ``probe.QUESTION(*arguments)``, with these variables in its environment."""
    code = f"import json, sys; from pipeline import probe; print(json.dumps(probe.{question}({', '.join(arguments)})))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment() | variables
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_limit_on_open_files_is_seen():
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

    code = "import resource; from pipeline import probe; print(probe._limit(resource.RLIMIT_NOFILE))"
    result = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == "200\n"


@pytest.mark.parametrize("name, why", [("nosuch++", "nosuch++ is not installed"), ("false", "false: it failed")])
def test_a_compiler_that_is_missing_or_fails_is_seen(name, why):
    assert asked("compiler", CXX=name)["error"] == why


def test_a_compiler_without_pythons_headers_is_seen(tmp_path):
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    code = (
        "import sysconfig; sysconfig.get_paths = lambda: {'include': '/nosuch'}\n"
        "from pipeline import probe; print(probe.compiler()['error'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "Python.h: No such file or directory" in result.stdout


def test_space_is_that_of_the_folders_file_system_and_a_missing_folder_has_none(tmp_path):
    space = os.statvfs(tmp_path)
    found = probe.free_space(tmp_path)
    assert found["error"] is None and found["total"] == space.f_blocks * space.f_frsize
    assert abs(found["free"] - space.f_bavail * space.f_frsize) < GIB
    assert probe.free_space(tmp_path / "nosuch")["error"] == os.strerror(errno.ENOENT)


def test_a_full_disk_is_seen(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    code = (
        "import sys; from pathlib import Path; from pipeline import probe\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "try: (folder / 'filler').write_bytes(b'x' * 2**17)\n"
        "except OSError: pass\n"
        "print(probe.free_space(folder)['error'])"
    )
    result = in_own_mounts(mount, [sys.executable, "-c", code])
    assert result.stdout.strip() == os.strerror(errno.ENOSPC), result.stderr


def test_a_control_groups_limit_counts_as_memory(tmp_path, monkeypatch):
    inner = tmp_path / "sys/fs/cgroup/slurm/job"
    inner.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/slurm/job\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("5\n")
    (inner.parent / "memory.max").write_text(f"{2**28}\n")
    (inner.parent / "memory.current").write_text(f"{2**27}\n")
    monkeypatch.setattr(probe, "SYSTEM", tmp_path)
    assert probe.memory() == {"total": 2**28, "free": 2**27}


def test_driver_processor_and_infiniband_are_read_from_the_system(tmp_path, monkeypatch):
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\nGCC version: 12\n"
    )
    (tmp_path / "proc/cpuinfo").write_text("flags : fpu avx2 avx512f avx512_bf16\n")
    monkeypatch.setattr(probe, "SYSTEM", tmp_path)
    assert probe.nvidia_driver() == "550.54.15"
    assert probe.processor()["units"] == "AVX-512 bf16"
    monkeypatch.setattr(probe, "SYSTEM", tmp_path / "nosuch")
    assert probe.nvidia_driver() is None


def test_the_compile_cache_is_where_torch_keeps_it(monkeypatch):
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/tmp")
    assert str(probe.compile_cache()) == cache_dir()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert str(probe.compile_cache()) == default_cache_dir()
    monkeypatch.setattr(probe.getpass, "getuser", nobody)
    assert str(probe.compile_cache()) == default_cache_dir()


def test_the_code_hash_follows_names_and_contents_of_source_files(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "ROOT", tmp_path)
    (tmp_path / "pipeline").mkdir()
    seen = [probe.code_hash()]
    for name, content in (("a.py", "1"), ("a.py", "2"), ("b.toml", "2"), ("c.json", "")):
        (tmp_path / "pipeline" / name).write_text(content)
        seen.append(probe.code_hash())
    (tmp_path / "pipeline/a.pyc").write_text("3")
    assert len(set(seen)) == 5 and probe.code_hash() == seen[-1]


def test_a_package_that_the_project_does_not_allow_is_seen(monkeypatch):
    wanted = ["torch<1", "numpy>=1", "nosuchpackage>=3", "pytest<1; extra == 'test'"]
    monkeypatch.setattr(probe.importlib.metadata, "requires", lambda name: wanted)
    version = probe.importlib.metadata.version("torch")
    assert list(probe.unmet_requirements()) == [f"torch {version} (needs <1)", "nosuchpackage is missing (needs >=3)"]


def test_a_torch_that_cannot_be_loaded_is_an_answer(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    found = asked("accelerator", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert found["error"] == "OSError: libcudart.so: cannot open shared object file"


def test_interfaces_and_names_are_those_of_this_machine():
    there = probe.interfaces()
    assert "127.0.0.1" in there["lo"]["addresses"] and there["lo"]["up"]
    assert "127.0.0.1" in probe.addresses_of("localhost")
    assert probe.addresses_of("nosuch.invalid") == []


def test_a_port_answers_if_it_is_the_probes_own():
    here = probe.Answers(TOKEN)
    other = socket.create_server(("127.0.0.1", 0))  # accepts, and says something else
    threading.Thread(target=lambda: other.accept()[0].sendall(b"SSH-2.0-" * 4), daemon=True).start()
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # nobody listens
        ports = [here.listen(), other.getsockname()[1], dead.getsockname()[1]]
        found = here.reach([("127.0.0.1", port) for port in ports], patience=5)
    assert found == [None, "something else answers there", "connection refused"]


def test_a_port_that_does_not_answer_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        found = probe.Answers(TOKEN).reach([silent.getsockname()[:2]], patience=1)
    assert found == ["no answer within 1 s"] and time.monotonic() - begin < 10


def test_a_file_counts_as_seen_with_the_right_content_and_may_take_a_moment(tmp_path):
    here = probe.Answers(TOKEN)
    (tmp_path / "one").write_text("old")
    (tmp_path / "two").write_text("new")
    files = {"folder": str(tmp_path), "contents": {"one": "new", "two": "new", "three": "new"}}
    assert here.read(**files, patience=0.1) == ["two"]
    late = threading.Timer(0.3, lambda: [(tmp_path / name).write_text("new") for name in ("one", "three")])
    late.start()
    assert here.read(**files, patience=10) == ["one", "two", "three"]


# --- the conversation -------------------------------------------------------------------------------------------------


def program(before: str = "", name: str = "a", wrapper: tuple[str, ...] = (), patience: float = 30) -> Probe:
    """A real probe in a process of its own, in which ``before`` runs first."""
    code = f"import os; os.chdir({str(ROOT)!r})\n{before}\nfrom pipeline import probe\nprobe.main({TOKEN!r})"
    return Probe(name, [*wrapper, sys.executable, "-c", code], TOKEN, patience)


@pytest.fixture
def probes():
    """Makes probes that are closed at the end."""
    made = {}

    def make(name: str, before: str = "", wrapper: tuple[str, ...] = ()) -> dict[str, Probe]:
        made[name] = program(before, name, wrapper)
        return made

    yield make
    for each in made.values():
        each.close()


def test_a_real_probe_answers_what_is_judged(probes):
    [each] = probes("a").values()
    answer = each.ask("facts", folders=["/tmp"])
    assert answer.keys() == HEALTHY.keys()
    for key in ("accelerator", "cpu", "compiler", "memory", "cache_space"):
        assert answer[key].keys() == HEALTHY[key].keys(), key
    assert answer["interfaces"]["lo"].keys() == HEALTHY["interfaces"]["lo"].keys()
    assert answer["packages"]["torch"] == torch.__version__
    assert {finding.check for finding in judge({Host("a", 1): answer})} >= {"versions", "disk", "network"}


def test_banners_and_other_garbage_are_no_answers(probes):
    noise = "print('Welcome {', flush=True); os.write(1, b'no newline doctor- {} \\xff')\nprint(3, file=os.sys.stderr)"
    [each] = probes("a", noise).values()
    assert abs(each.ask("clock") - time.time()) < 60
    assert each.ask("listen") > 0


@pytest.mark.parametrize("line", ["Welcome\n", f"{TOKEN}\n", f"{TOKEN} [\n", "doctor-1 {}\n", '{"answer": 1}\n'])
def test_a_line_without_the_token_and_json_is_nothing(line):
    assert read_line(line, TOKEN) is None
    assert read_line(f"motd {TOKEN} " + '{"answer": 1}\n', TOKEN) == {"answer": 1}


def test_what_a_host_cannot_do_is_told_in_the_systems_words(probes):
    [each] = probes("a").values()
    with pytest.raises(NoAnswer, match=r"^no such file or directory$"):
        each.ask("write", folder="/nosuch", name="x", content="y")
    assert each.ask("read", folder="/nosuch", contents={"x": "y"}, patience=0) == []


def test_a_probe_ends_with_its_input():
    each = program()
    each.ask("clock")
    begin = time.monotonic()
    each.close()
    assert time.monotonic() - begin < 4 and each._process.returncode == 0


def test_a_silent_host_is_given_up_and_says_so_again(monkeypatch):
    monkeypatch.setattr(doctor, "STARTING", 1)
    each = Probe("a", [sys.executable, "-c", "import time; time.sleep(60)"], TOKEN, patience=1)
    monkeypatch.setattr(each, "close", lambda: os.killpg(each._process.pid, signal.SIGKILL))
    for _ in range(2):
        with pytest.raises(NoAnswer, match=r"^silent for 1 s when asked for 'facts'; does a file system hang there"):
            each.ask("facts", folders=[])
    each._process.wait()


@pytest.mark.parametrize(
    "script, message",
    [
        ("exec /nosuch/python", "no .* there; install the project at the same path on every host"),
        ("cd /nosuch && exec true", "no folder .* there; start in one that all hosts share"),
        ("exec python3 -m nosuch.module", "install the project there, in the environment of"),
        ("echo error: broken >&2; exit 3", "^the probe ended with code 3: broken$"),
        ("exit 3", "^the probe ended with code 3: nothing was said$"),
    ],
)
def test_a_probe_that_cannot_start_says_what_is_missing(script, message):
    each = Probe("a", ["sh", "-c", script], TOKEN, patience=20)
    for _ in range(2):
        with pytest.raises(NoAnswer, match=message):
            each.ask("facts", folders=[])


# --- ssh --------------------------------------------------------------------------------------------------------------


def ssh_says(monkeypatch, host: str, *options: str, timeout: int = 5) -> str:
    """Why the real ssh does not reach ``host``, in the doctor's words."""
    if not shutil.which("ssh"):
        pytest.skip("needs ssh")
    fixed = ("-F/dev/null", "-oUserKnownHostsFile=/dev/null", *options)
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", " ".join(fixed))
    command = doctor.probe_command(host, TOKEN, Namespace(timeout=timeout))
    assert command[0] == "ssh" and "-oBatchMode=yes" in command
    with pytest.raises(NoAnswer) as caught:
        Probe(host, command, TOKEN, timeout).ask("facts", folders=[])
    return str(caught.value)


def test_an_unknown_host_is_told(monkeypatch):
    assert ssh_says(monkeypatch, "nosuch.invalid").startswith("unknown host: its name does not resolve")


def test_a_host_without_an_ssh_server_is_told(monkeypatch):
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        said = ssh_says(monkeypatch, "127.0.0.1", f"-p{dead.getsockname()[1]}")
    assert said == "refused: nothing listens on its ssh port; start sshd there"


def test_a_host_that_hangs_at_the_door_is_told(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = ssh_says(monkeypatch, "127.0.0.1", f"-p{silent.getsockname()[1]}", timeout=2)
    assert said.startswith("time-out: no way there, or it is off")


@pytest.mark.parametrize(
    "line, words",
    [
        ("root@b: Permission denied (publickey).", "ssh there refuses this user's key; run ssh-copy-id"),
        ("Host key verification failed.", "its ssh host key is not known here"),
        (
            "@  WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!  @\nHost key verification failed.",
            "not the one in known",
        ),
        ("Received disconnect: Too many authentication failures", "ssh offers too many keys"),
        ("ssh: connect to host b port 22: No route to host", "no route: it is off, or in another network"),
        ("ssh: connect to host b port 22: Network is unreachable", "no route: it is off, or in another network"),
        ("kex_exchange_identification: read: strange", "the probe ended with code 255: kex_exchange_identification"),
    ],
)
def test_what_ssh_says_comes_in_plain_words(line, words):
    assert words in plain_words(255, ["Banner\n", *line.splitlines(keepends=True)])


def test_a_machine_without_ssh_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "/nosuch")
    with pytest.raises(UserError, match=r"^ssh: is not installed here; install it"):
        Probe("b", doctor.probe_command("b", TOKEN, Namespace(timeout=5)), TOKEN, 5)


def test_a_folder_that_a_shell_would_misread_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "a b;c"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="the folder has ' ' in its name"):
        doctor.probe_command("b", TOKEN, Namespace(timeout=5))


# --- between hosts ----------------------------------------------------------------------------------------------------


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.host: finding.level for finding in findings}


def test_clocks_that_agree_are_green(probes):
    probes("a")
    found = doctor.check_clocks(probes("b"))
    assert levels(found) == {"a": OK, "b": OK}
    assert all(abs(each.values["seconds"]) <= each.values["error"] < 1 for each in found)


def test_of_three_clocks_the_one_that_is_wrong_is_red(probes):
    probes("a", "import time; right = time.time; time.time = lambda: right() + 90")
    probes("b")
    found = {each.host: each for each in doctor.check_clocks(probes("c"))}
    assert levels(found.values()) == {"a": FAIL, "b": OK, "c": OK}
    assert abs(found["a"].values["seconds"] - 90) < 1
    assert " s ahead of " in found["a"].text and "start chrony or ntpd there" in found["a"].text


def test_an_offset_is_measured_from_the_middle_of_the_round_trip():
    class Ahead:
        def ask(self, question):
            time.sleep(0.01)
            there = time.time() + 5
            time.sleep(0.01)
            return there

    offset, error = doctor.clock_offset(Ahead())
    assert abs(offset - 5) <= error and 0.01 <= error < 0.5


def test_a_clock_that_cannot_be_read_in_time_is_warned_of():
    class Slow:
        def __init__(self, name):
            self.name = name

        def ask(self, question):
            time.sleep(0.02)
            return time.time()

    with pytest.MonkeyPatch.context() as patch:  # a second is 50 of ours
        real = time.time
        patch.setattr(time, "time", lambda: real() * 100)
        found = doctor.check_clocks({name: Slow(name) for name in "ab"})
    assert sorted(levels(found).values()) == [OK, WARN]


def test_hosts_connect_to_each_other(probes):
    probes("a")
    found = doctor.check_connections(probes("b"), {"a": "127.0.0.1", "b": "127.0.0.1"})
    assert [(each.host, each.level, each.text) for each in found] == [("a", OK, "to b"), ("b", OK, "to a")]


def test_a_dead_port_is_red_and_names_both_ends(probes):
    deaf = "from pipeline.probe import Answers; heard = Answers.listen\ndef listen(self):\n port = heard(self)\n"
    deaf += " self._listener.shutdown(2); self._listener.close(); return port\nAnswers.listen = listen"
    probes("a")
    found = doctor.check_connections(probes("b", deaf), {"a": "127.0.0.1", "b": "127.0.0.1"})
    assert levels(found) == {"a": FAIL, "b": OK}
    assert "cannot connect to b (127.0.0.1 port " in found[0].text
    assert found[0].text.endswith("): connection refused; open all ports between the hosts")


def in_own_mounts(mount: list[str], command: list[str]) -> subprocess.CompletedProcess:
    """``command`` after ``mount``, which nobody else sees. Skips the test where that is not allowed."""
    return subprocess.run([*own_mounts(mount), *command], capture_output=True, text=True, cwd=ROOT)


def own_mounts(mount: list[str]) -> tuple[str, ...]:
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    wrapper = (*unshare, "sh", "-c", f'{" ".join(mount)} && exec "$0" "$@"')
    try:
        allowed = subprocess.run([*wrapper, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("needs root, or leave to make mounts of its own")
    return wrapper


def test_a_shared_folder_is_green_and_left_empty(probes, tmp_path):
    probes("a")
    found = doctor.check_shared(probes("b"), str(tmp_path))
    assert [(each.host, each.level) for each in found] == [("a", OK), ("b", OK)]
    assert found[0].text == f"{tmp_path}: files are seen by all, locks exclude"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_one_host_has_for_itself_is_red_with_its_path(probes, tmp_path):
    wrapper = own_mounts(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)])
    probes("a", wrapper=wrapper)
    probes("b")
    found = {each.host: each for each in doctor.check_shared(probes("c"), str(tmp_path))}
    assert levels(found.values()) == {"a": FAIL, "b": OK, "c": OK}
    assert found["a"].text.startswith(f"{tmp_path}: what b, c write there is not here: not shared; mount it")


def test_a_folder_that_is_missing_or_read_only_is_red(probes, tmp_path):
    probes("a")
    found = doctor.check_shared(probes("b", f"os.rename({str(tmp_path)!r}, {str(tmp_path) + 'x'!r})"), str(tmp_path))
    assert [each.text for each in found] == [f"{tmp_path}: no such file or directory"] * 2
    assert {each.level for each in found} == {FAIL}


def test_locks_that_do_not_exclude_are_red(probes, tmp_path):
    probes("a")
    found = {each.host: each for each in doctor.check_shared(probes("b", _NO_LOCKS.format("None")), str(tmp_path))}
    assert levels(found.values()) == {"a": FAIL, "b": FAIL}
    assert "could lock what a had locked; mount it so that locks are passed on" in found["b"].text


def test_a_file_system_without_locks_is_red(probes, tmp_path):
    before = _NO_LOCKS.format("(_ for _ in ()).throw(OSError(37, 'No locks available'))")
    probes("a")
    found = {each.host: each for each in doctor.check_shared(probes("b", before), str(tmp_path))}
    assert found["b"].level == FAIL and found["b"].text == f"{tmp_path}: no locks available"


_NO_LOCKS = "import fcntl; fcntl.flock = lambda *a: {}"


def test_one_host_alone_tries_its_own_lock(probes, tmp_path):
    assert [each.text for each in doctor.check_shared(probes("a"), str(tmp_path))] == [f"{tmp_path}: locks exclude"]


def test_a_lock_that_stays_is_red(probes, tmp_path):
    keeping = "from pipeline.probe import Answers; Answers.unlock = lambda self: None"
    probes("a", keeping)
    found = {each.host: each for each in doctor.check_shared(probes("b"), str(tmp_path))}
    assert "could not lock what a had unlocked" in found["b"].text


# --- the all-reduce ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("world", [1, 2, 3, 8, 300])
def test_addends_come_to_the_known_sum_in_any_order(world, dtype):
    parts = [allreduce.addend(rank, world, 5000, dtype) for rank in range(world)]
    right = allreduce.total(5000, dtype)
    for order in (parts, parts[::-1]):
        assert torch.equal(sum(order), right)
    assert right.unique().tolist() == [2, 4, 6, 8, 10, 12, 14]
    if world > 1:  # and without any one of them it is wrong
        assert all(not torch.equal(right - part, right) for part in parts)


def test_bus_bandwidth_is_what_a_link_carries():
    assert allreduce.bus_bandwidth(100, 2.0, 2) == 50
    assert allreduce.bus_bandwidth(100, 2.0, 4) == 75
    assert allreduce.bus_bandwidth(100, 2.0, 1) == 0


def ranks(before: str = "", patience: float = 60) -> Finding:
    """The finding of two real ranks, on hosts a and b, of an all-reduce of 1 MiB, in which ``before`` runs first.

    ``rank`` is known to it. They are started as a launcher starts them, but neither is ended when the other has.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    code = f"import os, torch, torch.distributed as dist\nrank = int(os.environ['RANK'])\n{before}\n"
    code += f"from pipeline import allreduce\nallreduce.main({TOKEN!r}, 1)"
    start = (
        "import os, subprocess, sys\n"
        "each = [subprocess.Popen([sys.executable, '-c', sys.argv[1]], env=os.environ | {'RANK': str(r), 'LOCAL_RANK': "
        "str(r)}) for r in range(2)]\n"
        "sys.exit(max(one.wait() for one in each))"
    )
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", start, code]
    return Ranks(command, environment() | variables, TOKEN, ["a", "b"]).follow(patience)


_AT_ALL_REDUCE = """
real = dist.all_reduce
def all_reduce(tensor):
    if rank == 1 and len(tensor) > 1000: {}
    real(tensor)
dist.all_reduce = all_reduce
"""


def test_a_wrong_sum_is_red_and_counted():
    found = ranks(_AT_ALL_REDUCE.format("tensor[7:9] += 1"))
    assert (found.level, found.text) == (FAIL, "rank 0 on a: 2 of 524288 sums are wrong (bf16 large)")


def test_a_rank_that_dies_is_named_and_not_the_one_that_notices():
    found = ranks(_AT_ALL_REDUCE.format("os.kill(os.getpid(), 9)"))
    assert (found.level, found.text) == (FAIL, "rank 1 on b: gone after 'bf16 small'")


def test_a_rank_that_hangs_is_named_in_time_and_ended(monkeypatch):
    monkeypatch.setattr(doctor, "STARTING", 120)
    found = ranks(_AT_ALL_REDUCE.format("os.kill(os.getpid(), 19)"), patience=8)  # SIGSTOP
    assert found.level == FAIL and re.fullmatch("rank 1 on b: silent for [89] s, after 'bf16 small'", found.text)
    for process in psutil.process_iter():
        try:
            assert TOKEN not in " ".join(process.cmdline()), process.cmdline()
        except psutil.Error:
            continue


def test_whom_a_rank_has_started_is_gone_too_however_long_that_takes(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "STARTING", 2)
    child = f"import os, time; d = b'1' * 2**29; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    found = Ranks([sys.executable, "-c", code], dict(os.environ), TOKEN, ["a"]).follow(1)
    assert found.level == FAIL and (tmp_path / "pid").exists()
    with contextlib.suppress(OSError):  # its memory, half a GiB, is freed before its files are closed
        assert not list(Path("/proc", (tmp_path / "pid").read_text(), "fd").iterdir())


LINES = """
import json, sys, time
def say(rank, **row): print("noise", f"{}", json.dumps({{"rank": rank, **row}}), flush=True)
"""


def lines(script: str, patience: float = 3) -> Finding:
    """The finding from what a launch with two ranks prints."""
    code = LINES.format(TOKEN) + script
    return Ranks([sys.executable, "-c", code], dict(os.environ), TOKEN, ["a", "b"]).follow(patience)


def test_ranks_that_live_and_get_nowhere_are_told(monkeypatch):
    monkeypatch.setattr(doctor, "STARTING", 0)
    beat = "\nwhile True: time.sleep(0.2); say(0, alive=True); say(1, alive=True)"
    both = "say(0, stage='started'); say(1, stage='started'); say(1, round=1)"
    assert lines(both + beat).text == (
        "rank 0, 1 on a, b: no progress for 3 s after 'started'; is traffic between them blocked (a firewall, the MTU)?"
    )
    assert lines(both + "; say(0, stage='joined')" + beat).text == (
        "rank 1 on b: no progress for 3 s after 'started', while the others wait"
    )


def test_a_rank_that_never_starts_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "STARTING", 4)
    found = lines("say(0, stage='started')\nwhile True: time.sleep(0.2); say(0, alive=True)")
    assert found.text == "rank 1 on b: silent for 4 s, after its start"


def test_a_ranks_own_error_is_told():
    found = lines("say(0, error='Connection closed by peer'); say(1, error='unable to find interface'); time.sleep(60)")
    assert (found.level, found.text) == (FAIL, "rank 1 on b: unable to find interface")


def test_a_launch_that_fails_is_told_with_its_last_error():
    found = lines("print('RuntimeError: no slot here'); print('bye'); sys.exit(5)")
    assert found.text == (
        "rank 0, 1 on a, b: gone after its start; the launch ended with code 5: RuntimeError: no slot here"
    )
    assert lines("sys.exit(5)").text.endswith("the launch ended with code 5: nothing was said")


def test_a_launch_that_cannot_start_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nosuch")
    monkeypatch.setenv("HOME", str(tmp_path))
    options = Namespace(hostfile=tmp_path / "hosts", timeout=5, size=1, master_addr=None, master_port=None)
    [found] = doctor.check_all_reduce([Host("a", 1)], {"a": HEALTHY}, options, TOKEN)
    assert found.level == FAIL and found.text.startswith("pdsh is not installed: ")


def test_a_slow_network_between_hosts_is_warned_of():
    script = """
for rank in (0, 1):
    say(rank, stage="started"); say(rank, stage="joined", backend="gloo")
    for stage in ("bf16 small", "bf16 large", "fp32 small", "fp32 large"):
        say(rank, stage=stage, count=2**18, wrong=0, seconds=1e-3, bandwidth=0.09e9)
    say(rank, stage="done")
"""
    found = lines(script)
    assert found.level == WARN
    assert found.text == (
        "2 ranks, gloo: sums exact in bf16 and fp32; 1 MiB at 0.09 GB/s (bus), latency 1.00 ms; "
        "slower than Gigabit Ethernet: is it the right interface?"
    )
    assert lines(script.replace("0.09e9", "0.2e9")).level == OK


# --- the whole command ------------------------------------------------------------------------------------------------


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.doctor", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment() | variables, timeout=PATIENCE
    )


def test_this_machine_is_examined_with_two_real_ranks(tmp_path):
    result = run("--json", "--size", "1", "--shared", str(tmp_path))
    *rows, last = map(json.loads, result.stdout.splitlines())
    found = {row["check"]: row for row in rows}
    assert all(row.keys() == {"host", "check", "level", "text", "values"} for row in rows)
    assert {"versions", "code", "accelerator", "CPU", "compiler", "memory", "/dev/shm", "open files"} <= found.keys()
    assert {"compile cache", "disk", "network", "host name", "shared folder", "all-reduce"} <= found.keys()
    counted = {level: sum(row["level"] == level for row in rows) for level in (OK, WARN, FAIL)}
    assert last == {"summary": counted}
    assert result.returncode == (1 if counted[FAIL] else 0), result.stderr
    assert found["shared folder"]["level"] == found["all-reduce"]["level"] == OK
    assert "2 ranks" in found["all-reduce"]["text"] or torch.cuda.is_available()
    assert found["all-reduce"]["values"]["fp32 large"]["wrong"] == 0
    assert found["versions"]["values"]["torch"] == torch.__version__
    assert list(tmp_path.iterdir()) == []


def test_an_interface_that_does_not_exist_is_red_and_ends_with_code_1():
    result = run("--size", "1", GLOO_SOCKET_IFNAME="nosuch0")
    assert result.returncode == 1, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[1] == "localhost" and "together" in lines
    [network] = [line for line in lines if line.startswith("FAIL network")]
    assert network.startswith("FAIL network GLOO_SOCKET_IFNAME=nosuch0: there is no interface nosuch0; here are ")
    [added] = [line for line in lines if "all-reduce" in line]
    assert added.startswith("FAIL all-reduce rank ") and "nosuch0" in added
    assert lines[-1].startswith("Not fit to run: 2 FAIL, ")
    assert "\033" not in result.stdout and "Traceback" not in result.stderr


def test_a_host_that_is_not_reached_is_red_and_nothing_is_launched(tmp_path):
    if not shutil.which("ssh"):
        pytest.skip("needs ssh")
    (tmp_path / "hosts").write_text("nosuch1.invalid slots=1\nnosuch2.invalid slots=1\n")
    result = run("--hostfile", str(tmp_path / "hosts"), PDSH_SSH_ARGS_APPEND="-F/dev/null")
    assert result.returncode == 1
    assert result.stdout.count("FAIL  ssh            unknown host: its name does not resolve") == 2
    assert "WARN  all-reduce     not tried, because of nosuch1.invalid, nosuch2.invalid" in result.stdout
    assert "WARN  shared folder  none was looked at; name those of data and runs" in result.stdout
    assert result.stdout.endswith("Not fit to run: 2 FAIL, 2 WARN, 0 OK.\n")


def test_between_hosts_a_torch_that_is_broken_here_is_one_line_and_code_2(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    (tmp_path / "hosts").write_text("a slots=1\n")
    result = run("--hostfile", str(tmp_path / "hosts"), PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: torch cannot be loaded on this machine (broken); run the doctor here without"
    )
    assert result.stderr.count("\n") == 1


def test_a_machine_whose_own_probe_fails_is_red(monkeypatch):
    monkeypatch.setattr(doctor, "probe_command", lambda *_: ["sh", "-c", "echo error: no memory >&2; exit 3"])
    found = list(doctor.examine(None, Namespace(shared=[], timeout=5)))
    assert [(each.host, each.check, each.level, each.text) for each in found] == [
        ("localhost", "probe", FAIL, "the probe ended with code 3: no memory"),
        ("", "all-reduce", WARN, "not tried, because of what has failed above"),
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--nosuch"], "error: unrecognized arguments: --nosuch; see python -m pipeline.doctor --help"),
        (["--size", "0"], "error: argument --size: '0' is not a whole number of at least 1; see"),
        (["--timeout", "soon"], "error: argument --timeout: 'soon' is not a whole number"),
        (["--hostfile", "/nosuch"], "error: /nosuch: cannot be read as a hostfile"),
        (["--hostfile", "README.md"], "error: README.md:"),
    ],
)
def test_a_mistake_in_the_command_is_one_line_and_code_2(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(message) and result.stderr.count("\n") == 1


def test_colour_is_for_terminals_only(capsys, monkeypatch):
    doctor._show(Finding("a", "clock", FAIL, "wrong"), first=True)
    assert capsys.readouterr().out == "\na\n  FAIL  clock          wrong\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    doctor._show(Finding("a", "clock", OK, "right"), first=False)
    assert capsys.readouterr().out == "  \033[32mOK  \033[0m  clock          right\n"


def test_the_doctor_itself_does_not_need_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    result = run(PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert result.returncode == 1, result.stderr
    assert "FAIL  accelerator    torch and transformers cannot be loaded: ImportError: broken" in result.stdout
    assert "WARN  all-reduce     not tried, because of localhost" in result.stdout
