"""The scores of labels and numbers, and the names that scores of several sets have. Those of answers are in qa.py."""

import math

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from pipeline.evaluate.tasks import Task


def label_scores(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's scores in percent. ``predictions``, ``labels``: [rows], ids of task.labels, or numbers.

    Raises ValueError if a score is not defined, like a correlation of constant predictions.
    """
    if not task.labels and np.ptp(predictions) == 0:
        raise ValueError("all predictions are the same, so their correlation is not defined")
    functions = {
        "accuracy": lambda: accuracy_score(labels, predictions),
        "f1": lambda: f1_score(labels, predictions),
        "matthews": lambda: matthews_corrcoef(labels, predictions),
        "pearson": lambda: pearsonr(predictions, labels).statistic,
        "spearman": lambda: spearmanr(predictions, labels).statistic,
    }
    return {name: 100 * float(functions[name]()) for name in task.scores}


def named_scores(task: Task, by_set: dict[str, dict[str, float]]) -> dict[str, float]:
    """Scores of several sets under the names that results have: ``accuracy_mm``, or ``accuracy/de`` and their mean."""
    named = {}
    if task.averaged:
        for name in task.scores:
            named[name] = math.fsum(own[name] for own in by_set.values()) / len(by_set)
    for key, own in by_set.items():
        for name, value in own.items():
            named[_name_in_set(task, name, key)] = value
    return named


def _name_in_set(task: Task, name: str, key: str) -> str:
    if task.averaged and key:
        return f"{name}/{key}"
    return f"{name}_{key}" if key else name
