"""A student's own smaller vocabulary: vocabulary.npy, which trim_vocab writes, and the ids that a student reads."""

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.cli import UserError
from pipeline.models.loading import load_folder_config, load_tokenizer
from pipeline.settings.recipe import Recipe

VOCABULARY = "vocabulary.npy"


def load_trimmed(folder: str | Path) -> np.ndarray:
    """The new id of each old one in a folder that pipeline.trim_vocab wrote: int32 [old vocabulary], -1 for what was dropped.

    New ids are 0 to the new vocabulary's size − 1, in the order of the old ones. Raises UserError if the folder lacks it
    or it is not that of the folder's model.
    """
    path = Path(folder) / VOCABULARY
    try:
        new = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; need a folder that python -m pipeline.trim_vocab wrote") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); trim the model again") from None
    size = load_folder_config(folder).vocab_size
    if new.dtype != np.int32 or new.ndim != 1 or not np.array_equal(new[new >= 0], np.arange(size)):
        raise UserError(f"{path}: not the ids of the {size} pieces that config.json counts; trim the model again")
    return new


def own_ids(recipe: Recipe) -> Tensor | None:
    """The student's id for each of the teacher's, int64 [vocabulary], if it has a smaller one: dropped pieces are unknown.

    Raises UserError if its tokenizer has no unknown token.
    """
    ids = student_ids_of(recipe)
    if ids is None:
        return None
    unknown = load_tokenizer(recipe.student.vocab).unk_token_id
    if unknown is None:
        raise UserError(
            f"student.vocab = {recipe.student.vocab!r}: its tokenizer has no unknown token to stand for dropped pieces"
        )
    return torch.from_numpy(np.where(ids < 0, unknown, ids).astype(np.int64))


def student_ids_of(recipe: Recipe) -> np.ndarray | None:
    """The student's id of each of the teacher's: int32 [vocabulary], -1 for none; None if they have the same.

    A folder is read once in a process, as long as its file stays the same.
    """
    if not recipe.student.vocab:
        return None
    folder = Path(recipe.student.vocab).resolve()
    try:
        status = (folder / VOCABULARY).stat()
    except OSError:
        return load_trimmed(recipe.student.vocab)  # which says what is wrong
    return _read_once(folder, status.st_mtime_ns, status.st_size, recipe.student.vocab)


@functools.cache
def _read_once(folder: Path, changed: int, size: int, name: str) -> np.ndarray:
    """``load_trimmed`` of the folder, by its ``name`` in messages; read-only, since all share it."""
    ids = load_trimmed(name)
    ids.flags.writeable = False
    return ids
