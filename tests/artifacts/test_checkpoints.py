"""artifacts.checkpoints: whole or not there, and found again only when whole."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_prep.cli import UserError
from data_prep.files import file_sha256, sealed
from pipeline.artifacts import checkpoints
from pipeline.artifacts.run_folder import refuse_foreign
from tests.parts import launching

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "exp_avg/a.weight": torch.ones(2, 3)}


def save(run, step, keep=3):
    return checkpoints.save(run, {"step": step}, {name: t + step for name, t in TENSORS.items()}, keep)


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert checkpoints.latest(tmp_path) is None
    for step in (5, 10, 100_000_000):
        save(tmp_path, step)
    found = checkpoints.latest(tmp_path)
    assert found.step == 100_000_000
    assert torch.equal(found.tensors()["exp_avg/a.weight"], torch.ones(2, 3) + 100_000_000)
    assert list(found.weights()) == ["a.weight"]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_torn_checkpoint_is_skipped_with_a_warning_and_kept(tmp_path, capsys, name, damage):
    save(tmp_path, 5)
    torn = save(tmp_path, 10) / name
    content = bytearray(torn.read_bytes())
    if damage == "truncate":
        torn.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[content.index(b"sha256") + 12 if name == "state.json" else -3] ^= 1
        torn.write_bytes(content)
    else:
        torn.unlink()
    assert checkpoints.latest(tmp_path).step == 5
    warning = capsys.readouterr().err
    assert f"warning: {torn.parent} is not whole" in warning and warning.count("\n") == 1
    assert torn.parent.exists()


def test_a_torn_checkpoint_gives_way_to_a_new_one_of_its_step(tmp_path):
    (save(tmp_path, 5) / "state.json").unlink()
    save(tmp_path, 5)
    assert checkpoints.latest(tmp_path).step == 5
    assert (tmp_path / "checkpoints" / "torn-step-00000005.0" / "state.safetensors").exists()


def test_a_half_written_folder_is_not_a_checkpoint(tmp_path):
    folder = save(tmp_path, 5)
    folder.rename(folder.with_name(".writing-00000005"))
    assert checkpoints.latest(tmp_path) is None
    save(tmp_path, 5)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000003", "step-00000004"]


def test_keeping_the_newest_never_touches_later_torn_or_foreign_folders(tmp_path):
    save(tmp_path, 100)
    (save(tmp_path, 150) / "state.json").unlink()  # torn; the run resumes from 100 with another checkpoint_every
    (save(tmp_path, 90) / "state.json").unlink()
    (tmp_path / "checkpoints" / "step-00000050-best").mkdir()
    save(tmp_path, 120, keep=1)
    names = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000050-best", "step-00000090", "step-00000120", "step-00000150"]
    assert checkpoints.latest(tmp_path).step == 120


def test_a_torn_checkpoint_does_not_take_the_place_of_a_whole_one(tmp_path):
    save(tmp_path, 80)
    (save(tmp_path, 90) / "state.json").unlink()
    save(tmp_path, 100, keep=2)
    names = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000080", "step-00000090", "step-00000100"]


def flip(folder):
    """Change a number in a checkpoint's state; its size stays."""
    state = folder / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-3] ^= 1
    state.write_bytes(content)


@pytest.mark.parametrize("by_this_process", [True, False])
def test_a_damaged_checkpoint_of_whole_size_does_not_either(tmp_path, monkeypatch, by_this_process):
    save(tmp_path, 80)
    flip(save(tmp_path, 90))
    if not by_this_process:
        monkeypatch.setattr(checkpoints, "_known", {})
    save(tmp_path, 100, keep=2)
    names = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000080", "step-00000090", "step-00000100"]


def bytes_read() -> int:
    """By this process until now, from files and caches."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


@pytest.mark.parametrize("keep, keep_every", [(12, 0), (3, 0), (3, 2)])
def test_a_save_reads_nothing_but_what_it_writes_also_after_a_resume(tmp_path, monkeypatch, keep, keep_every):
    size = 4 * 2**20
    tensors, read = {"a.weight": torch.zeros(size // 4)}, []
    for step in range(1, 11):
        before = bytes_read()
        checkpoints.save(tmp_path, {"step": step}, tensors, keep, keep_every)
        read.append(bytes_read() - before)
        if step == 6:
            monkeypatch.setattr(checkpoints, "_known", {})  # another process resumes the run
            assert checkpoints.latest(tmp_path, keep).step == 6
    assert max(read) < 1.1 * size
    assert len(list((tmp_path / "checkpoints").iterdir())) == {0: min(keep, 10), 2: 6}[keep_every]


def test_what_is_loaded_is_hashed_also_by_the_process_that_wrote_it(tmp_path, monkeypatch):
    save(tmp_path, 5)
    save(tmp_path, 6)
    hashed = []
    monkeypatch.setattr(checkpoints, "file_sha256", lambda path: (hashed.append(path), file_sha256(path))[1])
    checkpoints.newest_of(tmp_path)
    assert [path.parent.name for path in hashed] == ["step-00000006"]


def test_those_of_every_so_many_steps_are_kept_for_good(tmp_path):
    for step in range(10, 80, 10):
        checkpoints.save(tmp_path, {"step": step}, {"a.weight": torch.zeros(3)}, 1, keep_every=30)
    names = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000030", "step-00000060", "step-00000070"]


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    save(tmp_path, 5)
    (tmp_path / "checkpoints" / ".step-00000009.writing").mkdir()
    (tmp_path / "checkpoints" / ".writing-00000007").mkdir()  # as earlier versions called it
    save(tmp_path, 6)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005", "step-00000006"]


def test_a_checkpoint_that_cannot_fit_is_not_begun(tmp_path, monkeypatch):
    save(tmp_path, 5)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=2**20 + 11))
    monkeypatch.setattr(checkpoints, "save_file", lambda *_: pytest.fail("begun"))
    with pytest.raises(UserError, match=r"cannot be written .*only 1 MiB are free.*it resumes from step 5"):
        checkpoints.save(tmp_path, {"step": 6}, {"a.weight": torch.zeros(3)}, 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_never_written(tmp_path, bad):
    save(tmp_path, 5)
    with pytest.raises(UserError, match=r"a.weight is not finite after step 6; nothing was written"):
        checkpoints.save(tmp_path, {"step": 6}, {"a.weight": torch.tensor([1.0, bad])}, 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_a_pickle_in_a_checkpoint_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    folder = save(tmp_path, 5)
    torch.save(Bomb(), folder / "state.safetensors")
    info = json.loads((folder / "state.json").read_text())
    info["sha256"] = file_sha256(folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps(sealed(info)))
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.latest(tmp_path).tensors()
    assert not (tmp_path / "exploded").exists()


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from data_prep.cli import run_command
from pipeline.artifacts import checkpoints
from pipeline.artifacts.run_folder import refuse_foreign
run = Path(sys.argv[1])
checkpoints.save(run, {"step": 1}, {"w": torch.zeros(10)}, 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
run_command(lambda: checkpoints.save(run, {"step": 2}, {"w": torch.zeros(1_000_000)}, 2) and 0)
"""


@pytest.mark.slow
def test_a_disk_that_takes_no_more_leaves_the_former_checkpoint_and_one_line(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, env=launching.environment()
    )
    assert result.returncode == 2, result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert "step-00000002: the checkpoint of 4 MiB cannot be written" in line
    assert "it resumes from step 1" in line
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_a_folder_with_what_a_killed_start_left_is_not_foreign(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".recipe.json.host.123.tmp").write_text("{")
    refuse_foreign(tmp_path)
    (tmp_path / "x.ended.txt").touch()
    with pytest.raises(UserError, match=r"holds x\.ended\.txt and no recipe\.json"):
        refuse_foreign(tmp_path)
