"""What the cells of a results folder come to: figures, what a student keeps of its teacher, and what must be said with it."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_prep.errors import UserError, some
from pipeline.results import Best, Cell, Results, at, best, by_setting, mean_and_spread

# In the order of the papers; what is not here comes after, by name.
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
}

METRICS = {
    "f1": "F1",
    "exact_match": "exact match",
    "matthews": "Matthews",
    "accuracy_mm": "mismatched",
    "spearman": "Spearman",
    "pearson": "Pearson",
}


class Figure(NamedTuple):
    """Mean and sample standard deviation over ``n`` seeds, in percent; no spread of one seed."""

    mean: float
    spread: float | None
    n: int


@dataclass(frozen=True)
class Scores:
    """The results and who is the teacher, if any is."""

    results: Results
    teacher: str | None

    @property
    def models(self) -> list[str]:
        """The teacher, then students of a distillation, then others, by name."""
        known = self.results.models
        return sorted(known, key=lambda name: (name != self.teacher, not known[name].get("distillation"), name))

    @property
    def tasks(self) -> list[str]:
        """All tasks that any model was begun on, in the papers' order."""
        names = {record.task for record in (*self.results.cells, *self.results.failures)}
        return [name for name in TITLES if name in names] + sorted(names - TITLES.keys())

    def primary(self, task: str) -> str:
        """The metric that is shown of a task."""
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
        scores = [(cell.scores, metric or cell.primary) for cell in self.chosen(model, task)]
        values = [own[name] for own, name in scores if name in own]
        return Figure(*mean_and_spread(values), len(values)) if values else None

    def retention(self, model: str, task: str) -> float | None:
        """The model's mean in percent of the teacher's; None where either is missing or the teacher's is not above 0."""
        theirs = self.figure(self.teacher, task) if self.teacher else None
        own = self.figure(model, task)
        return 100 * own.mean / theirs.mean if own and theirs and theirs.mean > 0 else None

    def average_retention(self, model: str) -> tuple[float, int] | None:
        """The mean of the retention over the tasks that model and teacher both have, and how many those are."""
        kept = [value for task in self.tasks if (value := self.retention(model, task)) is not None]
        return (sum(kept) / len(kept), len(kept)) if kept else None


def title(task: str) -> str:
    return TITLES.get(task, task)


def metric_name(metric: str) -> str:
    return METRICS.get(metric, metric)


def shown_setting(settings: dict) -> str:
    """`lr 3e-05, 3 epochs, batch 32, length 128` and whatever else was set."""
    epochs = "{:g} epoch" if settings.get("epochs") == 1 else "{:g} epochs"
    known = {"learning_rate": "lr {:g}", "epochs": epochs, "batch": "batch {}", "length": "length {}"}
    parts = [form.format(settings[key]) for key, form in known.items() if isinstance(settings.get(key), int | float)]
    others = [f"{key} {value}" for key, value in sorted(settings.items()) if key not in known and value is not None]
    return ", ".join(parts + others)


# --- the teacher ------------------------------------------------------------------------------------------------------


def find_teacher(results: Results, name: str | None) -> str | None:
    """The model that others are compared to: ``name``, else whom the students were distilled from, else the speed's reference.

    None for a single model. Raises UserError where it is not clear, naming the choices.
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
    for found in (_teachers(results), _references(results)):
        if len(found) == 1:
            return found.pop()
        if found:
            raise UserError(f"{results.folder}: several teachers ({some(sorted(found))}); name one with --teacher NAME")
    raise UserError(f"{results.folder}: which model is the teacher? --teacher NAME says it; there are {choices}")


def _teachers(results: Results) -> set[str]:
    """The models here that begin the chain of some student."""
    found = set()
    for model in results.models.values():
        stages = model.get("distillation")
        first = stages[0] if isinstance(stages, list) and stages else None
        if isinstance(first, dict) and (teacher := _find(results, first)):
            found.add(teacher)
    return found


def _references(results: Results) -> set[str]:
    return {record["reference"] for record in results.speeds.values()} & results.models.keys()


def _find(results: Results, stage: dict) -> str | None:
    """The model here that was the teacher of a stage: of the same path, else name."""
    recipe = stage.get("recipe", stage)
    teacher = recipe.get("teacher") if isinstance(recipe, dict) else None
    wanted = teacher.get("model") if isinstance(teacher, dict) else None
    if not isinstance(wanted, str):
        return None
    for same in (
        lambda model: Path(model["path"]).resolve() == Path(wanted).resolve(),
        lambda model: model["name"] in (wanted.replace("/", "--"), Path(wanted).name),
    ):
        found = [name for name, model in results.models.items() if same(model)]
        if len(found) == 1:
            return found[0]
    return None


# --- what must be said ------------------------------------------------------------------------------------------------


def check(results: Results) -> None:
    """Raises UserError for a folder without scores, or with scores of other weights than its model's."""
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
    """(model, tasks in which others have a score and it has none)."""
    gaps = [(model, [task for task in scores.tasks if not scores.results.of(model, task)]) for model in scores.models]
    return [(model, tasks) for model, tasks in gaps if tasks]


def unequal(scores: Scores) -> list[str]:
    """Sentences on what is not compared like with like: seeds, settings tried, data, precision, split."""
    said = []
    for task in scores.tasks:
        cells = {model: own for model in scores.models if (own := scores.results.of(model, task))}
        for what, values in {
            "seeds": {model: shown_seeds(scores.chosen(model, task)) for model in cells},
            "settings tried": {model: len(by_setting(own)) for model, own in cells.items()},
            "data": {model: _data(own) for model, own in cells.items()},
            "precision": {model: ", ".join(sorted({cell.precision for cell in own})) for model, own in cells.items()},
            "scored split": {model: ", ".join(sorted({cell.split for cell in own})) for model, own in cells.items()},
        }.items():
            if len(set(values.values())) > 1:
                each = "; ".join(f"{model} {value}" for model, value in values.items())
                said.append(f"{title(task)}, {what} differ: {each}")
    return said


def shown_seeds(cells: list[Cell]) -> str:
    return " ".join(str(cell.settings.get("seed", "?")) for cell in cells)


def _data(cells: list[Cell]) -> str:
    return ", ".join(sorted({f"{cell.data.get('source')} ({str(cell.data.get('fingerprint'))[:8]})" for cell in cells}))


def unfinished(scores: Scores) -> list[str]:
    """Sentences on settings that were left out of the choice of the best because they have fewer seeds."""
    said = []
    for model in scores.models:
        for task in scores.tasks:
            groups = by_setting(scores.results.of(model, task))
            most = max((len(cells) for _, cells in groups), default=0)
            fewer = [setting for setting, cells in groups if len(cells) < most]
            if fewer:
                shown = some([shown_setting(setting) for setting in fewer], apart="; ")
                said.append(f"{model}, {title(task)}: not compared, with fewer than {most} seeds: {shown}")
    return said
