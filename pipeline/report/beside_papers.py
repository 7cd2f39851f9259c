"""The papers' tables with the models of a results folder in them, each next to the row that it was made like."""

from pipeline.paper import HUB_LANGUAGES, TABLES, Column, Distilled, Table, known_as
from pipeline.report.distilled import budget_of
from pipeline.report.page import Section, table, words
from pipeline.report.scores import Scores, languages_of, shown


def paper_section(scores: Scores, all_tables: bool) -> Section:
    """The papers' tables, each row followed by the models here that were made like it."""
    known = {model: known_as(scores.results.models[model]) for model in scores.models}
    tables = [each for each in TABLES if all_tables or {column.task for column in each.columns} & {*scores.tasks}]
    if not tables:
        return [], {}
    lines = [
        "## Compared with the papers",
        "",
        "Rows that begin with “here” are of this folder: below a row where teacher, shape and relations are the same, at the "
        "end of a table where only the method is. Steps, batch and data may differ. Empty: not scored, or not given.",
        "",
    ]
    for each in tables:
        lines += _paper_table(scores, each, known)
    return lines, {}


def _paper_table(scores: Scores, theirs: Table, known: dict) -> list[str]:
    """A table of a paper with our models in it: ``known`` names them in the papers' terms."""
    rows: list[list[str]] = []
    alone: list[str] = []
    ours: list[str] = []
    for row in theirs.rows:
        rows.append([row.name, *("" if value is None else f"{value:.1f}" for value in row.values)])
        same = [model for model in scores.models if row.model is not None and known[model] == row.model]
        rows += [[f"**here: {words(model)}**", *_ours(scores, model, theirs.columns)] for model in same]
        ours += [model for model in same if model not in ours]
        if not same:
            alone.append(row.name)
    rows += _alike(scores, theirs, known, ours)
    head = ["", *(column.label for column in theirs.columns)]
    lines = [f"### {theirs.title}", "", f"{theirs.source}.", "", *table(head, rows), ""]
    models = scores.results.models
    lines += [f"* {words(name)} had {budget_of(models[name])}" for name in ours if models[name].get("distillation")]
    if not ours:
        lines.append("* no model here has the teacher and shape of a row")
    elif alone:
        lines.append(f"* none here of: {'; '.join(alone)}")
    return [*lines, ""]


def _alike(scores: Scores, theirs: Table, known: dict, ours: list[str]) -> list[list[str]]:
    """Rows of the models that were made by a method of the table, but from another teacher or in another shape."""
    methods = [row.model for row in theirs.rows if isinstance(row.model, Distilled)]
    rows: list[list[str]] = []
    teachers: set[str] = set()
    for model in scores.models:
        own = known[model]
        if model in ours or not isinstance(own, Distilled) or not any(map(own.is_like, methods)):
            continue
        means = f"{own.student} from {own.teacher} by {', '.join(own.terms)}"
        rows.append([f"here: {words(f'{model} ({means})')}", *_ours(scores, model, theirs.columns)])
        teachers |= {scores.teachers[model]} if model in scores.teachers else set()
    rows = [row for row in rows if any(row[1:])]
    for teacher in sorted(teachers - {*ours}, reverse=True) if rows else ():
        rows.insert(0, [f"here: {words(teacher)} (teacher)", *_ours(scores, teacher, theirs.columns)])
    return rows


def _ours(scores: Scores, model: str, columns: tuple[Column, ...]) -> list[str]:
    """The model's figures in the columns of a table."""
    cells, means = [], []
    for column in columns:
        figure = scores.figure(model, column.task, column.metric) if column.task else None
        means += [figure.mean] if figure else []
        if figure is None:
            cells.append("")
        elif "/" in column.metric:  # languages are many: no spread
            cells.append(f"{figure.mean:.1f}")
        else:
            cells.append(shown(figure) + _fewer_languages(scores, model, column))
    tasks = [column for column in columns if column.task]
    if len(means) == len(tasks) and not columns[-1].task:
        cells[-1] = f"{sum(means) / len(means):.1f}"
    return cells


def _fewer_languages(scores: Scores, model: str, column: Column) -> str:
    """A note that belongs to a mean over fewer languages than the papers'."""
    own = languages_of(scores.chosen(model, column.task), column.metric)
    return f", {len(own)} languages" if own and len(own) < len(HUB_LANGUAGES[column.task]) else ""
