"""The report's sections on scores, retention, languages and speed, and its summary."""

from pipeline.artifacts.results import Failure, measured_on, shown_majority
from pipeline.paper import size, speedup
from pipeline.report.page import NONE, Section, linked, table, words
from pipeline.report.scores import (
    Figure,
    Scores,
    counted,
    metric_name,
    missing,
    sets_of,
    shown,
    shown_setting,
    title,
    unequal,
    unfinished,
)

LOW = "low"


def summarise(scores: Scores) -> list[str]:
    """The report in a few plain sentences."""
    models, tasks = scores.models, scores.tasks
    sentences = [f"{_count(len(models), 'model')} on {_count(len(tasks), 'task')}: {', '.join(map(title, tasks))}."]
    if len(models) == 1:
        return [*sentences, "A single model: nothing to compare it with."]
    for model in models:
        teacher = scores.teachers.get(model)
        if teacher and (kept := scores.average_retention(model)):
            basis = "; ".join(scores.basis(model, task) for task in kept[1])
            over = _count(len(kept[1]), "task")
            sentences.append(
                f"{model} keeps {kept[0]:.1f} % of its teacher {teacher}, on average over {over}: {basis}."
            )
        if unclaimed := scores.unclaimed(model):
            basis = "; ".join(scores.basis(model, task) for task in unclaimed)
            sentences.append(
                f"{model}, nothing claimed where it or {teacher} is not above the majority baseline: {basis}."
            )
    alone = [model for model in models if not scores.is_teacher(model) and model not in scores.teachers]
    if alone:
        sentences.append(f"Not compared, since no teacher of theirs is here: {', '.join(alone)}.")
    if gaps := sum(len(tasks) for _, tasks in missing(scores)):
        sentences.append(f"{_count(gaps, 'score')} not there; see below.")
    return sentences


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def scores_section(scores: Scores) -> Section:
    """A table of all models and tasks; notes on missing, failed and differently made scores; a chart of each task."""
    head = [
        "model",
        "size",
        *(words(f"{title(task)}, {metric_name(scores.primary(task))}".rstrip(", ")) for task in scores.tasks),
    ]
    rows = [
        [_name(scores, model), _size(scores, model), *(shown(scores.figure(model, task)) for task in scores.tasks)]
        for model in scores.models
    ]
    rows.append(["majority baseline", "", *(_majority(scores, task) for task in scores.tasks)])
    lines = [
        "## Scores",
        "",
        "Mean ± sample standard deviation over seeds (how many), in percent, at the best learning rate and number of epochs "
        "by that mean. Majority baseline: what one answer for all rows scores.",
        "",
        *table(head, rows, left=2),
        "",
        *_notes(scores),
        *_other_metrics(scores),
    ]
    charts = {
        f"report-scores-{task}.svg": _bars(scores, task)
        for task in scores.tasks
        if any(scores.figure(model, task) for model in scores.models)
    }
    if charts:
        lines += [
            "Whiskers are the standard deviation; dashed lines are teachers.",
            "",
            *linked(charts, "Scores"),
        ]
    return lines, charts


def _name(scores: Scores, model: str) -> str:
    return f"**{words(model)}** (teacher)" if scores.is_teacher(model) else words(model)


def _majority(scores: Scores, task: str) -> str:
    return shown_majority(cell for model in scores.models for cell in scores.chosen(model, task))


def _size(scores: Scores, model: str) -> str:
    return size(scores.results.models[model]["layers"], scores.results.models[model]["hidden"])


def _notes(scores: Scores) -> list[str]:
    """A list of what a reader must know of the table above."""
    notes = [
        f"not there yet ({NONE}): {words(model)} in {words(', '.join(map(title, tasks)))}"
        for model, tasks in missing(scores)
    ]
    notes += [f"**failed:** {words(_cell(failure))}: {words(failure.error)}" for failure in scores.results.failures]
    notes += map(words, [*unfinished(scores), *unequal(scores)])
    return [*(f"* {note}" for note in notes), ""] if notes else []


def _cell(failure: Failure) -> str:
    seed = f", seed {failure.settings['seed']}" if "seed" in failure.settings else ""
    setting = {key: value for key, value in failure.settings.items() if key != "seed"}
    return f"{failure.model}, {title(failure.task)}, {shown_setting(setting)}{seed}"


def _other_metrics(scores: Scores) -> list[str]:
    """A table of the metrics that are not shown above, except those by language."""
    columns = []
    for task in scores.tasks:
        names = {name for cell in scores.results.cells if cell.task == task for name in cell.scores if "/" not in name}
        columns += [(task, name) for name in sorted(names - {scores.primary(task)})]
    if not columns:
        return []
    head = ["other metrics of the same runs", *(words(f"{title(task)}, {metric_name(name)}") for task, name in columns)]
    rows = [[words(m), *(shown(scores.figure(m, task, name)) for task, name in columns)] for m in scores.models]
    return [*table(head, rows), ""]


def retention_section(scores: Scores) -> Section:
    """For each teacher a table of its students' scores in percent of its own."""
    if not scores.teachers:
        return [], {}
    titles = [words(title(task)) for task in scores.tasks]
    lines = [
        "## Retention",
        "",
        "A model's mean in percent of its own teacher's (by how many seeds); the average is over the tasks that both have. "
        f"{LOW}: a score is not above the majority baseline, so nothing is claimed.",
        "",
    ]
    baselines = ["majority baseline", *(_majority(scores, task) for task in scores.tasks), "", ""]
    for teacher in dict.fromkeys(scores.teachers[model] for model in scores.models if model in scores.teachers):
        students = [model for model in scores.models if scores.teachers.get(model) == teacher]
        head = [f"percent of {words(teacher)}", *titles, "average", "over"]
        lines += [*table(head, [*(_kept(scores, model) for model in students), baselines]), ""]
    return lines, {}


def _kept(scores: Scores, model: str) -> list[str]:
    average, low = scores.average_retention(model), scores.unclaimed(model)
    cells = []
    for task in scores.tasks:
        kept = scores.retention(model, task)
        missing_or_low = LOW if task in low else NONE
        figure = scores.figure(model, task)
        cells.append(missing_or_low if kept is None or figure is None else f"{kept:.1f}{counted(figure)}")
    last = [f"**{average[0]:.1f}**", _count(len(average[1]), "task")] if average else [NONE, NONE]
    return [words(model), *cells, *last]


def _bars(scores: Scores, task: str) -> bytes:
    from pipeline.report import charts  # matplotlib takes a second

    scored = [model for model in scores.models if any(scores.figure(model, task) for task in scores.tasks)]
    rows = []
    for model in scored:
        own = scores.figure(model, task)
        rows.append(charts.Bar(model, own and own.mean, own and own.spread, scores.is_teacher(model)))
    return charts.bars(title(task), f"{metric_name(scores.primary(task))} [%]", rows)


def language_section(scores: Scores) -> Section:
    """A table for each task and metric that has several languages, with a column for each."""
    lines, heading = [], "## By language"
    for task in scores.tasks:
        cells = [cell for cell in scores.results.cells if cell.task == task]
        heading = "## By language or set" if task == "sts" else heading
        primary = scores.primary(task)
        metrics = {name.partition("/")[0] for cell in cells for name in cell.scores if "/" in name}
        for metric in sorted(metrics, key=lambda name: (name != primary, name)):
            if languages := sets_of(task, cells, metric):
                lines += _languages(scores, task, metric, languages)
    if not lines:
        return [], {}
    return [heading, "", "Means over the seeds of the setting shown above.", "", *lines], {}


def _languages(scores: Scores, task: str, metric: str, languages: list[str]) -> list[str]:
    columns = [metric, *(f"{metric}/{language}" for language in languages)]
    rows = []
    for model in scores.models:
        if scores.figure(model, task):
            figures = [scores.figure(model, task, column) for column in columns]
            rows.append([_name(scores, model), *map(_mean, figures)])
    head = [words(f"{title(task)}, {metric_name(metric)}"), "average", *map(words, languages)]
    return [*table(head, rows), ""]


def _mean(figure: Figure | None) -> str:
    return NONE if figure is None else f"{figure.mean:.1f}"


def speed_section(scores: Scores) -> Section:
    """A table of sizes and measured speed-ups, with the paper's."""
    models, speeds = scores.results.models, scores.results.speeds
    head = [
        "model",
        "size",
        "in",
        "word embeddings",
        "Transformer",
        "all",
        "MB on disk",
        "times as fast",
        "as",
        "paper",
    ]
    rows = []
    for name in scores.models:
        counts = [_millions(models[name]["parameters"].get(key)) for key in ("embeddings", "transformer", "total")]
        disk = models[name].get("bytes")
        megabytes = f"{disk / 1e6:.1f}" if isinstance(disk, int) else NONE
        rows.append(
            [_name(scores, name), _size(scores, name), _form(scores, name), *counts, megabytes, *_speed(scores, name)]
        )
    measured = sorted({f"{measured_on(_without_form(record))}, medians" for record in speeds.values()})
    unmeasured = [name for name in scores.models if name not in speeds and name not in _references(speeds)]
    lines = ["## Parameters and speed", "", "Millions of parameters, counted as in the papers.", ""]
    lines += [*table(head, rows, left=3), ""]
    lines += [f"* measured: {words(how)}" for how in measured]
    if unmeasured:
        lines.append(f"* speed of {words(', '.join(unmeasured))}: not measured; `python -m pipeline.speed` does it")
    lines.append(
        "* paper: MiniLM, arXiv 2002.10957, over 12x768; where the reference here has another shape, the quotient of the "
        "paper's two figures; empty where it has no such shape"
    )
    return [*lines, ""], {}


def _form(scores: Scores, name: str) -> str:
    form = scores.form(name)
    return f"{form['runtime']}, {form['precision']}" if form else "PyTorch"


def _without_form(record: dict) -> dict:
    """The record of a speed whose device has no word on a form, which the table shows."""
    device, _, kind = record["device"].rpartition(", ")
    return record | {"device": device} if " in " in kind else record


def _references(speeds: dict[str, dict]) -> set[str]:
    return {record["reference"] for record in speeds.values()}


def _millions(count: object) -> str:
    return f"{count / 1e6:.1f}" if isinstance(count, int) else NONE


def _speed(scores: Scores, name: str) -> list[str]:
    """The measured speed-up, the model that it is over, and the paper's figure for these shapes."""
    record = scores.results.speeds.get(name)
    if record is None:
        return ["1", "itself", ""] if name in _references(scores.results.speeds) else [NONE, "", ""]
    reference = record["reference"]
    theirs = None
    if reference in scores.results.models and not scores.form(name):
        theirs = speedup(_size(scores, name), _size(scores, reference))
    return [f"{record['speedup']:.2f}", words(reference), "" if theirs is None else f"{theirs:.2f}"]
