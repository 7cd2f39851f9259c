"""What a run's student keeps of its teacher, in the run's own report: a table of scores, and one by language."""

from pathlib import Path

from pipeline.artifacts.results import read_results
from pipeline.report.page import NONE, table, words
from pipeline.report.scores import Scores, check, find_teacher, metric_name, sets_of, title


def kept(folder: Path, teacher: str | None = None) -> list[str]:
    """Markdown lines on all models and tasks of a results folder: scores, and percent of the teacher's."""
    results = read_results(folder)
    check(results)
    scores = Scores(results, find_teacher(results, teacher))
    models = sorted(scores.models, key=lambda model: _order(scores, model))
    head = ["score", *(words(model) for model in models)]
    rows = []
    for task in scores.tasks:
        primary = scores.primary(task)
        rows.append(
            [words(f"{title(task)}, {metric_name(primary)}"), *(_kept(scores, model, task) for model in models)]
        )
    lines = [*table(head, rows), "", *(f"* {words(sentence)}" for sentence in sentences(scores)), ""]
    for task in scores.tasks:
        if by_set := _by_set(scores, models, task):
            lines += [*by_set, ""]
    return lines


def _order(scores: Scores, model: str) -> tuple[bool, bool, str]:
    """The teacher, then the models that were not distilled, then students."""
    return not scores.is_teacher(model), bool(scores.results.models[model].get("distillation")), model


def _kept(scores: Scores, model: str, task: str) -> str:
    figure, percent = scores.figure(model, task), scores.retention(model, task)
    if figure is None:
        return NONE
    return f"{figure.mean:.1f}" + ("" if percent is None else f" ({percent:.1f} %)")


def sentences(scores: Scores) -> list[str]:
    """`student keeps 98.0 % of teacher: Lee's documents (1,225 rows, majority baseline 0.0)`, a line for each model."""
    found = []
    for model in scores.models:
        if average := scores.average_retention(model):
            basis = "; ".join(scores.basis(model, task) for task in average[1])
            many = ", on average" if len(average[1]) > 1 else ""
            found.append(f"{model} keeps {average[0]:.1f} % of {scores.teachers[model]}{many}: {basis}")
        if low := scores.unclaimed(model):
            basis = "; ".join(scores.basis(model, task) for task in low)
            found.append(f"{model}, nothing claimed where it or its teacher is not above the baseline: {basis}")
    return found


def _by_set(scores: Scores, models: list[str], task: str) -> list[str]:
    """A row for each language or set of a task that has several."""
    primary = scores.primary(task)
    keys = sets_of(task, [cell for model in models for cell in scores.chosen(model, task)], primary)
    if not keys:
        return []
    head = [words(f"{title(task)}, {metric_name(primary)}"), *map(words, models)]
    rows = []
    for key in keys:
        figures = [scores.figure(model, task, f"{primary}/{key}") for model in models]
        rows.append([words(key), *(NONE if figure is None else f"{figure.mean:.1f}" for figure in figures)])
    return table(head, rows)
