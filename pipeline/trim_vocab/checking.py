"""The check that a trimmed model computes the same as before on the pieces that are kept."""

from pathlib import Path

import numpy as np
import torch

from data_prep.shards import Source
from pipeline.models.families import longest_input
from pipeline.models.loading import load_config, load_folder_tokenizer, load_model


def probes(sources: dict[str, Source], new: np.ndarray, length: int = 64) -> list[np.ndarray]:
    """The first tokens of each language whose pieces are kept, at most ``length``, by their old ids."""
    firsts = (source.shards[0].open()[: 4 * length].astype(np.int64) for source in sources.values())
    return [ids[new[ids] >= 0][:length] for ids in firsts]


def check_trimmed(model: Path, out: Path, new: np.ndarray, probes: list[np.ndarray], special: dict[str, int]) -> None:
    """Reload both models as a user would, and compare their ids of kept pieces, and their outputs on ``probes``.

    Raises RuntimeError if an id differs, or a bit of an output.
    """
    before, after = (load_folder_tokenizer(folder).get_vocab() for folder in (model, out))
    if after != {piece: int(new[i]) for piece, i in before.items() if new[i] >= 0}:
        raise RuntimeError(f"{out}: the reloaded tokenizer has other ids")
    longest = longest_input(load_config(str(model))) - 2
    rows = [np.concatenate([[special["cls"]], ids[:longest], [special["sep"]]]) for ids in probes]
    for old, now in zip(_outputs(model, rows), _outputs(out, [new[ids] for ids in rows]), strict=True):
        if not torch.equal(old, now):
            raise RuntimeError(f"{out}: the reloaded model computes something else")


def _outputs(folder: Path, rows: list[np.ndarray]) -> list[torch.Tensor]:
    """The last hidden states [1, T, width] of rows of ids [T]; one model is in memory at a time."""
    model = load_model(str(folder), "main", torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # a mapped file's tensors may lie differently in memory: see _align
    with torch.inference_mode():
        return [model(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state for ids in rows]
