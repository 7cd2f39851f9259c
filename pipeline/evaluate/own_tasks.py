"""A user's own task, described by a small TOML file.

kind = "classification"              # or "regression", or "similarity": of pairs, for which nothing is trained
train = "train.csv"                  # files of rows, beside this one: .csv or .tsv with a header, .jsonl
dev = "dev.csv"
test = "test.csv"                    # scored instead of dev, which then only chooses among settings; may be left out
text = "sentence"                    # names of columns or fields
text2 = "other_sentence"             # of pairs
label = "topic"
labels = ["sport", "politics"]       # in the order of their ids; default: those of the training set, sorted
metrics = ["accuracy", "f1_macro"]   # scikit-learn's; the first is the task's score
name = "topics"                      # among the results; default: this file's name
"""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

from sklearn.metrics import get_scorer_names

from data_prep.cli import UserError, from_home, some
from pipeline.evaluate.tasks import MTEB, TASKS, Layout, Own, Task

KINDS = ("classification", "regression", "similarity")
_SETS = ("train", "dev", "test")
_TEXTS = ("kind", *_SETS, "text", "text2", "label", "name")
_LISTS = ("labels", "metrics")
_DEFAULTS = {
    "classification": ("accuracy",),
    "regression": ("spearman", "pearson"),
    "similarity": ("spearman", "pearson"),
}
_CORRELATIONS = ("spearman", "pearson")
OF_TWO = (
    "f1",
    "precision",
    "recall",
    "jaccard",
    "average_precision",
    "roc_auc",
)  # labels: the second is the positive one
_OF_LABELS = ("accuracy", "balanced_accuracy", "matthews_corrcoef", *OF_TWO)


def register(path: str) -> str:
    """Read the description of a task and enter it among TASKS; returns its name. Raises UserError naming file and key."""
    file = Path(from_home(path))
    values = _read(file)
    kind = values.get("kind", KINDS[0])
    if kind not in KINDS:
        raise UserError(f"{file}: kind = {kind!r}: must be one of {', '.join(map(repr, KINDS))}")
    name = values.get("name", file.stem)
    if not re.fullmatch(r"\w[\w.-]*", name) or name.startswith(MTEB) or (name in TASKS and TASKS[name].own is None):
        hint = "is another task's" if name in TASKS else "must be letters, digits, '-', '_' and '.'"
        raise UserError(f"{file}: name = {name!r}: {hint}; give the task another name")
    _check_sets(file, values, kind)
    texts = tuple(values[key] for key in ("text", "text2") if key in values)
    labels = tuple(values.get("labels", ()))
    _check_labels(file, labels, kind)
    TASKS[name] = Task(
        hub=name,
        folders=(name,),
        scores=_metrics(file, values, kind, labels),
        layout=Layout(texts, values["label"]),
        labels=labels,
        embeds=kind == "similarity",
        own=Own(
            file,
            {key: file.parent / from_home(values[key]) for key in _SETS if key in values},
            numbers=kind != "classification",
        ),
    )
    return str(name)


def _read(file: Path) -> dict[str, Any]:
    """The values of the file, each of its type. Raises UserError for unknown keys and other types."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--task {file}: {(error.strerror or str(error)).lower()}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid TOML: {error}") from None
    for key, value in values.items():
        if key in _TEXTS:
            good, wanted = isinstance(value, str) and value != "", "a name in quotes"
        elif key in _LISTS:
            names = isinstance(value, list) and all(isinstance(each, str) and each for each in value)
            good, wanted = names and 0 < len(value) == len(set(value)), "a list of different names in quotes"
        else:
            near = difflib.get_close_matches(key, (*_TEXTS, *_LISTS), 1)
            hint = f"did you mean {near[0]}?" if near else f"keys are {', '.join((*_TEXTS, *_LISTS))}"
            raise UserError(f"{file}: {key}: unknown key; {hint}")
        if not good:
            raise UserError(f"{file}: {key} = {value!r}: must be {wanted}")
    return values


def _check_sets(file: Path, values: dict[str, Any], kind: str) -> None:
    """Raise UserError for keys that are missing, or of no use for the kind."""
    needed = ["text", "label"] + (["text2"] if kind == "similarity" else ["train", "dev"])
    for key in needed:
        if key not in values:
            raise UserError(f"{file}: {key} is missing; a task of kind {kind!r} needs {', '.join(needed)}")
    if kind == "similarity" and "train" in values:
        raise UserError(
            f"{file}: train: nothing is trained for kind 'similarity'; name the set to score as dev or test"
        )
    if kind == "similarity" and not {"dev", "test"} & values.keys():
        raise UserError(f"{file}: dev is missing; name the set to score as dev or test")


def _check_labels(file: Path, labels: tuple[str, ...], kind: str) -> None:
    if labels and kind != "classification":
        raise UserError(f"{file}: labels: of kind {kind!r} a label is a number; leave them out")
    if len(labels) == 1:
        raise UserError(f"{file}: labels: a single one; there must be two or more")


def _metrics(file: Path, values: dict[str, Any], kind: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the scores. Raises UserError for one that is none of the kind's."""
    chosen = tuple(values.get("metrics", _DEFAULTS[kind]))
    allowed = metrics_of(kind)
    for name in chosen:
        if name in allowed:
            check_two(file, name, labels)
            continue
        near = difflib.get_close_matches(name, allowed, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        error = "an error, not a score of which more is better; " if name.startswith("neg_") else ""
        raise UserError(f"{file}: metrics: {name!r}: {error}{hint}of kind {kind!r} they are {some(allowed, 40)}")
    return chosen


def check_two(file: Path, metric: str, labels: tuple[str, ...]) -> None:
    """Raise UserError for a metric of two labels where there are more."""
    if metric in OF_TWO and len(labels) > 2:
        others = [name for name in metrics_of("classification") if name.startswith(f"{metric}_")]
        raise UserError(f"{file}: metrics: {metric!r} is of two labels, there are {len(labels)}; use {some(others, 9)}")


def metrics_of(kind: str) -> list[str]:
    """The names of a kind's scores: those of scikit-learn that are shares or correlations, more being better."""
    if kind == "similarity":
        return [*_CORRELATIONS]
    if kind == "regression":
        return [*_CORRELATIONS, "r2", "explained_variance"]
    names = get_scorer_names()
    found = [name for name in names if name.startswith(_OF_LABELS) and not name.endswith("_samples")]
    return sorted(found, key=lambda name: (name not in _OF_LABELS, name))
