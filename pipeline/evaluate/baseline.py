"""What one answer for all rows would score: a model that has learned nothing reaches that too."""

import warnings

import numpy as np
from datasets import Dataset

from pipeline.evaluate import qa
from pipeline.evaluate.rows import TaskData
from pipeline.evaluate.scores import label_scores, named_scores
from pipeline.evaluate.tasks import TASKS, Task


def baseline(name: str, data: TaskData) -> dict[str, float]:
    """The majority baseline of the task's scored sets, in percent, under the names of their scores."""
    task = TASKS[name]
    if not data.scored:
        return {}
    by_set = {key: _of_set(task, rows, key if name == "mlqa" else None) for key, rows in data.scored.items()}
    return named_scores(task, by_set)


def _of_set(task: Task, rows: Dataset, language: str | None) -> dict[str, float]:
    """For each score the best label for all rows, no answer to any question, 0 for a correlation, one text for all queries."""
    if task.answers:
        answers = [each["text"] for each in rows["answers"]]
        found = qa.set_scores([("", 1.0)] * len(answers), answers, language, task.unanswerable)
        return {score: found[score] for score in task.scores}
    if task.embeds and "label" not in rows.column_names:
        return dict.fromkeys(task.scores, 100 / len(rows))
    if not task.labels:
        return dict.fromkeys(task.scores, 0.0)
    labels = np.asarray(rows["label"])
    with warnings.catch_warnings(action="ignore"):  # F1 of a label that is never given is 0
        of_labels = [label_scores(task, np.full_like(labels, label), labels) for label in range(len(task.labels))]
    return {score: max(each[score] for each in of_labels) for score in task.scores}
