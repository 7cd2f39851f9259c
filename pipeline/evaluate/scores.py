"""The scores of labels and numbers, and the names that scores of several sets have. Those of answers are in qa.py."""

import math
import warnings

import numpy as np
from scipy.special import softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import (
    accuracy_score,
    explained_variance_score,
    f1_score,
    get_scorer,
    matthews_corrcoef,
    r2_score,
)

from pipeline.evaluate.tasks import Task


def label_scores(
    task: Task, predictions: np.ndarray, labels: np.ndarray, outputs: np.ndarray | None = None
) -> dict[str, float]:
    """The task's scores in percent. ``predictions``, ``labels``: [rows], ids of task.labels, or numbers.

    ``outputs`` [rows, labels]: the logits that the predictions are of, for scores of a user's own task that rank by them.
    Raises ValueError if a score is not defined, like a correlation of constant predictions.
    """
    if task.own and task.labels:
        return _own_scores(task, predictions, labels, outputs)
    if not task.labels and np.ptp(predictions) == 0:
        raise ValueError("all predictions are the same, so their correlation is not defined")
    functions = {
        "accuracy": lambda: accuracy_score(labels, predictions),
        "f1": lambda: f1_score(labels, predictions),
        "matthews": lambda: matthews_corrcoef(labels, predictions),
        "pearson": lambda: pearsonr(predictions, labels).statistic,
        "spearman": lambda: spearmanr(predictions, labels).statistic,
        "r2": lambda: r2_score(labels, predictions),
        "explained_variance": lambda: explained_variance_score(labels, predictions),
    }
    return {name: 100 * float(functions[name]()) for name in task.scores}


class _Given(ClassifierMixin, BaseEstimator):
    """What scikit-learn's scorers take for a classifier: its inputs are its logits [rows, labels] already."""

    def __init__(self, labels: int = 2):
        self.labels = labels
        self.classes_ = np.arange(labels)

    def predict(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(-1)

    def predict_proba(self, logits: np.ndarray) -> np.ndarray:
        shares: np.ndarray = softmax(logits.astype(np.float64), -1)
        return shares

    def decision_function(self, logits: np.ndarray) -> np.ndarray:
        return logits[:, 1] - logits[:, 0] if self.labels == 2 else logits


def _own_scores(
    task: Task, predictions: np.ndarray, labels: np.ndarray, outputs: np.ndarray | None
) -> dict[str, float]:
    """Of scikit-learn's scorers. Raises ValueError if one is not defined, as of a set that lacks a label."""
    given = _Given(len(task.labels))
    logits = np.eye(len(task.labels))[predictions] if outputs is None else outputs
    with warnings.catch_warnings(action="ignore"):  # a label that is never given has a precision of 0
        found = {name: 100 * float(get_scorer(name)(given, logits, labels)) for name in task.scores}
    for name, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is not defined for these rows: does the set have all labels?")
    return found


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
