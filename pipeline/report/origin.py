"""The report's section on how each figure was made: setting, data, versions, and the command that makes it again."""

import re
import shlex

from pipeline.artifacts.results import Cell, by_setting
from pipeline.report.distilled import stages_of
from pipeline.report.page import NONE, Section, table, words
from pipeline.report.scores import Scores, figure_of, languages_of, shown, shown_seeds, shown_setting, title

_FLAGS = {
    "learning_rate": "--learning-rate",
    "epochs": "--epochs",
    "batch": "--batch",
    "length": "--length",
    "prompt": "--prefix",
}


def origin_section(scores: Scores) -> Section:
    """Each model's origin, and the setting, data, versions and command of each of its figures."""
    lines = ["## How each figure was made", ""]
    for name in scores.models:
        model = scores.results.models[name]
        lines += [f"### {words(name)}", "", f"* model: {words(model['path'])}, weights {words(model['weights'])}"]
        lines += [f"* distilled: {line}" for line in stages_of(model)] + [""]
        chosen = {task: cells for task in scores.tasks if (cells := scores.chosen(name, task))}
        if not chosen:
            continue
        head = ["task", "setting", "seeds", "data", "versions", "train rows", "scored rows", "minutes each"]
        lines += [*table(head, [_origin(task, cells) for task, cells in chosen.items()], left=5), ""]
        lines += [f"    {command(scores, model, task, cells)}" for task, cells in chosen.items()]
        lines += ["", *tried(scores, name)]
    return lines, {}


def _origin(task: str, cells: list[Cell]) -> list[str]:
    first = cells[0]
    setting = {key: value for key, value in first.settings.items() if key != "seed"}
    seconds = [cell.seconds for cell in cells if cell.seconds == cell.seconds]
    return [
        words(title(task)),
        words(shown_setting(setting)),
        words(shown_seeds(cells)),
        words(f"{first.data.get('source')}, fingerprint {str(first.data.get('fingerprint'))[:12]}"),
        words(", ".join(f"{name} {version}" for name, version in sorted(first.versions.items()))),
        _rows(first.data.get("train")),
        f"{_rows(first.data.get(first.split, first.data.get('dev')))} {words(first.split)}",
        f"{sum(seconds) / len(seconds) / 60:.1f}" if seconds else NONE,
    ]


def _rows(count: object) -> str:
    return f"{count:,}" if isinstance(count, int) else NONE


def command(scores: Scores, model: dict, task: str, cells: list[Cell]) -> str:
    """The command line that makes these cells again."""
    first = cells[0]
    source = str(first.data.get("source") or "")
    own = source.endswith(".toml")  # the description of a user's own task
    typed = ["python", "-m", "pipeline.evaluate", "--model", model["path"], "--name", model["name"]]
    typed += ["--task", source if own else task]
    if (
        source and not own and not re.search("==|, ", source)
    ):  # a package, or several of the hub: what is read without --data
        typed += ["--data", source]
    if seeds := [str(cell.settings["seed"]) for cell in cells if "seed" in cell.settings]:
        typed += ["--seeds", *seeds]
    for key, flag in _FLAGS.items():
        if key in first.settings:
            typed += [flag, f"{first.settings[key]}"]
    if (languages := languages_of(cells)) and task != "sts":  # its sets are no languages
        typed += ["--languages", ",".join(languages)]
    typed += ["--out", str(scores.results.folder)]
    return " ".join(shlex.join(typed).splitlines())  # a code block ends at whatever line break


def tried(scores: Scores, model: str) -> list[str]:
    """All settings of a grid, best first."""
    lines = []
    for task in scores.tasks:
        groups = by_setting(scores.results.of(model, task))
        if len(groups) > 1:
            figures = [(setting, figure_of([cell.score for cell in cells])) for setting, cells in groups]
            figures.sort(key=lambda row: (-row[1].n, -row[1].mean))
            settings = "; ".join(f"{shown_setting(setting)}: {shown(figure)}" for setting, figure in figures)
            lines.append(f"* {words(title(task))}, all {len(groups)} settings: {words(settings)}")
    return [*lines, ""] if lines else []
