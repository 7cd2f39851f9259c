"""A model to be fine-tuned and scored: what it is, and whether it fits a task.

The file of a form (FOLDER/onnx/model.onnx) is a model of its own, with the config and tokenizer of its folder. It can be
scored where nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from data_prep.cli import UserError
from pipeline.artifacts.distillation import read_distillation
from pipeline.artifacts.results import FORMAT
from pipeline.evaluate.tasks import TASKS
from pipeline.forms.files import RUNTIMES, folder_of, form_hash, form_name, is_form, kind_of, precision_of, size_of
from pipeline.models.counting import count_parameters
from pipeline.models.families import longest_input
from pipeline.models.loading import check_folder, load_folder_config, load_model, load_tokenizer
from pipeline.models.weights import Weights, weights_hash

UNKNOWN = 0.2  # share of a text's tokens that may be [UNK]: more, and the model lacks the text's vocabulary
_SAMPLE = 200  # rows


@dataclass(frozen=True)
class ScoredModel:
    """A model folder or hub id, its config and tokenizer, its model.json, and the file of its form if it is not PyTorch's."""

    path: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    card: dict
    form: Path | None = None

    @property
    def name(self) -> str:
        return self.card["name"]


def open_model(path: str, name: str | None = None) -> ScoredModel:
    """Read a model's config, tokenizer and weights' hash. Raises UserError if some are missing or do not fit together."""
    form = Path(path) if is_form(path) else None
    folder = str(folder_of(form)) if form else path
    check_folder(folder)
    name = name or name_of(path)
    if name.startswith(".") or Path(name).name != name:
        raise UserError(f"--name {name}: not a folder's name")
    card = describe_model(path, name)
    config = load_folder_config(folder)
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {len(tokenizer):,} entries, the model's embedding {config.vocab_size:,} rows; "
            "give the model the tokenizer that it was trained with"
        )
    return ScoredModel(folder, config, tokenizer, card, form)


def name_of(path: str) -> str:
    """A model's name among results: its folder's, that with its form, or its hub id with -- for the slash."""
    if is_form(path):
        return form_name(Path(path))
    return Path(path).resolve().name if Path(path).is_dir() else path.replace("/", "--")


def describe_model(path: str, name: str) -> dict:
    """The content of model.json: shape, parameters as the papers count them, a hash of all weights, its distillation.

    ``path`` may be a form's: then hash and bytes are of its file, and "form" says what it is and of which folder.
    Raises UserError if the folder or hub id is not a whole encoder of a known family.
    """
    if is_form(path):
        file, folder = Path(path), folder_of(Path(path))
        form = {"of": folder.name, "runtime": RUNTIMES[kind_of(file)], "precision": precision_of(file)}
        own = {"name": name, "path": path, "weights": form_hash(file), "bytes": size_of(file), "form": form}
        return describe_model(str(folder), name) | own
    config = load_model(path, "main", torch.float32).config  # and every weight is there
    tensors = Weights(path, "main", "")
    return {
        "format": FORMAT,
        "name": name,
        "path": path,
        "weights": weights_hash(tensors.tensor(key) for key in tensors.names()),
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "parameters": count_parameters(config),
        "bytes": tensors.bytes(),
        "distillation": read_distillation(Path(path)) or None,
    }


def check_fit(model: ScoredModel, name: str, length: int, sets: dict[str, Dataset]) -> None:
    """Raise UserError unless the model has positions for ``length`` tokens and the vocabulary of these sets' texts."""
    longest = longest_input(model.config)
    if length > longest:
        raise UserError(
            f"{model.path}: {name} needs --length {length}, the model has {longest} positions; give --length"
        )
    for kind, rows in sets.items():
        share = unknown_share(model.tokenizer, rows)
        if share > UNKNOWN:
            raise UserError(
                f"{model.path}: {share:.0%} of the tokens of {name}'s {kind} text are unknown to its vocabulary; "
                "a model of another language, or another model's tokenizer?"
            )


def unknown_share(tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> float:
    """The share of [UNK] among the tokens of the first rows' texts."""
    if tokenizer.unk_token_id is None:
        return 0.0
    sample = rows[:_SAMPLE]
    texts = [text for key in ("first", "second", "question", "context") for text in sample.get(key, [])]
    ids = [token for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in row]
    return ids.count(tokenizer.unk_token_id) / max(1, len(ids))


def label_order(model: ScoredModel, name: str) -> Sequence[str]:
    """The task's labels in the order of the model's outputs: its own, if it comes with a head for these labels.

    Raises UserError for a head whose labels are others, or have no names: their order would be a guess; and for a head with
    several outputs where the label is a number.
    """
    task = TASKS[name]
    classifies = any("ForSequenceClassification" in each for each in model.config.architectures or [])
    if task.answers or task.embeds or not classifies:
        return task.labels
    if not task.labels:
        if model.config.num_labels != 1:
            raise UserError(
                f"{model.path}: its head has {model.config.num_labels} outputs, {name} wants one number; give the encoder "
                "without the head"
            )
        return task.labels
    by_id: dict[Any, str] = {**(model.config.id2label or {})}
    own = [str(by_id[key]) for key in sorted(by_id)]
    by_lower = {label.lower().replace("-", "_"): label for label in task.labels}
    order = [by_lower.get(label.lower().replace("-", "_").replace(" ", "_"), "") for label in own]
    if sorted(order) != sorted(task.labels):
        raise UserError(
            f"{model.path}: its head has the labels {', '.join(own)}, {name} has {', '.join(task.labels)}; name them so in "
            "config.json's id2label, or give the encoder without the head"
        )
    return order
