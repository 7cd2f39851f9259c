"""Reports, for a person, of scores or of one run.

python -m pipeline.report RESULTS_DIR [--runs RUN_DIR …] [--teacher NAME]
    students beside their teacher and beside the papers, from what pipeline.evaluate and pipeline.speed wrote:
    RESULTS_DIR/report.md with its charts, and report.html, one file that needs nothing else
python -m pipeline.report RUN_DIR STUDENT_FOLDER
    sizes, measured speed-up, held-out losses and relation maps of a run and its exported student
"""

import argparse
import os
import shlex
from pathlib import Path

from data_prep.errors import Parser, UserError, run_command
from pipeline import paper
from pipeline.page import html, table, words
from pipeline.results import (
    Cell,
    by_setting,
    inner_runs,
    make_folder,
    mean_and_spread,
    measured_on,
    read_results,
    shown_mean,
)
from pipeline.scores import (
    Figure,
    Scores,
    check,
    find_teacher,
    metric_name,
    missing,
    shown_seeds,
    shown_setting,
    title,
    unequal,
    unfinished,
)
from pipeline.tasks import HUB_LANGUAGES

NONE = "–"
_FLAGS = {"learning_rate": "--learning-rate", "epochs": "--epochs", "batch": "--batch", "length": "--length"}

Section = tuple[list[str], dict[str, bytes]]  # Markdown lines, and charts by file name


def make(folder: Path, runs: list[Path], teacher: str | None = None, all_tables: bool = False) -> tuple[str, list[str]]:
    """Write report.md, its charts and report.html into ``folder``; returns the Markdown text and a short summary."""
    results = read_results(folder)
    make_folder(folder)
    check(results)
    scores = Scores(results, find_teacher(results, teacher))
    summary = summarise(scores)
    name = f"Scores beside {scores.teacher}" if scores.teacher else f"Scores of {scores.models[0]}"
    lines, charts = [f"# {words(name)}", "", *(f"* {words(line)}" for line in summary), ""], {}
    for section in (
        scores_section(scores),
        retention_section(scores),
        paper_section(scores, all_tables),
        language_section(scores),
        speed_section(scores),
        runs_section(runs),
        origin_section(scores),
    ):
        lines += section[0]
        charts |= section[1]
    text = "\n".join(lines).rstrip() + "\n"
    _write(folder, text, html(name, text, charts), charts)
    return text, summary


def _write(folder: Path, text: str, page: str, charts: dict[str, bytes]) -> None:
    """Charts of former reports go; report.md, which links to them, comes last."""
    for old in folder.glob("report-*.svg"):
        if old.name not in charts:
            old.unlink()
    encoded = {"report.html": page.encode(), "report.md": text.encode()}
    for name, content in (charts | encoded).items():
        aside = folder / f".{name}.writing"
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(folder / name)


def summarise(scores: Scores) -> list[str]:
    """A few plain sentences."""
    models, tasks = scores.models, scores.tasks
    said = [f"{_count(len(models), 'model')} on {_count(len(tasks), 'task')}: {', '.join(map(title, tasks))}."]
    if scores.teacher is None:
        return [*said, "A single model: nothing to compare it with."]
    said.append(f"The teacher is {scores.teacher}.")
    for model in models:
        kept = scores.average_retention(model)
        if model != scores.teacher and kept:
            said.append(f"{model} keeps {kept[0]:.1f} % of it, on average over {_count(kept[1], 'task')}.")
    if gaps := sum(len(tasks) for _, tasks in missing(scores)):
        said.append(f"{_count(gaps, 'score')} not there; see below.")
    return said


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


# --- scores -----------------------------------------------------------------------------------------------------------


def scores_section(scores: Scores) -> Section:
    """All models and tasks; by name what is not there, what failed and what is not like with like; a chart of each task."""
    head = [
        "model",
        "size",
        *(words(f"{title(task)}, {metric_name(scores.primary(task))}".rstrip(", ")) for task in scores.tasks),
    ]
    rows = [
        [_name(scores, model), _size(scores, model), *(shown(scores.figure(model, task)) for task in scores.tasks)]
        for model in scores.models
    ]
    lines = [
        "## Scores",
        "",
        "Mean ± sample standard deviation over seeds (how many), in percent, at the best learning rate and number of epochs "
        "by that mean.",
        "",
        *table(head, rows, left=2),
        "",
        *_said(scores),
        *_other_metrics(scores),
    ]
    charts = {
        f"report-scores-{task}.svg": _bars(scores, task)
        for task in scores.tasks
        if any(scores.figure(model, task) for model in scores.models)
    }
    if charts:
        lines += [
            "Whiskers are the standard deviation; the dashed line is the teacher.",
            "",
            *_linked(charts, "Scores"),
        ]
    return lines, charts


def _name(scores: Scores, model: str) -> str:
    return f"**{words(model)}** (teacher)" if model == scores.teacher else words(model)


def _size(scores: Scores, model: str) -> str:
    return paper.size(scores.results.models[model]["layers"], scores.results.models[model]["hidden"])


def shown(figure: Figure | None) -> str:
    return NONE if figure is None else f"{shown_mean(figure.mean, figure.spread)} ({figure.n})"


def _said(scores: Scores) -> list[str]:
    """A list of what a reader must know of the table above."""
    said = [
        f"not there yet ({NONE}): {words(model)} in {words(', '.join(map(title, tasks)))}"
        for model, tasks in missing(scores)
    ]
    for failure in scores.results.failures:
        seed = f", seed {failure.settings['seed']}" if "seed" in failure.settings else ""
        setting = {key: value for key, value in failure.settings.items() if key != "seed"}
        cell = f"{failure.model}, {title(failure.task)}, {shown_setting(setting)}{seed}"
        said.append(f"**failed:** {words(cell)}: {words(failure.error)}")
    said += map(words, [*unfinished(scores), *unequal(scores)])
    return [*(f"* {line}" for line in said), ""] if said else []


def _other_metrics(scores: Scores) -> list[str]:
    """The metrics that are not shown above, but for those by language."""
    columns = []
    for task in scores.tasks:
        names = {name for cell in scores.results.cells if cell.task == task for name in cell.scores if "/" not in name}
        columns += [(task, name) for name in sorted(names - {scores.primary(task)})]
    if not columns:
        return []
    head = ["other metrics of the same runs", *(words(f"{title(task)}, {metric_name(name)}") for task, name in columns)]
    rows = [[words(m), *(shown(scores.figure(m, task, name)) for task, name in columns)] for m in scores.models]
    return [*table(head, rows), ""]


# --- retention --------------------------------------------------------------------------------------------------------


def retention_section(scores: Scores) -> Section:
    """What each model keeps of the teacher."""
    lines = []
    if scores.teacher:
        head = [
            f"percent of {words(scores.teacher)}",
            *(words(title(task)) for task in scores.tasks),
            "average",
            "over",
        ]
        lines = [
            "## Retention",
            "",
            "A model's mean in percent of the teacher's; the average is over the tasks that both have.",
            "",
            *table(head, [_kept(scores, model) for model in scores.models if model != scores.teacher]),
            "",
        ]
    return lines, {}


def _kept(scores: Scores, model: str) -> list[str]:
    each = [scores.retention(model, task) for task in scores.tasks]
    average = scores.average_retention(model)
    last = [f"**{average[0]:.1f}**", _count(average[1], "task")] if average else [NONE, NONE]
    return [words(model), *(NONE if value is None else f"{value:.1f}" for value in each), *last]


def _bars(scores: Scores, task: str) -> bytes:
    from pipeline import charts  # matplotlib takes a second

    scored = [model for model in scores.models if any(scores.figure(model, task) for task in scores.tasks)]
    rows = []
    for model in scored:
        own = scores.figure(model, task)
        rows.append(charts.Bar(model, own and own.mean, own and own.spread, model == scores.teacher))
    return charts.bars(title(task), f"{metric_name(scores.primary(task))} [%]", rows)


def _linked(charts: dict[str, bytes], what: str) -> list[str]:
    """Links to charts, in one paragraph so that they stand side by side."""
    if not charts:
        return []
    return [*(f"![{what}: {name.removesuffix('.svg').partition('-')[2]}]({name})" for name in charts), ""]


# --- beside the papers ------------------------------------------------------------------------------------------------


def paper_section(scores: Scores, all_tables: bool) -> Section:
    """The papers' tables, each row followed by the models here that were made like it."""
    known = {model: paper.known_as(scores.results.models[model]) for model in scores.models}
    tables = [each for each in paper.TABLES if all_tables or {column.task for column in each.columns} & {*scores.tasks}]
    if not tables:
        return [], {}
    lines = [
        "## Beside the papers",
        "",
        "Rows that begin with “here” are of this folder: below a row where teacher, shape and relations are the same, at the "
        "end of a table where only the method is. Steps, batch and data may differ. Empty: not scored, or not given.",
        "",
    ]
    for each in tables:
        lines += _paper_table(scores, each, known)
    return lines, {}


def _paper_table(scores: Scores, theirs: paper.Table, known: dict) -> list[str]:
    rows, alone, ours = [], [], []
    for row in theirs.rows:
        rows.append([row.name, *("" if value is None else f"{value:.1f}" for value in row.values)])
        same = [model for model in scores.models if row.model is not None and known[model] == row.model]
        rows += [[f"**here: {words(model)}**", *_ours(scores, model, theirs.columns)] for model in same]
        ours += [model for model in same if model not in ours]
        if not same:
            alone.append(row.name)
    rows += _alike(scores, theirs, known, ours)
    lines = [
        f"### {theirs.title}",
        "",
        f"{theirs.source}.",
        "",
        *table(["", *(c.label for c in theirs.columns)], rows),
        "",
    ]
    trained = [model for model in ours if scores.results.models[model].get("distillation")]
    lines += [f"* {words(model)} had {_budget(scores.results.models[model])}" for model in trained]
    lines.append(
        f"* none here of: {'; '.join(alone)}"
        if ours and alone
        else ""
        if ours
        else "* no model here has the teacher and shape of a row"
    )
    return [*lines, ""]


def _alike(scores: Scores, theirs: paper.Table, known: dict, ours: list[str]) -> list[list[str]]:
    """Rows of the models that were made by a method of the table, from another teacher or in another shape."""
    methods = [row.model for row in theirs.rows if isinstance(row.model, paper.Distilled)]
    rows = []
    for model in scores.models:
        own = known[model]
        if model in ours or not isinstance(own, paper.Distilled) or not any(map(own.is_like, methods)):
            continue
        means = f"{own.student} from {own.teacher} by {', '.join(own.terms)}"
        rows.append([f"here: {words(f'{model} ({means})')}", *_ours(scores, model, theirs.columns)])
    rows = [row for row in rows if any(row[1:])]
    if rows and scores.teacher and scores.teacher not in ours:
        rows.insert(0, [f"here: {words(scores.teacher)} (teacher)", *_ours(scores, scores.teacher, theirs.columns)])
    return rows


def _ours(scores: Scores, model: str, columns: tuple[paper.Column, ...]) -> list[str]:
    figures = [scores.figure(model, column.task, column.metric) if column.task else None for column in columns]
    cells = [
        ""
        if figure is None
        else f"{figure.mean:.1f}"  # languages are many
        if "/" in column.metric
        else shown(figure) + _fewer_languages(scores, model, column)
        for figure, column in zip(figures, columns, strict=True)
    ]
    tasks = [figure for figure, column in zip(figures, columns, strict=True) if column.task]
    if not columns[-1].task and all(tasks):
        cells[-1] = f"{sum(figure.mean for figure in tasks) / len(tasks):.1f}"
    return cells


def _fewer_languages(scores: Scores, model: str, column: paper.Column) -> str:
    """What must be said with a mean over fewer languages than the papers'."""
    names = {name for cell in scores.chosen(model, column.task) for name in cell.scores}
    own = {name.partition("/")[2] for name in names if name.startswith(f"{column.metric}/")}
    return f", {len(own)} languages" if own and len(own) < len(HUB_LANGUAGES[column.task]) else ""


def _budget(model: dict) -> str:
    """What a student was trained on, stage by stage."""
    try:
        return "; then ".join(words(_steps(stage)) for stage in model["distillation"])
    except (KeyError, TypeError, ValueError):
        return "steps that are not on record"


def _steps(stage: dict) -> str:
    recipe = stage.get("recipe", stage)
    size = f"{recipe['steps']:,} steps of {recipe['batch']:,} × {recipe['length']:,} tokens"
    return f"{size} from {recipe['teacher']['model']}"


# --- by language ------------------------------------------------------------------------------------------------------


def language_section(scores: Scores) -> Section:
    """For each task and metric that has several languages: a column for each."""
    lines = []
    for task in scores.tasks:
        names = {name for cell in scores.results.cells if cell.task == task for name in cell.scores if "/" in name}
        for metric in sorted({name.partition("/")[0] for name in names}, key=lambda m: (m != scores.primary(task), m)):
            languages = _in_order({name.partition("/")[2] for name in names if name.startswith(f"{metric}/")})
            if len(languages) < 2:
                continue
            columns = [metric, *(f"{metric}/{language}" for language in languages)]
            rows = [
                [_name(scores, model), *(_mean(scores.figure(model, task, column)) for column in columns)]
                for model in scores.models
                if scores.figure(model, task)
            ]
            head = [words(f"{title(task)}, {metric_name(metric)}"), "average", *map(words, languages)]
            lines += [*table(head, rows), ""]
    return (["## By language", "", "Means over the seeds of the setting shown above.", "", *lines] if lines else []), {}


def _in_order(languages: set[str]) -> list[str]:
    """As in the paper's XNLI table, others after it."""
    order = [column.label for column in paper.XNLI.columns]
    return sorted(languages, key=lambda name: (order.index(name) if name in order else len(order), name))


def _mean(figure: Figure | None) -> str:
    return NONE if figure is None else f"{figure.mean:.1f}"


# --- size and speed ---------------------------------------------------------------------------------------------------


def speed_section(scores: Scores) -> Section:
    models, speeds = scores.results.models, scores.results.speeds
    head = ["model", "size", "word embeddings", "Transformer", "all", "times as fast", "as", "paper"]
    rows = []
    for name in scores.models:
        counts = [_millions(models[name]["parameters"].get(key)) for key in ("embeddings", "transformer", "total")]
        rows.append([_name(scores, name), _size(scores, name), *counts, *_speed(scores, name)])
    measured = sorted({f"{measured_on(record)}, medians" for record in speeds.values()})
    missing_ones = [name for name in scores.models if name not in speeds and name not in _compared_with(speeds)]
    lines = ["## Parameters and speed", "", "Millions of parameters, counted as in the papers.", ""]
    lines += [*table(head, rows, left=2), ""]
    lines += [f"* measured: {words(how)}" for how in measured]
    if missing_ones:
        lines.append(f"* speed of {words(', '.join(missing_ones))}: not measured; `python -m pipeline.speed` does it")
    lines.append(
        "* paper: MiniLM, arXiv 2002.10957, over 12x768; where the reference here has another shape, the quotient of the "
        "paper's two figures; empty where it has no such shape"
    )
    return [*lines, ""], {}


def _compared_with(speeds: dict[str, dict]) -> set[str]:
    return {record["reference"] for record in speeds.values()}


def _millions(count: object) -> str:
    return f"{count / 1e6:.1f}" if isinstance(count, int) else NONE


def _speed(scores: Scores, name: str) -> list[str]:
    """Times as fast, as which, and the paper's figure for these shapes."""
    record = scores.results.speeds.get(name)
    if record is None:
        return ["1", "itself", ""] if name in _compared_with(scores.results.speeds) else [NONE, "", ""]
    reference = record["reference"]
    theirs = (
        paper.speedup(_size(scores, name), _size(scores, reference)) if reference in scores.results.models else None
    )
    return [f"{record['speedup']:.2f}", words(reference), "" if theirs is None else f"{theirs:.2f}"]


# --- distillation runs ------------------------------------------------------------------------------------------------


def runs_section(runs: list[Path]) -> Section:
    """A chart and a row for each run; nothing without runs."""
    if not runs:
        return [], {}
    from pipeline import charts
    from pipeline.monitor import read_metrics  # torch takes seconds
    from pipeline.relations import value_mse_note

    drawn, rows, names = {}, [], []
    for number, run in enumerate(runs, 1):
        metrics = [row for row in read_metrics(run) if isinstance(row, dict) and {"step", "kind"} <= row.keys()]
        if not metrics:
            inner = " ".join(inner_runs(run))
            hint = f"{inner} are its students or stages" if inner else "takes folders that pipeline.distill wrote"
            raise UserError(f"{run}: no rows in metrics.jsonl; --runs {hint}")
        name = run.resolve().name
        relations = charts.relations(metrics)
        drawn[f"report-losses-{number}.svg"] = charts.losses(name, f"nats{value_mse_note(relations)}", metrics)
        rows += _first_and_last(name, metrics, relations)
        names += relations
    lines = [
        "## Distillation",
        "",
        "Relation losses: KL divergence of teacher and student, averaged over heads and positions, in "
        f"nats{value_mse_note(names)}. Points are held-out documents, faint lines are training.",
        "",
        *_linked(drawn, "Losses"),
    ]
    if rows:
        lines += [*table(["run", "held-out loss", "first", "last", "left over"], rows, left=2), ""]
    return lines, drawn


def _first_and_last(run: str, metrics: list[dict], relations: list[str]) -> list[list[str]]:
    heldout = [row for row in metrics if row["kind"] == "heldout"]
    if not heldout:
        return []
    first, last = heldout[0], heldout[-1]
    return [
        [
            words(f"{run}, step {last['step']}") if name == "loss" else "",
            "total" if name == "loss" else words(name),
            f"{first[name]:.4f}",
            f"{last[name]:.4f}",
            f"{100 * last[name] / first[name]:.0f} %" if first[name] else NONE,
        ]
        for name in ("loss", *relations)
        if name in first and name in last
    ]


# --- how it was made --------------------------------------------------------------------------------------------------


def origin_section(scores: Scores) -> Section:
    """For each model what it is, and for each of its figures the setting, data, versions and command."""
    lines = ["## How each figure was made", ""]
    for name in scores.models:
        model = scores.results.models[name]
        lines += [f"### {words(name)}", "", f"* model: {words(model['path'])}, weights {words(model['weights'])}"]
        lines += [f"* distilled: {line}" for line in _stages(model)] + [""]
        chosen = {task: cells for task in scores.tasks if (cells := scores.chosen(name, task))}
        if not chosen:
            continue
        head = ["task", "setting", "seeds", "data", "versions", "train rows", "scored rows", "minutes each"]
        lines += [*table(head, [_origin(task, cells) for task, cells in chosen.items()], left=5), ""]
        for task, cells in chosen.items():
            lines.append(f"    {command(scores, model, task, cells)}")
        lines += ["", *_tried(scores, name)]
    return lines, {}


def _stages(model: dict) -> list[str]:
    try:
        return [words(_stage(stage)) for stage in model.get("distillation") or []]
    except (AttributeError, KeyError, TypeError, ValueError):
        return ["by a record that is not a recipe's"]


def _stage(stage: dict) -> str:
    recipe = stage.get("recipe", stage)
    student = recipe["student"]
    where = ", layer to layer up to layer" if recipe.get("transfer") == "layer-to-layer" else " of layer"
    return (
        f"{paper.size(student['layers'], student['hidden'])} ({student.get('init', 'random')} start) by "
        f"{', '.join(recipe['pairs'])} in {recipe['relation_heads']} relation heads{where} {recipe['teacher']['layer']}, "
        f"{_steps(stage)}, learning rate {recipe['learning_rate']:g}"
    )


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
    """What a person types to make these cells again."""
    first = cells[0]
    said = ["python", "-m", "pipeline.evaluate", "--model", model["path"], "--name", model["name"], "--task", task]
    if source := first.data.get("source"):
        said += ["--data", str(source)]
    said += ["--seeds", *(str(cell.settings["seed"]) for cell in cells if "seed" in cell.settings)]
    for key, flag in _FLAGS.items():
        if key in first.settings:
            said += [flag, f"{first.settings[key]}"]
    if languages := {name.partition("/")[2] for cell in cells for name in cell.scores if "/" in name}:
        said += ["--languages", ",".join(_in_order(languages))]
    said += ["--out", str(scores.results.folder)]
    return " ".join(shlex.join(said).splitlines())  # a code block ends at whatever line break


def _tried(scores: Scores, model: str) -> list[str]:
    """The other settings of a grid, best first."""
    lines = []
    for task in scores.tasks:
        groups = by_setting(scores.results.of(model, task))
        if len(groups) > 1:
            figures = [(setting, [cell.score for cell in cells]) for setting, cells in groups]
            ranked = sorted(figures, key=lambda row: (-len(row[1]), -mean_and_spread(row[1])[0]))
            each = [
                f"{shown_setting(setting)}: {shown(Figure(*mean_and_spread(own), len(own)))}" for setting, own in ranked
            ]
            lines += [f"* {words(title(task))}, all {len(groups)} settings: {words('; '.join(each))}"]
    return [*lines, ""] if lines else []


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = Parser(
        prog="python -m pipeline.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RESULTS_DIR | RUN_DIR", help="a results folder, or that of a run")
    parser.add_argument(
        "student", type=Path, metavar="STUDENT_FOLDER", nargs="?", help="what pipeline.export made of the run"
    )
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=[], metavar="RUN_DIR", help="distillation runs, for their curves"
    )
    parser.add_argument("--teacher", metavar="NAME", help="the model that the others are compared to")
    parser.add_argument(
        "--all-tables", action="store_true", help="the papers' tables of tasks that were not scored, too"
    )
    options = parser.parse_args()
    (_report_run if options.student else _report_results)(options)


def _report_run(options: argparse.Namespace) -> None:
    if options.runs or options.teacher or options.all_tables:
        raise UserError("--runs, --teacher and --all-tables are for a results folder; leave the student's folder out")
    from pipeline.run_report import report  # torch takes seconds

    print(report(options.folder, options.student))


def _report_results(options: argparse.Namespace) -> None:
    if (options.folder / "checkpoints").is_dir():
        remedy = f"python -m pipeline.report {options.folder} STUDENT_FOLDER, or --runs {options.folder} with a results folder"
        raise UserError(f"{options.folder}: the folder of a run, not of results; {remedy}")
    if inner := inner_runs(options.folder):
        remedy = f"--runs {' '.join(inner)} with a results folder"
        raise UserError(f"{options.folder}: the folder of several runs, not of results; {remedy}")
    _, summary = make(options.folder, options.runs, options.teacher, options.all_tables)
    print("\n".join([*summary, f"{options.folder / 'report.md'}", f"{options.folder / 'report.html'}"]))


if __name__ == "__main__":
    run_command(main)
