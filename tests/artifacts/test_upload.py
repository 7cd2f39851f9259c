"""An exported folder on a hub of the loopback interface, by the real client: what arrives there, and what is refused."""

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from data_prep.cli import UserError
from pipeline.artifacts.upload import check_upload
from tests.parts.uploads import uploads

ROOT = Path(__file__).parents[2]
CODE = """
import sys
from pathlib import Path
from data_prep.cli import run_command
from pipeline.artifacts.upload import check_upload, upload

def main():
    check_upload("org/name")
    for folder in sys.argv[2:]:
        print(upload(Path(folder), "org/name", sys.argv[1] == "private"))

run_command(main)
"""


def push(environment, private, *folders):
    """The command's exit code, its output and its error line."""
    words = [sys.executable, "-c", CODE, private, *map(str, folders)]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout, done.stderr


def folder_of(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.mark.slow
def test_a_folder_arrives_whole_in_one_commit_and_files_of_earlier_weights_go(tmp_path):
    first = {"config.json": b"{}", "model.safetensors": b"1" * 99, "README.md": b"card", "onnx/model.onnx": b"graph"}
    first["logo.png"] = b"theirs"
    second = {"config.json": b"{ }", "model.safetensors": b"2" * 99, "1_Pooling/config.json": b"{}"}
    folders = [folder_of(tmp_path / name, files) for name, files in (("a", first), ("b", second))]
    with uploads(tmp_path / "home") as (environment, state):
        code, said, error = push(environment, "private", *folders)
        assert (code, error) == (0, "")
        assert said.split() == [f"{environment['HF_ENDPOINT']}/org/name"] * 2
        assert state.files == second | {"README.md": b"card", "logo.png": b"theirs"}
        assert state.private and len(state.commits) == 2


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line_and_no_commit(tmp_path):
    folder = folder_of(tmp_path / "student", {"config.json": b"{}", "model.safetensors": b"1" * 99})
    with uploads(tmp_path / "home") as (environment, state):
        state.refuses = "/commit/"
        code, _, error = push(environment, "public", folder)
        assert code == 2 and error.count("\n") == 1 and error.startswith("error: --push org/name: ")
        assert "403" in error and f"{folder} is whole: run the command again, or `hf upload org/name {folder}`" in error
        assert state.files == {} and state.commits == []


def test_without_a_token_one_line_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        UserError, match="--push org/name: no token for the hub; log in with `hf auth login`, or set HF_"
    ):
        check_upload("org/name")


@pytest.mark.parametrize("repo", ["name", "a/b/c", "org/", "org/na me", "./student", "/tmp/student", ""])
def test_what_is_no_place_on_the_hub_is_refused(monkeypatch, repo):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="not a model's place on the hub; give ORG/NAME"):
        check_upload(repo)
    check_upload("org/name")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it"):
        check_upload("org/name")
