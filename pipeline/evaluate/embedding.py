"""Scores without fine-tuning: a model's vectors of texts, compared by their cosine.

sts and lee: how well the cosines of pairs agree with people's similarities. bitext: whether the nearest of all lines of the
other language is a line's translation, in both directions. fp32; the same model and texts give the same scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm

from data_prep.cli import UserError, shows_bars
from pipeline.evaluate.rows import TaskData
from pipeline.evaluate.scored_model import ScoredModel
from pipeline.evaluate.scores import label_scores
from pipeline.evaluate.tasks import MTEB, TASKS
from pipeline.forms.running import FormEncoder
from pipeline.measuring import device_here
from pipeline.models.families import longest_input
from pipeline.models.loading import load_model
from pipeline.models.pooling import Pooling, read_pooling

LONGEST = 512  # tokens, where a folder says nothing
_QUERIES = 512  # rows of a matrix of similarities that are computed at once


def settings(model: ScoredModel, prompt: str | None, length: int | None) -> dict[str, str | int]:
    """What the scores depend on: pooling, the prompt before each text, and its longest text. None: as the folder says."""
    pooling = read_pooling(model.path)
    longest = longest_input(model.config)
    return {
        "pooling": str(pooling),
        "prompt": pooling.prompt if prompt is None else prompt,
        "length": length or min(pooling.length or LONGEST, longest),
    }


def notes(model: ScoredModel, prompt: str | None) -> list[str]:
    """What a reader should know of a model's pooling and prompts."""
    pooling = read_pooling(model.path)
    found = []
    if not pooling.stated:
        found.append(f"{model.name}: nothing in its folder says how it pools; the mean over a text's tokens is taken")
    if pooling.prompts and not pooling.prompt and prompt is None:
        names = ", ".join(pooling.prompts)
        found.append(
            f"{model.name}: its prompts ({names}) have no default: none is put before the texts; --prefix gives one"
        )
    return found


@dataclass
class Embedder:
    """Makes vectors of texts with one model."""

    model: ScoredModel
    settings: dict
    batch: int

    def __post_init__(self) -> None:
        form = self.model.form
        self.device = torch.device("cpu") if form else device_here()
        self.pooling: Pooling = read_pooling(self.model.path)
        self.encoder: Any = None
        if form:
            self.encoder = FormEncoder(form)
        else:
            self.encoder = load_model(self.model.path, "main", torch.float32)
            self.encoder.to(self.device)
        for each in self.pooling.maps:
            each.to(self.device)
        prompt = self.model.tokenizer(self.settings["prompt"])["input_ids"]
        closes = bool(prompt) and prompt[-1] in self.model.tokenizer.all_special_ids
        self.prompt = len(prompt) - closes if self.settings["prompt"] else 0  # tokens, the opening one included

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[texts, width], fp32 on the CPU. Texts of similar length share a batch."""
        tokenizer, settings = self.model.tokenizer, self.settings
        given = [settings["prompt"] + text for text in texts]
        if self.pooling.lowers:
            given = [text.lower() for text in given]
        rows = tokenizer(given, truncation=True, max_length=settings["length"])["input_ids"]
        order = sorted(range(len(rows)), key=lambda number: (len(rows[number]), number))
        starts = range(0, len(order), self.batch)
        found: list[Tensor] = []
        for start in tqdm(starts, unit="batch", disable=not shows_bars() or len(starts) < 20, leave=False):
            chosen = [rows[number] for number in order[start : start + self.batch]]
            padded = tokenizer.pad({"input_ids": chosen}, padding_side="right", return_tensors="pt").to(self.device)
            ids, mask = padded["input_ids"], padded["attention_mask"]
            hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            found.append(self.pooling.vectors(hidden, mask, self.prompt).float().cpu())
        places = torch.tensor(order).argsort()
        return torch.cat(found)[places]


def mteb() -> ModuleType:
    """What runs the tasks of the package mteb. Raises UserError if that is not installed."""
    try:
        from pipeline.evaluate import mteb_tasks
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is not there: mteb's tasks need the extra: pip install --editable '.[mteb]'"
        ) from None
    return mteb_tasks


def scores(model: ScoredModel, name: str, data: TaskData, settings: dict, batch: int) -> dict[str, dict[str, float]]:
    """The scores of each set of a task, in percent. Raises ValueError where a correlation is not defined."""
    if name.startswith(MTEB):
        return mteb().scores(name, Embedder(model, settings, batch), model.name)
    texts = sorted({text for rows in data.dev.values() for key in ("first", "second") for text in rows[key]})
    vectors = torch.nn.functional.normalize(Embedder(model, settings, batch)(texts), dim=-1)
    numbers = {text: number for number, text in enumerate(texts)}
    found = {}
    for key, rows in data.dev.items():
        sides = [torch.tensor([numbers[text] for text in rows[side]]) for side in ("first", "second")]
        score = _retrieval if name == "bitext" else _correlation
        found[key] = score(name, rows, vectors, *sides)
    return found


def _correlation(name: str, rows: Dataset, vectors: Tensor, first: Tensor, second: Tensor) -> dict[str, float]:
    """Of the pairs' cosines with their labels. ``first``, ``second``: the numbers of their vectors."""
    cosines = (vectors[first] * vectors[second]).sum(-1)
    return label_scores(TASKS[name], cosines.double().numpy(), np.asarray(rows["label"]))


def _retrieval(name: str, rows: Dataset, vectors: Tensor, own: Tensor, pivot: Tensor) -> dict[str, float]:
    """How often a text's nearest one of the other side is its translation; one that reads the same counts too."""
    there, back = _found(vectors, own, pivot), _found(vectors, pivot, own)
    values = ((there + back) / 2, there, back)
    return {score: 100 * value for score, value in zip(TASKS[name].scores, values, strict=True)}


def _found(vectors: Tensor, queries: Tensor, wanted: Tensor) -> float:
    """The share of queries whose nearest vector among all wanted ones is their own."""
    hits = 0
    for start in range(0, len(queries), _QUERIES):
        part = slice(start, start + _QUERIES)
        nearest = (vectors[queries[part]] @ vectors[wanted].T).argmax(1)
        hits += int((wanted[nearest] == wanted[part]).sum())
    return hits / len(queries)
