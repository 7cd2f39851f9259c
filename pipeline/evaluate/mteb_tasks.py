"""Tasks of the package mteb, which is an extra (`pip install --editable '.[mteb]'`), by the same vectors as the other tasks.

mteb fetches their data from the hub and computes the scores; only a task's main score is taken, of each split and subset.
"""

import re
from typing import Any

import mteb
import torch
from mteb.models.model_meta import ModelMeta

from data_prep.cli import UserError
from pipeline.evaluate.rows import TaskData
from pipeline.evaluate.tasks import MTEB


class _Encoder:
    """A model as mteb wants it. ``embed``: from texts to vectors [texts, width]."""

    def __init__(self, embed: Any, name: str):
        self.embed = embed
        self.mteb_model_meta = ModelMeta.create_empty({"name": f"folder/{name}", "revision": "local"})

    def encode(self, inputs: Any, **_: Any) -> Any:
        texts = [text for batch in inputs for text in batch["text"]]
        return self.embed(texts).numpy()

    def similarity(self, first: Any, second: Any) -> torch.Tensor:
        """[a, b]: the cosines of all vectors of both."""
        one, other = (torch.nn.functional.normalize(torch.as_tensor(each), dim=-1) for each in (first, second))
        return one @ other.T

    def similarity_pairwise(self, first: Any, second: Any) -> torch.Tensor:
        """[a]: the cosines of vectors with the same number."""
        return torch.nn.functional.cosine_similarity(torch.as_tensor(first), torch.as_tensor(second), dim=-1)


def read(name: str) -> TaskData:
    """What names a task's data: mteb reads them itself. Raises UserError for a task that it does not have."""
    task = _task(name)
    data = task.metadata.dataset
    place = f"{data['path']}, revision {data.get('revision')}"
    return TaskData(str(data["path"]), None, {}, pinned=f"{place}, mteb {mteb.__version__}")


def scores(name: str, embed: Any, model: str) -> dict[str, dict[str, float]]:
    """The main score of each split, and of each subset of a split, in percent."""
    encoder = _Encoder(embed, model)
    result = mteb.evaluate(encoder, _task(name), cache=None, co2_tracker=False, show_progress_bar=False)
    found = {}
    for split, subsets in result.task_results[0].scores.items():
        for subset in subsets:
            key = split if subset["hf_subset"] == "default" else f"{split}-{subset['hf_subset']}"
            found[re.sub(r"[^\w-]", "_", key)] = {"main_score": 100 * float(subset["main_score"])}
    return found


def _task(name: str) -> Any:
    wanted = name.removeprefix(MTEB)
    try:
        return mteb.get_task(wanted)
    except KeyError as error:
        cause = str(error.args[0] if error.args else error).removeprefix("KeyError: ")
        raise UserError(f"--task {name}: {cause} mteb's own documentation lists its tasks") from None
