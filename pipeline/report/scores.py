"""Figures from the cells of a results folder, what a student keeps of its teacher, and notes that belong to them."""

import difflib
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import UserError, some
from pipeline.artifacts.results import Best, Cell, Results, at, best, by_setting, mean_and_spread, shown_mean
from pipeline.paper import XNLI
from pipeline.report.page import NONE

# In the order of the papers; other tasks come after these, by name.
TITLES = {
    "squad2": "SQuAD 2.0",
    "mnli": "MNLI",
    "sst2": "SST-2",
    "qnli": "QNLI",
    "cola": "CoLA",
    "rte": "RTE",
    "mrpc": "MRPC",
    "qqp": "QQP",
    "stsb": "STS-B",
    "squad1": "SQuAD 1.1",
    "xnli": "XNLI",
    "mlqa": "MLQA",
    "xquad": "XQuAD",
    "sts": "STS",
    "lee": "Lee's documents",
    "bitext": "Bitext retrieval",
}

METRICS = {
    "f1": "F1",
    "exact_match": "exact match",
    "matthews": "Matthews",
    "accuracy_mm": "mismatched",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "main_score": "main score",
    "accuracy_to_pivot": "into the pivot",
    "accuracy_from_pivot": "out of the pivot",
}

_ROUNDING = 1e-6  # percent: of a mean of equal scores; a row of a million counts for more


class Figure(NamedTuple):
    """Mean and sample standard deviation over ``n`` seeds, in percent; no spread of one seed. 0 seeds: nothing was trained."""

    mean: float
    spread: float | None
    n: int


def figure_of(scores: list[float]) -> Figure:
    return Figure(*mean_and_spread(scores), len(scores))


def shown(figure: Figure | None) -> str:
    """`72.0 ± 2.0 (3)`, with the number of seeds where there are some."""
    return NONE if figure is None else f"{shown_mean(figure.mean, figure.spread)}{counted(figure)}"


def counted(figure: Figure) -> str:
    return f" ({figure.n})" if figure.n else ""


@dataclass(frozen=True)
class Scores:
    """The results, and the model that those are compared with whose own teacher is not on record, if there is one."""

    results: Results
    teacher: str | None

    @functools.cached_property
    def teachers(self) -> dict[str, str]:
        """The teacher of each model that has one here: by its record, or else ``teacher``.

        A record that names no model here may mean ``teacher`` by another name; not if ``teacher`` is what others record, or if
        records name several.
        """
        known = self.results.models
        recorded = {name: first for name, model in known.items() if (first := _recorded(model))}
        found = {name: own for name in recorded if (own := _teacher_here(self.results, recorded[name]))}
        unknown = {recorded[name] for name in recorded if name not in found}
        by_default = set() if self.teacher is None else known.keys() - recorded.keys()
        if self.teacher and self.teacher not in found.values() and len(unknown) == 1:
            by_default |= recorded.keys() - found.keys()
        teachers = found | {name: self.teacher for name in by_default if self.teacher}
        return {name: own for name, own in teachers.items() if name not in (own, self.teacher)}

    def is_teacher(self, model: str) -> bool:
        return model == self.teacher or model in self.teachers.values()

    @property
    def models(self) -> list[str]:
        """The teachers, then students of a distillation, then others, by name; forms after their folder."""
        known = self.results.models

        def order(name: str) -> tuple[bool, bool, str, str]:
            of = self.folder(name)
            return not self.is_teacher(of), not known[name].get("distillation"), of, name

        return sorted(known, key=order)

    def form(self, model: str) -> dict[str, Any]:
        """Runtime and precision of a form that is not PyTorch's, and the name of its folder; else empty."""
        form = self.results.models[model].get("form")
        return form if isinstance(form, dict) and {"of", "runtime", "precision"} <= form.keys() else {}

    def folder(self, model: str) -> str:
        """The name of the model folder of a form; of a folder its own."""
        return self.form(model).get("of", model)

    @property
    def tasks(self) -> list[str]:
        """All tasks that any model was trained on, in the papers' order."""
        names = {cell.task for cell in self.results.cells} | {failure.task for failure in self.results.failures}
        return [name for name in TITLES if name in names] + sorted(names - TITLES.keys())

    def primary(self, task: str) -> str:
        """The metric that the tables show of a task."""
        return next((cell.primary for cell in self.results.cells if cell.task == task), "")

    def best(self, model: str, task: str) -> Best | None:
        cells = self.results.of(model, task)
        return best(cells) if cells else None

    def chosen(self, model: str, task: str) -> list[Cell]:
        """The cells of the best setting, by seed."""
        found = self.best(model, task)
        return at(self.results.of(model, task), found.setting) if found else []

    def figure(self, model: str, task: str, metric: str = "") -> Figure | None:
        """A score at the best setting: the primary one, or another. None if there is no such score."""
        cells = self.chosen(model, task)
        scores = [cell.scores.get(metric or cell.primary) for cell in cells]
        values = [score for score in scores if score is not None]
        if not values:
            return None
        return figure_of(values)._replace(n=len(values) if "seed" in cells[0].settings else 0)

    def retention(self, model: str, task: str) -> float | None:
        """The model's mean in percent of its teacher's.

        None where either is missing or not above its majority baseline, or the teacher's is not above 0.
        """
        teacher = self.teachers.get(model)
        theirs = self.figure(teacher, task) if teacher else None
        own = self.figure(model, task)
        if teacher is None or own is None or theirs is None or theirs.mean <= 0:
            return None
        return None if self.is_low(model, task) or self.is_low(teacher, task) else 100 * own.mean / theirs.mean

    def majority(self, model: str, task: str) -> float | None:
        """What one answer for all of the model's rows scores, where that is on record."""
        return max((cell.majority for cell in self.chosen(model, task) if cell.majority is not None), default=None)

    def is_low(self, model: str, task: str) -> bool:
        """Whether the model's mean is known to be no higher than what one answer for all rows scores."""
        own, majority = self.figure(model, task), self.majority(model, task)
        return own is not None and majority is not None and own.mean <= majority + _ROUNDING

    def unclaimed(self, model: str) -> list[str]:
        """The tasks in which model and teacher have scores, and one of them is too low to be compared."""
        both = (model, self.teachers[model]) if model in self.teachers else ()
        return [
            task
            for task in self.tasks
            if both and all(self.figure(each, task) for each in both) and any(self.is_low(each, task) for each in both)
        ]

    def basis(self, model: str, task: str) -> str:
        """`RTE (277 rows, 3 seeds, majority baseline 52.7)`: what a claim on the model in this task rests on."""
        cells, majority = self.chosen(model, task), self.majority(model, task)
        rows = next((f"{cell.rows:,}" for cell in cells if cell.rows is not None), "unknown")
        baseline = "not recorded" if majority is None else f"{majority:.1f}"
        seeds = f", {len(cells)} seed{'s' * (len(cells) != 1)}"
        if cells and "seed" not in cells[0].settings:
            seeds = ""
        return f"{title(task)} ({rows} rows{seeds}, majority baseline {baseline})"

    def average_retention(self, model: str) -> tuple[float, list[str]] | None:
        """The mean of the retention over the tasks where there is one, and these tasks."""
        kept = {task: value for task in self.tasks if (value := self.retention(model, task)) is not None}
        return (sum(kept.values()) / len(kept), list(kept)) if kept else None


def title(task: str) -> str:
    return TITLES.get(task, task)


def metric_name(metric: str) -> str:
    return METRICS.get(metric, metric)


def shown_setting(settings: dict) -> str:
    """`lr 3e-05, 3 epochs, batch 32, length 128` and all other settings."""
    epochs = "{:g} epoch" if settings.get("epochs") == 1 else "{:g} epochs"
    known = {"learning_rate": "lr {:g}", "epochs": epochs, "batch": "batch {}", "length": "length {}"}
    parts = [form.format(settings[key]) for key, form in known.items() if isinstance(settings.get(key), int | float)]
    others = [
        f"{key} {value}" for key, value in sorted(settings.items()) if key not in known and value not in (None, "")
    ]
    return ", ".join(parts + others)


def languages_of(cells: Iterable[Cell], metric: str = "") -> list[str]:
    """The languages with scores of their own, like `f1/de`, by this metric or any: in the order of the paper's XNLI table.

    Those that the paper lacks come after, by name.
    """
    names = {name for cell in cells for name in cell.scores if "/" in name}
    found = {name.partition("/")[2] for name in names if not metric or name.startswith(f"{metric}/")}
    order = [column.label for column in XNLI.columns]
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


# --- the teacher ------------------------------------------------------------------------------------------------------


def find_teacher(results: Results, name: str | None) -> str | None:
    """The model that others are compared with: ``name``, else the students' teacher, else the reference of the speeds.

    None for a single model, or where students have different teachers: each is compared with its own. Raises UserError where
    it is not clear, naming the choices.
    """
    choices = some(list(results.models), 12)
    if name is not None:
        if name not in results.models:
            near = difflib.get_close_matches(name, results.models, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {choices}"
            raise UserError(f"--teacher {name}: no results of it in {results.folder}; {hint}")
        return name
    if len(results.models) < 2:
        return None
    if teachers := _teachers(results):
        return teachers.pop() if len(teachers) == 1 else None
    references = _references(results)
    if len(references) == 1:
        return references.pop()
    if references:
        raise UserError(
            f"{results.folder}: several teachers ({some(sorted(references))}); name one with --teacher NAME"
        )
    raise UserError(f"{results.folder}: which model is the teacher? --teacher NAME says it; there are {choices}")


def _teachers(results: Results) -> set[str]:
    """The models here that are the first teacher of some student."""
    recorded = filter(None, map(_recorded, results.models.values()))
    return {teacher for each in recorded if (teacher := _teacher_here(results, each))}


def _recorded(model: dict) -> str | None:
    """The model that a student's distillation begins with, as its recipe names it."""
    stages = model.get("distillation")
    stage = stages[0] if isinstance(stages, list) and stages else None
    recipe = stage.get("recipe", stage) if isinstance(stage, dict) else None
    teacher = recipe.get("teacher") if isinstance(recipe, dict) else None
    named = teacher.get("model") if isinstance(teacher, dict) else None
    return named if isinstance(named, str) else None


def _references(results: Results) -> set[str]:
    return {record["reference"] for record in results.speeds.values()} & results.models.keys()


def _teacher_here(results: Results, wanted: str) -> str | None:
    """The model here that a recipe names as ``wanted``: the one of this path, else of this name."""
    path, names = Path(wanted).resolve(), (wanted.replace("/", "--"), Path(wanted).name)
    of_path = [name for name, model in results.models.items() if Path(model["path"]).resolve() == path]
    of_name = [name for name, model in results.models.items() if model["name"] in names]
    for found in (of_path, of_name):
        if len(found) == 1:
            return found[0]
    return None


# --- notes ------------------------------------------------------------------------------------------------------------


def check(results: Results) -> None:
    """Raise UserError for a folder without scores, or with scores of other weights than its model's."""
    if not results.cells and not results.failures:
        raise UserError(f"{results.folder}: no scores; python -m pipeline.evaluate … --out {results.folder} makes them")
    for cell in results.cells:
        known = results.models[cell.model]["weights"]
        if cell.weights != known:
            raise UserError(
                f"{cell.path}: scored with the weights {cell.weights}, but {cell.model} is {known} by its model.json; "
                "delete it and evaluate again"
            )


def missing(scores: Scores) -> list[tuple[str, list[str]]]:
    """(model, the tasks in which others have a score and it has none). Forms are not fine-tuned."""
    trained = {cell.task for cell in scores.results.cells if "seed" in cell.settings}
    gaps = {}
    for model in scores.models:
        wanted = [task for task in scores.tasks if not (scores.form(model) and task in trained)]
        gaps[model] = [task for task in wanted if not scores.results.of(model, task)]
    return [(model, tasks) for model, tasks in gaps.items() if tasks]


def unequal(scores: Scores) -> list[str]:
    """Sentences on differences between the models that make scores less comparable."""
    sentences = []
    for task in scores.tasks:
        cells = {model: own for model in scores.models if (own := scores.results.of(model, task))}
        properties: dict[str, dict[str, Any]] = {
            "seeds": {model: shown_seeds(scores.chosen(model, task)) for model in cells},
            "settings tried": {model: len(by_setting(own)) for model, own in cells.items()},
            "data": {model: _each(map(_data, own)) for model, own in cells.items()},
            "precision": {model: _each(cell.precision for cell in own) for model, own in cells.items()},
            "scored split": {model: _each(cell.split for cell in own) for model, own in cells.items()},
        }
        for name, values in properties.items():
            if len(set(values.values())) > 1:
                by_model = "; ".join(f"{model} {value}" for model, value in values.items())
                sentences.append(f"{title(task)}, {name} differ: {by_model}")
    return sentences


def shown_seeds(cells: list[Cell]) -> str:
    return " ".join(str(cell.settings.get("seed", NONE)) for cell in cells)


def sets_of(task: str, cells: Iterable[Cell], metric: str) -> list[str]:
    """The languages or sets that a task's scores are shown by: where there are several, or a single one must be named."""
    found = languages_of(cells, metric)
    return found if len(found) > 1 or task == "sts" else []


def _each(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _data(cell: Cell) -> str:
    return f"{cell.data.get('source')} ({str(cell.data.get('fingerprint'))[:8]})"


def unfinished(scores: Scores) -> list[str]:
    """Sentences on settings that the choice of the best leaves out because they have fewer seeds."""
    sentences = []
    for model in scores.models:
        for task in scores.tasks:
            groups = by_setting(scores.results.of(model, task))
            most = max((len(cells) for _, cells in groups), default=0)
            fewer = [shown_setting(setting) for setting, cells in groups if len(cells) < most]
            if fewer:
                settings = some(fewer, apart="; ")
                sentences.append(f"{model}, {title(task)}: not compared, with fewer than {most} seeds: {settings}")
    return sentences
