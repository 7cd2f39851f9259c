"""One fine-tuning with the Hugging Face Trainer, and the predictions that are scored.

Batches are padded to their longest row and made of rows of similar length. Weights are fp32; where the GPU, or without one
the CPU, has units for bf16, products are bf16 (autocast).
"""

import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

from data_prep.errors import UserError
from pipeline.precision import fit_arithmetic, has_bf16_gpu, lacks_bf16_units
from pipeline.scored_model import ScoredModel
from pipeline.tasks import ADAM_EPSILON, MAX_GRAD_NORM, TASKS, WARMUP, WEIGHT_DECAY, Task, label_scores


@dataclass(frozen=True)
class ScoredSet:
    """Encoded rows, and the function from the model's outputs on them (arrays) to scores in percent."""

    features: Dataset
    score: Callable[[np.ndarray | tuple[np.ndarray, ...]], dict[str, float]]


@dataclass(frozen=True)
class Encoded:
    """A task for one model: what is trained on, what is scored, and what chooses (empty: what is scored)."""

    train: Dataset
    scored: dict[str, ScoredSet]
    dev: dict[str, ScoredSet]


def distributed() -> bool:
    """Whether torchrun, or another launcher, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def processes() -> int:
    """How many processes or GPUs share a batch."""
    return int(os.environ["WORLD_SIZE"]) if distributed() else max(1, torch.cuda.device_count())


def device() -> torch.device:
    """Where the Trainer trains."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision() -> str:
    """What products are taken in."""
    fast = has_bf16_gpu() if device().type == "cuda" else not lacks_bf16_units(device())
    return "bf16" if fast else "fp32"


def encode_labelled(
    rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, length: int, order: Sequence[str]
) -> Dataset:
    """Texts as ids of at most ``length`` tokens, labels as the numbers that the model's outputs have in ``order``."""
    ids = [order.index(label) for label in task.labels]

    def encode(batch: dict[str, list]) -> dict[str, list]:
        encoded = dict(tokenizer(batch["first"], batch.get("second"), truncation=True, max_length=length))
        labels = [ids[label] for label in batch["label"]] if ids else batch["label"]
        return encoded | {"label": labels, "length": [len(row) for row in encoded["input_ids"]]}

    return rows.map(encode, batched=True, remove_columns=rows.column_names, **IN_MEMORY)


# Nothing is cached on disk, and nothing is hashed to find it there.
IN_MEMORY = {"keep_in_memory": True, "load_from_cache_file": False, "new_fingerprint": "encoded"}


def labelled_set(features: Dataset, task: Task, order: Sequence[str]) -> ScoredSet:
    """Encoded rows, their labels numbered by ``order``, and the score of the outputs for them."""
    labels = np.asarray(features["label"])
    # F1 is of the task's own label 1, whatever its number among the model's.
    ids = np.array([task.labels.index(label) for label in order])

    def score(outputs: np.ndarray) -> dict[str, float]:
        if not task.labels:
            return label_scores(task, outputs[:, 0], labels)
        return label_scores(task, ids[outputs.argmax(-1)], ids[labels])

    return ScoredSet(features, score)


def new_model(model: ScoredModel, task: Task, order: Sequence[str]) -> PreTrainedModel:
    """The model in fp32 with a head for the task, which is new unless the model has one, fit for training here."""
    made = with_head(model, task, order)
    fit_arithmetic(made, "fp32", device())
    return made


def with_head(model: ScoredModel, task: Task, order: Sequence[str]) -> PreTrainedModel:
    """The model in fp32 with a head for the task, as transformers loads it."""
    options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
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

    def __init__(self):
        self.best, self.weights = -math.inf, {}

    def on_evaluate(self, args, state, control, model: PreTrainedModel, metrics: dict[str, float], **_):
        if metrics["eval_score"] > self.best:
            self.best = metrics["eval_score"]
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def finetune(
    model: ScoredModel, name: str, order: Sequence[str], data: Encoded, settings: dict
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Train one cell. Returns the scores of each scored set, and of each dev set where others are scored.

    Raises RuntimeError if the loss is not finite.
    """
    set_seed(settings["seed"])
    with tempfile.TemporaryDirectory() as folder:  # the Trainer wants one; nothing is kept there
        trainer = make_trainer(model, name, order, data, settings, folder)
        best, select = KeepBest(), trainer.compute_metrics is not None
        if select:
            trainer.add_callback(best)
        train(trainer)
        if select:
            trainer.model.load_state_dict(best.weights)
        scores = scores_of(trainer, data.scored)
        return scores, scores_of(trainer, data.dev) if data.dev is not data.scored else {}


def train(trainer: Trainer) -> None:
    """Raises RuntimeError if the loss is not finite."""
    loss = trainer.train().training_loss
    if not math.isfinite(loss):
        raise RuntimeError(f"the training loss is {loss}; try a lower learning rate")


def make_trainer(
    model: ScoredModel, name: str, order: Sequence[str], data: Encoded, settings: dict, folder: str
) -> Trainer:
    """The Trainer of one cell, and the model that it trains; for XNLI it looks at the dev sets after each epoch."""
    task = TASKS[name]
    select = task.languages and not task.answers  # XNLI: the epoch is chosen
    trainer = Trainer(
        model=new_model(model, task, order),
        args=arguments(folder, settings, select),
        train_dataset=data.train,
        eval_dataset=concatenate_datasets([each.features for each in data.dev.values()]) if select else None,
        compute_metrics=_joint_score(task) if select else None,
        data_collator=DataCollatorWithPadding(model.tokenizer, pad_to_multiple_of=8 if precision() == "bf16" else None),
        processing_class=model.tokenizer,
    )
    quieten(trainer)
    return trainer


class _Bars(ProgressCallback):
    """Progress bars, on a terminal; what is logged is not written between our own lines."""

    def on_log(self, *args, **more):
        pass


def quieten(trainer: Trainer) -> None:
    """Leave the Trainer its progress bars, where it has them, and no other output."""
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(_Bars)


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


def _joint_score(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    def score(outputs: EvalPrediction) -> dict[str, float]:
        return {"score": label_scores(task, outputs.predictions.argmax(-1), outputs.label_ids)[task.primary]}

    return score


def check_length(tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    """Raise UserError if not even a token of each text of a pair is left."""
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if length < least:
        raise UserError(f"--length {length}: too short for a pair of texts; {least} at least")


def check_batch(batch: int) -> None:
    if batch % processes():
        raise UserError(f"--batch {batch}: not divisible by the {processes()} processes or GPUs that share it")


def arguments(folder: str, settings: dict, select: bool) -> TrainingArguments:
    """The Trainer's, for a cell's settings; ``select``: an evaluation after each epoch."""
    cuda = device().type == "cuda"
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
        disable_tqdm=not sys.stderr.isatty(),
    )
