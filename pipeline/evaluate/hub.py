"""The tasks' data sets on the Hugging Face hub."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset

from data_prep.cli import UserError, some
from pipeline.evaluate.rows import (
    Question,
    TaskData,
    Unlabelled,
    chosen_languages,
    number_label,
    question_rows,
    sets_with_labels,
)
from pipeline.evaluate.tasks import TASKS, Task
from pipeline.paper import HUB_LANGUAGES


def read(name: str, hub: str, languages: Sequence[str]) -> TaskData:
    """The rows of the task ``name`` in the hub's data set ``hub``."""
    if TASKS[name].answers:
        return _read_answers(name, hub, languages)
    return _read_labelled(name, hub, languages)


def _load(hub: str, config: str | None, split: str | None) -> Any:
    """A split's rows; without a split all of them by name."""
    try:
        return load_dataset(hub, config, split=split)
    except Exception as error:  # a client, a server and half a dozen libraries may refuse
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        wanted = " ".join(filter(None, (config, split))) or "its splits"
        raise UserError(
            f"--data {hub}: no such folder (from {Path.cwd()}), and {wanted} cannot be loaded from the hub ({cause})"
        ) from None


def _languages(name: str, languages: Sequence[str]) -> list[str]:
    return chosen_languages(HUB_LANGUAGES[name], languages, name, "dev")


# --- labels -----------------------------------------------------------------------------------------------------------


def _read_labelled(name: str, hub: str, languages: Sequence[str]) -> TaskData:
    notes: list[str] = []

    def load(config: str, split: str) -> Dataset:
        return _labelled(_load(hub, config, split), name, f"{hub} {config} {split}", notes)

    task = TASKS[name]
    if not task.languages:
        train = load(name, "train")
        dev = {key: load(name, split) for key, split in task.hub_splits.items()}
        return TaskData(hub, train, dev, notes=tuple(notes))
    chosen = _languages(name, languages)
    train = load("en", "train")
    dev, test = (
        sets_with_labels(kind, chosen, partial(load, split=split), hub, notes)
        for kind, split in (("dev", "validation"), ("test", "test"))
    )
    return TaskData(hub, train, dev, test, tuple(notes))


def _labelled(rows: Dataset, name: str, where: str, notes: list[str]) -> Dataset:
    """The hub's columns under our names, its label ids in the task's order."""
    task = TASKS[name]
    wanted = [*task.hub_texts, "label"]
    if missing := [column for column in wanted if column not in rows.column_names]:
        raise UserError(f"{where}: no column {missing[0]!r}, only {', '.join(rows.column_names)}")
    labels = list(rows["label"])
    without = labels.count(-1)
    if without and without == len(labels):
        raise Unlabelled(where)
    if without:
        of_all = f"{without:,} of {len(labels):,} rows without a label (-1)"
        if task.undecided is None:
            raise UserError(f"{where}: {of_all}: they can neither be trained on nor scored")
        notes.append(f"{where}: {of_all} left out")
        rows = rows.select([number for number, label in enumerate(labels) if label != -1])
        labels = list(rows["label"])
    if task.labels:
        labels = _in_our_order(labels, rows, task, where)
    else:
        labels = [number_label(label, task.bounds, f"{where}: row {row}") for row, label in enumerate(labels, 1)]
    columns = {new: list(rows[old]) for new, old in zip(("first", "second"), task.hub_texts, strict=False)}
    return Dataset.from_dict(columns | {"label": labels})


def _in_our_order(labels: list[int], rows: Dataset, task: Task, where: str) -> list[int]:
    feature = rows.features["label"]
    names = feature.names if isinstance(feature, ClassLabel) else list(task.labels)
    if sorted(names) != sorted(task.labels):
        raise UserError(f"{where}: its labels are {', '.join(names)}, the task's {', '.join(task.labels)}")
    if outside := sorted(set(labels) - set(range(len(names)))):
        raise UserError(f"{where}: the label {outside[0]} is not one of {some(range(len(names)))}")
    return [task.labels.index(names[label]) for label in labels]


def read_pairs(hub: str, notes: list[str]) -> dict[str, Dataset]:
    """The pairs of sentences with their similarities in each split of a data set for sts; splits without labels are noted."""
    task = TASKS["sts"]
    found = {}
    for split, rows in _load(hub, None, None).items():
        where = f"{hub} {split}"
        if missing := [column for column in (*task.hub_texts, "score") if column not in rows.column_names]:
            raise UserError(f"{where}: no column {missing[0]!r}, only {', '.join(rows.column_names)}")
        scores = list(rows["score"])
        if all(score in (None, -1) for score in scores):
            notes.append(f"{where}: a set without labels: left out")
            continue
        labels = [number_label(score, task.bounds, f"{where}: row {row}") for row, score in enumerate(scores, 1)]
        first, second = (list(rows[column]) for column in task.hub_texts)
        found[split] = Dataset.from_dict({"first": first, "second": second, "label": labels})
    return found


# --- questions and answers --------------------------------------------------------------------------------------------


def _read_answers(name: str, hub: str, languages: Sequence[str]) -> TaskData:
    task = TASKS[name]
    notes: list[str] = []

    def load(repository: str, config: str | None, split: str, official: Sequence[int] = ()) -> Dataset:
        questions = map(_question, _load(repository, config, split))
        where = " ".join(filter(None, (repository, config, split)))
        return question_rows(questions, where, task.unanswerable, notes, official)

    if not task.languages:
        train, dev = (load(hub, None, split, task.official) for split in ("train", "validation"))
        return TaskData(hub, train, {"": dev}, notes=tuple(notes))

    def load_language(language: str, split: str) -> Dataset:
        return load(hub, f"mlqa.{language}.{language}" if name == "mlqa" else f"xquad.{language}", split)

    chosen = _languages(name, languages)
    dev_sets = sets_with_labels("dev", chosen, partial(load_language, split="validation"), hub, notes)
    test_sets = {}
    if name == "mlqa":
        test_sets = sets_with_labels("test", chosen, partial(load_language, split="test"), hub, notes)
    squad = TASKS["squad1"]
    return TaskData(hub, load(squad.hub, None, "train", squad.official), dev_sets, test_sets, tuple(notes))


def _question(row: dict) -> Question:
    answers = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    own = [{"text": text, "answer_start": start} for text, start in answers]
    return Question(row["id"], row["question"], row["context"], own, None)
