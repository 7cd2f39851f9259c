"""The tasks' data sets on the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, load_dataset

from data_prep.cli import UserError, some
from pipeline.evaluate.rows import Question, TaskData, chosen_languages, question_rows
from pipeline.evaluate.tasks import TASKS, Task
from pipeline.paper import HUB_LANGUAGES


def read(name: str, hub: str, languages: Sequence[str]) -> TaskData:
    """The rows of the task ``name`` in the hub's data set ``hub``."""
    if TASKS[name].answers:
        return _read_answers(name, hub, languages)
    return _read_labelled(name, hub, languages)


def _load(hub: str, config: str | None, split: str) -> Dataset:
    try:
        return load_dataset(hub, config, split=split)
    except Exception as error:  # a client, a server and half a dozen libraries may refuse
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        wanted = " ".join(filter(None, (config, split)))
        raise UserError(
            f"--data {hub}: no such folder (from {Path.cwd()}), and {wanted} cannot be loaded from the hub ({cause})"
        ) from None


def _languages(name: str, languages: Sequence[str]) -> list[str]:
    return chosen_languages(HUB_LANGUAGES[name], languages, name, "dev")


# --- labels -----------------------------------------------------------------------------------------------------------


def _read_labelled(name: str, hub: str, languages: Sequence[str]) -> TaskData:
    def load(config: str, split: str) -> Dataset:
        return _labelled(_load(hub, config, split), name, f"{hub} {config} {split}")

    task = TASKS[name]
    if not task.languages:
        return TaskData(hub, load(name, "train"), {key: load(name, split) for key, split in task.hub_splits.items()})
    chosen = _languages(name, languages)
    dev, test = ({key: load(key, split) for key in chosen} for split in ("validation", "test"))
    return TaskData(hub, load("en", "train"), dev, test)


def _labelled(rows: Dataset, name: str, where: str) -> Dataset:
    """The hub's columns under our names, its label ids in the task's order."""
    task = TASKS[name]
    wanted = [*task.hub_texts, "label"]
    if missing := [column for column in wanted if column not in rows.column_names]:
        raise UserError(f"{where}: no column {missing[0]!r}, only {', '.join(rows.column_names)}")
    labels = list(rows["label"])
    if -1 in labels:
        raise UserError(f"{where}: rows without a label (-1): a test set cannot be scored")
    if task.labels:
        labels = _in_our_order(labels, rows, task, where)
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


# --- questions and answers --------------------------------------------------------------------------------------------


def _read_answers(name: str, hub: str, languages: Sequence[str]) -> TaskData:
    task = TASKS[name]

    def load(repository: str, config: str | None, split: str) -> Dataset:
        questions = map(_question, _load(repository, config, split))
        return question_rows(questions, " ".join(filter(None, (repository, config, split))), task.unanswerable)

    if not task.languages:
        return TaskData(hub, load(hub, None, "train"), {"": load(hub, None, "validation")})
    configs = {key: f"mlqa.{key}.{key}" if name == "mlqa" else f"xquad.{key}" for key in _languages(name, languages)}
    dev = {key: load(hub, config, "validation") for key, config in configs.items()}
    test = {}
    if name == "mlqa":
        test = {key: load(hub, config, "test") for key, config in configs.items()}
    return TaskData(hub, load(TASKS["squad1"].hub, None, "train"), dev, test)


def _question(row: dict) -> Question:
    answers = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    own = [{"text": text, "answer_start": start} for text, start in answers]
    return Question(row["id"], row["question"], row["context"], own, None)
