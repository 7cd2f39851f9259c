"""One fine-tuning with the Hugging Face Trainer, and the predictions that are scored.

Batches are padded to their longest row and made of rows of similar length. Weights are fp32; where the GPU, or without one
the CPU, is faster in bf16, products are bf16 (autocast).
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from data_prep.cli import UserError, shows_bars
from pipeline.evaluate.scored_model import ScoredModel
from pipeline.evaluate.scores import label_scores
from pipeline.evaluate.tasks import ADAM_EPSILON, MAX_GRAD_NORM, TASKS, WARMUP, WEIGHT_DECAY, Task
from pipeline.measuring import device_here
from pipeline.models.arithmetic import has_fast_bf16
from pipeline.models.precision import fit_arithmetic

# Nothing is cached on disk, and nothing is hashed to find it there.
IN_MEMORY: dict[str, Any] = {"keep_in_memory": True, "load_from_cache_file": False, "new_fingerprint": "encoded"}
NEWS = 30.0  # seconds between two signs of a long training where there is no bar


@dataclass(frozen=True)
class ScoredSet:
    """Encoded rows, and the function from the model's outputs on them (arrays) to scores in percent."""

    features: Dataset
    score: Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class Encoded:
    """A task for one model: the rows that train, the sets that are scored, and those that choose (same or other sets)."""

    train: Dataset
    scored: dict[str, ScoredSet]
    dev: dict[str, ScoredSet]


def distributed() -> bool:
    """Whether torchrun, or another launcher, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def processes() -> int:
    """The number of processes or GPUs that share a batch."""
    return int(os.environ["WORLD_SIZE"]) if distributed() else max(1, torch.cuda.device_count())


def precision() -> str:
    """The precision of products where the Trainer trains."""
    return "bf16" if has_fast_bf16(device_here()) else "fp32"


def encode_labelled(
    rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, length: int, order: Sequence[str]
) -> Dataset:
    """Texts as ids of at most ``length`` tokens, labels as the numbers that the model's outputs have in ``order``."""
    ids = [order.index(label) for label in task.labels]

    def encode(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        encoded = dict(tokenizer(batch["first"], batch.get("second"), truncation=True, max_length=length))
        labels = [ids[label] for label in batch["label"]] if ids else batch["label"]
        return encoded | {"label": labels, "row": numbers, "length": [len(row) for row in encoded["input_ids"]]}

    return rows.map(encode, batched=True, with_indices=True, remove_columns=rows.column_names, **IN_MEMORY)


def labelled_set(features: Dataset, task: Task, order: Sequence[str]) -> ScoredSet:
    """Encoded rows, their labels numbered by ``order``, and the score of the outputs for them."""
    labels = np.asarray(features["label"])
    # F1 is of the task's own label 1, whatever its number among the model's.
    ids = np.array([task.labels.index(label) for label in order])

    def score(outputs: np.ndarray) -> dict[str, float]:
        if not task.labels:
            return label_scores(task, outputs[:, 0], labels)
        in_order = np.empty_like(outputs)
        in_order[:, ids] = outputs
        return label_scores(task, ids[outputs.argmax(-1)], ids[labels], in_order)

    return ScoredSet(features, score)


def new_model(model: ScoredModel, task: Task, order: Sequence[str]) -> PreTrainedModel:
    """The model in fp32 with a head for the task, which is new unless the model has one, fit for training here."""
    made = with_head(model, task, order)
    fit_arithmetic(made, "fp32", device_here())
    return made


def with_head(model: ScoredModel, task: Task, order: Sequence[str]) -> PreTrainedModel:
    """The model in fp32 with a head for the task, as transformers loads it."""
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
    if task.answers:
        return AutoModelForQuestionAnswering.from_pretrained(model.path, **options)
    if not order:
        return AutoModelForSequenceClassification.from_pretrained(
            model.path, num_labels=1, problem_type="regression", **options
        )
    names = dict(enumerate(order))
    ids = {label: number for number, label in names.items()}
    return AutoModelForSequenceClassification.from_pretrained(
        model.path, num_labels=len(names), id2label=names, label2id=ids, **options
    )


class KeepBest(TrainerCallback):
    """Keeps, in memory, the weights of the epoch with the best score on the dev sets of all languages together."""

    def __init__(self) -> None:
        self.best = -math.inf
        self.weights: dict[str, torch.Tensor] = {}

    def on_evaluate(self, args: object, state: object, control: object, **known: Any) -> None:
        score = known["metrics"]["eval_score"]
        if score > self.best:
            self.best = score
            weights = known["model"].state_dict()
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


def finetune(
    model: ScoredModel,
    name: str,
    order: Sequence[str],
    data: Encoded,
    settings: dict,
    keep: Callable[[PreTrainedModel, dict[str, Any]], None] | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Train and score one cell. Returns the scores of each scored set, and of each dev set where others are scored.

    ``keep`` is given the trained model and its outputs for each scored set, on every process. Raises RuntimeError if the
    loss is not finite.
    """
    set_seed(settings["seed"])
    with tempfile.TemporaryDirectory() as folder:  # the Trainer wants one; nothing is kept there
        trainer = make_trainer(model, name, order, data, settings, folder)
        best, select = KeepBest(), trainer.compute_metrics is not None
        if select:
            trainer.add_callback(best)
        train(trainer)
        if select:
            assert trainer.model is not None
            trainer.model.load_state_dict(best.weights)

        outputs: dict[str, Any] = {}
        scored = _noting(data.scored, outputs) if keep else data.scored
        scores = scores_of(trainer, scored)
        if keep:
            keep(trainer.accelerator.unwrap_model(trainer.model), outputs)
        of_dev = {}
        if data.dev is not data.scored:
            of_dev = scores_of(trainer, data.dev)
        return scores, of_dev


def train(trainer: Trainer) -> None:
    """Run the Trainer. Raises RuntimeError if the loss is not finite."""
    loss = trainer.train().training_loss
    if not math.isfinite(loss):
        raise RuntimeError(f"the training loss is {loss}; try a lower learning rate")


def make_trainer(
    model: ScoredModel, name: str, order: Sequence[str], data: Encoded, settings: dict, folder: str
) -> Trainer:
    """The Trainer of one cell with its new model; for XNLI it evaluates the dev sets after each epoch."""
    task = TASKS[name]
    select = task.languages and not task.answers  # XNLI: the epoch is chosen
    choosing: dict[str, Any] = {}
    if select:
        choosing["eval_dataset"] = concatenate_datasets([each.features for each in data.dev.values()])
        choosing["compute_metrics"] = _joint_score(task)
    trainer = Trainer(
        model=new_model(model, task, order),
        args=arguments(folder, settings, select),
        train_dataset=data.train,
        **choosing,
        data_collator=DataCollatorWithPadding(model.tokenizer, pad_to_multiple_of=8 if precision() == "bf16" else None),
        processing_class=model.tokenizer,
    )
    quieten(trainer)
    return trainer


class _Bars(ProgressCallback):
    """Progress bars, on a terminal; logs are not written between our own lines."""

    def on_log(self, *args: Any, **more: Any) -> None:
        pass


class _Shares(TrainerCallback):
    """Where there are no bars: the share that is done, every half minute, behind the line that the cell has begun."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._said = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.is_world_process_zero and time.monotonic() - self._said > NEWS:
            self._said = time.monotonic()
            print(f" {state.global_step / state.max_steps:.0%}", end="", flush=True)


def quieten(trainer: Trainer) -> None:
    """Leave the Trainer its progress bars, or where it has none the share that is done, and no other output."""
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(_Bars)
    else:
        trainer.add_callback(_Shares)


def scores_of(trainer: Trainer, sets: dict[str, ScoredSet]) -> dict[str, dict[str, float]]:
    """The scores of each set, by the trained model's predictions."""
    trainer.compute_metrics = None
    trainer.args.train_sampling_strategy = "random"  # it governs predictions too: these must keep the order of the rows
    found = {}
    for key, each in sets.items():
        outputs = trainer.predict(each.features).predictions
        if isinstance(outputs, tuple):
            found[key] = each.score(tuple(np.asarray(array, np.float32) for array in outputs))
        else:
            found[key] = each.score(np.asarray(outputs, np.float32))
    return found


def _noting(sets: dict[str, ScoredSet], outputs: dict[str, Any]) -> dict[str, ScoredSet]:
    """The sets; what they are scored by is also put into ``outputs``, by their keys."""

    def score(key: str, given: Any) -> dict[str, float]:
        outputs[key] = given
        return sets[key].score(given)

    return {key: replace(each, score=partial(score, key)) for key, each in sets.items()}


def _joint_score(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    def score(outputs: EvalPrediction) -> dict[str, float]:
        predictions, labels = np.asarray(outputs.predictions), np.asarray(outputs.label_ids)
        return {"score": label_scores(task, predictions.argmax(-1), labels)[task.primary]}

    return score


def check_length(tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    """Raise UserError if ``length`` has no room for a token of each text of a pair."""
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if length < least:
        raise UserError(f"--length {length}: too short for a pair of texts; {least} at least")


def check_batch(batch: int) -> None:
    """Raise UserError if the processes or GPUs cannot share the batch equally."""
    if batch % processes():
        raise UserError(f"--batch {batch}: not divisible by the {processes()} processes or GPUs that share it")


def arguments(folder: str, settings: dict, select: bool) -> TrainingArguments:
    """The Trainer's arguments for a cell's settings; with ``select`` it evaluates after each epoch."""
    cuda = device_here().type == "cuda"
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=settings["batch"] // processes(),
        per_device_eval_batch_size=max(1, 2 * settings["batch"] // processes()),
        num_train_epochs=settings["epochs"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=WARMUP,  # below 1: a share of all steps
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        adam_epsilon=ADAM_EPSILON,
        seed=settings["seed"],
        train_sampling_strategy="group_by_length",
        bf16=precision() == "bf16",
        use_cpu=not cuda,
        ddp_backend="gloo" if distributed() and not cuda else None,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        eval_strategy="epoch" if select else "no",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # a loss that is no number must show
        report_to="none",
        log_level="error",  # the Trainer sets the verbosity of all of transformers
        log_level_replica="error",
        disable_tqdm=not shows_bars(),
    )
