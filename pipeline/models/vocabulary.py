"""A student's own smaller vocabulary: vocabulary.npy, which trim_vocab writes, and the ids that a student reads."""

import functools
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

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


@dataclass(frozen=True)
class Vocabulary:
    """A student's own vocabulary: ``ids``, those of ``load_trimmed`` of its ``folder``, and their hash."""

    folder: str
    ids: np.ndarray
    digest: str

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer, which whoever only plans need not have."""
        return load_tokenizer(self.folder)


def vocabulary_of(recipe: Recipe) -> Vocabulary | None:
    """The student's own vocabulary; None if it has the teacher's.

    Its folder is read once in a process: what becomes of it during a run changes nothing.
    """
    return _read_once(recipe.student.vocab) if recipe.student.vocab else None


@functools.cache
def _read_once(folder: str) -> Vocabulary:
    ids = load_trimmed(folder)
    ids.flags.writeable = False  # all share it
    return Vocabulary(folder, ids, hashlib.sha256(ids.tobytes()).hexdigest()[:16])


def student_ids_of(recipe: Recipe) -> np.ndarray | None:
    """The student's id of each of the teacher's: int32 [vocabulary], -1 for none; None if they have the same."""
    own = vocabulary_of(recipe)
    return None if own is None else own.ids


def own_ids(recipe: Recipe) -> Tensor | None:
    """The student's id for each of the teacher's, int64 [vocabulary], if it has a smaller one: dropped pieces are unknown.

    Raises UserError if its tokenizer has no unknown token.
    """
    own = vocabulary_of(recipe)
    if own is None:
        return None
    unknown = own.tokenizer.unk_token_id
    if unknown is None:
        raise UserError(
            f"student.vocab = {recipe.student.vocab!r}: its tokenizer has no unknown token to stand for dropped pieces"
        )
    return torch.from_numpy(np.where(own.ids < 0, unknown, own.ids).astype(np.int64))
