"""A task's rows as a model reads them, encoded once for all processes that work on a results folder: RESULTS/.encoded."""

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
from datasets import Dataset

from pipeline.evaluate import claims
from pipeline.evaluate.scored_model import ScoredModel

FOLDER = ".encoded"


def key_of(model: ScoredModel, *of: object) -> str:
    """The name of rows that are encoded with the model's tokenizer; ``of`` is all else that decides them, as JSON has it."""
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pieces: object = sorted(tokenizer.get_vocab().items())
    if backend:  # but for what is of its last call
        pieces = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    sides = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.special_tokens_map
    content = json.dumps([type(tokenizer).__name__, pieces, sides, datasets.__version__, of], default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def encoded_once(out: Path, key: str, encode: Callable[[], Dataset]) -> Dataset:
    """The rows of this ``key``, in memory: by ``encode``, or by another process of this results folder before."""
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{key}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / key).is_dir():
            try:
                return datasets.load_from_disk(str(folder / key), keep_in_memory=True)
            except FileNotFoundError:  # the folder is removed by a process that was the last at work
                return encode()
        rows = encode()
        aside = tempfile.mkdtemp(dir=folder)
        rows.save_to_disk(aside)
        Path(aside).rename(folder / key)
    return rows


def remove(out: Path) -> None:
    """Remove what was encoded, unless a process is at work there."""
    if not claims.holders(out):
        shutil.rmtree(out / FOLDER, ignore_errors=True)
