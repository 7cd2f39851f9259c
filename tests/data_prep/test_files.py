"""Atomic writing: the whole of the new, or the previous; and nothing aside in either case."""

import hashlib
import os
from pathlib import Path

import pytest

from data_prep import files
from data_prep.files import GrowingFile, file_sha256, new_folder, write_atomic, write_json, write_text


def test_what_is_written_takes_the_place_of_the_previous_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"previous")
    write_text(path, "ünï")
    assert path.read_bytes() == "ünï".encode() and [*tmp_path.iterdir()] == [path]


def test_the_bytes_of_json_depend_on_its_value_alone(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": "ü"})
    write_json(tmp_path / "b", {"a": "ü", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_write_that_fails_leaves_the_previous_file_and_names_the_path(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"previous")

    def fail(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError) as error:
        write_atomic(path, b"new")
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"previous" and [*tmp_path.iterdir()] == [path]


def test_a_file_that_grows_has_the_hash_of_its_final_bytes(tmp_path):
    path = tmp_path / "file"
    file = GrowingFile(path)
    for part in (b"head", b"middle", memoryview(b"end")):
        file.write(part)
        assert not path.exists()
    digest = file.finish(b"HEAD")
    file.discard()
    assert path.read_bytes() == b"HEADmiddleend" and [*tmp_path.iterdir()] == [path]
    assert digest == file_sha256(path) == hashlib.sha256(b"HEADmiddleend").hexdigest()


def test_a_folder_takes_the_place_of_the_previous_one_only_when_it_is_whole(tmp_path):
    final = tmp_path / "folder"
    with new_folder(final) as folder:
        (folder / "a").write_text("previous")
    with pytest.raises(KeyboardInterrupt), new_folder(final) as folder:
        (folder / "b").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in final.iterdir()] == ["a"] and [*tmp_path.iterdir()] == [final]
    with new_folder(final) as folder:
        (folder / "c").write_text("new")
    assert [path.name for path in final.iterdir()] == ["c"] and [*tmp_path.iterdir()] == [final]


def test_a_folder_lost_between_two_renames_is_taken_back(tmp_path):
    with new_folder(tmp_path / "x") as written:
        (written / "a").write_text("first")
    (tmp_path / "x").rename(tmp_path / ".x.former")  # as a process leaves it that is killed just there
    with pytest.raises(KeyError), new_folder(tmp_path / "x"):
        raise KeyError
    assert (tmp_path / "x" / "a").read_text() == "first" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_put_in_place_leaves_the_previous_one(tmp_path, monkeypatch):
    with new_folder(tmp_path / "x") as written:
        (written / "a").write_text("first")
    rename = Path.rename

    def fail(self, target):
        if self.name == ".x.writing":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError), new_folder(tmp_path / "x") as written:
        (written / "a").write_text("second")
    assert (tmp_path / "x" / "a").read_text() == "first" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_of_a_new_folder_have_the_mode_of_the_umask(tmp_path, umask, mode):
    previous = os.umask(umask)
    try:
        with new_folder(tmp_path / "x") as written:
            (written / "in").mkdir()
            for path in (written / "a", written / "in" / "b"):
                path.touch(0o600)  # as safetensors does
    finally:
        os.umask(previous)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "x" / "a", tmp_path / "x" / "in" / "b")} == {mode}
