"""Putting an exported folder on the Hugging Face hub, or on the server that HF_ENDPOINT names."""

from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from data_prep.cli import UserError

# Of an earlier upload: what the folder no longer has must not stay beside other weights.
_REPLACED = ("*.safetensors", "onnx/*", "openvino/*")


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
    """Upload a folder as one commit to the model ``repo``, which is made if it is not there; returns where it is.

    ``private``: of a new one. Raises UserError if the hub does not take it: no commit then.
    """
    api = HfApi()
    try:
        place = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="A student of minilm-distil",
            delete_patterns=list(_REPLACED),
        )
    except Exception as error:  # the client raises those of its HTTP library too
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"--push {repo}: {cause}; {folder} is whole: `hf upload {repo} {folder}` tries again") from None
    return str(place)
