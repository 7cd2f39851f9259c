"""How a distilled model was made: distillation.json, written by export and read by whoever has such a model as teacher."""

import json
from pathlib import Path

from data_prep.cli import UserError
from pipeline.artifacts.checkpoints import Checkpoint
from pipeline.artifacts.run_folder import what_decides
from pipeline.settings.values import recipe_of

DISTILLATION = "distillation.json"


def read_distillation(folder: Path) -> list[dict]:
    """How the model of ``folder`` was made, the first teacher's student first; empty if it was not distilled here.

    Raises UserError if the file is not what export writes.
    """
    path = folder / DISTILLATION
    if not path.is_file():
        return []
    try:
        chain = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); export the model again") from None
    return checked_chain(chain, path)


def distillation_of(checkpoint: Checkpoint) -> list[dict]:
    """How its student was made: what the checkpoint says of its teacher, of its start, and then of itself.

    Without this machine's paths.
    """
    own = {key: value for key, value in checkpoint.info.items() if key != "id"} | {
        "teacher": dict(checkpoint.info["teacher"]),
        "recipe": what_decides(checkpoint.info["recipe"]),
    }
    chains = own["teacher"].pop("distillation", []), own.pop("start", [])
    before = [link for chain in chains for link in checked_chain(chain, checkpoint.path)]
    return [*{link["sha256"]: link for link in before}.values(), own]


def checked_chain(chain: object, path: Path) -> list[dict]:
    if not isinstance(chain, list) or not all(
        isinstance(one, dict) and {"sha256", "recipe"} <= one.keys() for one in chain
    ):
        raise UserError(f"{path}: not what export writes; export the model again")
    for one in chain:
        recipe_of(one["recipe"], str(path))
    return chain


def is_export_of(out: Path, checkpoint: Checkpoint) -> bool:
    """Whether ``out`` holds the student of this very checkpoint."""
    return [one["sha256"] for one in read_distillation(out)[-1:]] == [checkpoint.info["sha256"]]
