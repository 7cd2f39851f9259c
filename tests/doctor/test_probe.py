"""pipeline.doctor.probe: what a probe sees on its host."""

import errno
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from pipeline.doctor import probe
from tests.parts.doctored import GIB, TOKEN, in_own_mounts
from tests.parts.launching import ROOT, environment


def asked(question: str, *arguments: str, **variables: str):
    """What a fresh process answers by ``probe.QUESTION(*arguments)``, with these variables in its environment."""
    code = f"import json, sys; from pipeline.doctor import probe; print(json.dumps(probe.{question}({', '.join(arguments)})))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment() | variables
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_limit_on_open_files_is_seen():
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

    code = "import resource; from pipeline.doctor import probe; print(probe._limit(resource.RLIMIT_NOFILE))"
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
        "from pipeline.doctor import probe; print(probe.compiler()['error'])"
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
        "import sys; from pathlib import Path; from pipeline.doctor import probe\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "try: (folder / 'filler').write_bytes(b'x' * 2**17)\n"
        "except OSError: pass\n"
        "print(probe.free_space(folder)['error'])"
    )
    result = in_own_mounts(mount, [sys.executable, "-c", code])
    assert result.stdout.strip() == os.strerror(errno.ENOSPC), result.stderr


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
