"""What a cell leaves besides its scores, if that is asked for: the fine-tuned model, and its predictions.

RESULTS/MODEL/TASK/lr3e-05-epochs3-seed1.model/                a folder for AutoModelForSequenceClassification, with label names
RESULTS/MODEL/TASK/lr3e-05-epochs3-seed1.predictions.jsonl     a row each; of several scored sets .predictions-SET.jsonl
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel

from data_prep.files import new_folder, write_text
from pipeline.artifacts.results import KEPT_MODEL, PREDICTIONS
from pipeline.evaluate import qa
from pipeline.evaluate.scored_model import ScoredModel
from pipeline.evaluate.tasks import TASKS
from pipeline.models.portable import add_older_keys, write_tokenizer

MODELS, ROWS = "models", "predictions"
CHOICES = (MODELS, ROWS)


def paths(cell: Path, keep: Sequence[str], sets: Iterable[str]) -> list[Path]:
    """What the cell of this file leaves, of CHOICES, for these scored sets."""
    found = [cell.with_name(cell.stem + KEPT_MODEL)] if MODELS in keep else []
    return found + ([_predictions(cell, key) for key in sets] if ROWS in keep else [])


def _predictions(cell: Path, key: str) -> Path:
    return cell.with_name(f"{cell.stem}{PREDICTIONS}{f'-{key}' if key else ''}.jsonl")


def keep_model(cell: Path, model: PreTrainedModel, origin: ScoredModel) -> None:
    """Write the fine-tuned ``model`` with the tokenizer that it was given."""
    cell.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(cell.with_name(cell.stem + KEPT_MODEL)) as folder:
        model.save_pretrained(folder)
        add_older_keys(folder / "config.json", model.config)
        write_tokenizer(origin.tokenizer, (origin.path, "main"), model.config, folder)


def keep_predictions(
    cell: Path, key: str, name: str, order: Sequence[str], rows: Dataset, features: Dataset, outputs: Any
) -> None:
    """Write the predictions for a scored set: ``outputs`` for its ``features``, by which row of ``rows`` they are.

    ``order``: the labels of the outputs.
    """
    cell.parent.mkdir(parents=True, exist_ok=True)
    answers = TASKS[name].answers
    records = _answers(rows, features, *outputs) if answers else _labels(name, order, rows, features, outputs)
    write_text(_predictions(cell, key), "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _labels(
    name: str, order: Sequence[str], rows: Dataset, features: Dataset, outputs: np.ndarray
) -> Iterator[dict[str, Any]]:
    """A record for each row, in the order of the rows; logits by the names of labels, a number has none."""
    labels, numbers = rows["label"], features["row"]
    for place in np.argsort(numbers):
        logits = [round(float(value), 6) for value in outputs[place]]
        record: dict[str, Any] = {"row": numbers[place], "label": labels[numbers[place]], "prediction": logits[0]}
        if order:
            record["label"] = TASKS[name].labels[record["label"]]
            record |= {
                "prediction": order[int(outputs[place].argmax())],
                "logits": dict(zip(order, logits, strict=True)),
            }
        yield record


def _answers(rows: Dataset, features: Dataset, start: np.ndarray, end: np.ndarray) -> Iterator[dict[str, Any]]:
    """A record for each question; ``no_answer``: the score of none above that of the prediction."""
    found = qa.best_spans(features, rows["context"], start, end)
    for number, (row, (text, nothing)) in enumerate(zip(rows, found, strict=True)):
        own = {"row": number, "id": row["id"], "answers": row["answers"]["text"]}
        yield own | {"prediction": text, "no_answer": round(nothing, 6)}
