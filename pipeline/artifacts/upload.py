"""Putting an exported folder on the Hugging Face hub, or on the server that HF_ENDPOINT names."""

from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from data_prep.cli import UserError

# Of an earlier upload: what the folder no longer has must not stay beside other weights.
_REPLACED = ("*.safetensors", "*.safetensors.index.json", "onnx/*", "openvino/*")


def check_upload(repo: str) -> None:
    """Raise UserError if nothing can be put there: before anything is exported."""
    try:
        validate_repo_id(repo)
        wrong = repo.count("/") != 1
    except HFValidationError:
        wrong = True
    if wrong:
        raise UserError(
            f"--push {repo}: not a model's place on the hub; give ORG/NAME, or your user name before the slash"
        )
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UserError(f"--push {repo}: HF_HUB_OFFLINE is set; unset it, or leave --push out")
    if huggingface_hub.get_token() is None:
        raise UserError(f"--push {repo}: no token for the hub; log in with `hf auth login`, or set HF_TOKEN")


def upload(folder: Path, repo: str, private: bool = False) -> str:
    """Upload a folder to the model ``repo``, which is made if it is not there; returns where it is.

    One commit has all files or none. ``private``: of a new model. Raises UserError if the hub does not take it.
    """
    api = HfApi()
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    try:
        place = api.create_repo(repo, private=private or None, exist_ok=True)
        stale = [name for name in api.list_repo_files(repo) if name not in files]
        stale = [name for name in stale if any(fnmatch(name, pattern) for pattern in _REPLACED)]
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        deletions = [CommitOperationDelete(name) for name in stale]
        api.create_commit(repo, [*operations, *deletions], commit_message="A student of minilm-distil")
    except Exception as error:  # the client raises those of its HTTP library too
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"--push {repo}: {cause}; {folder} is whole: run the command again, or `hf upload {repo} {folder}`"
        ) from None
    return str(place)
