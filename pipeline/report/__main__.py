"""Report on scores, on one run, or on the students of a run side by side.

python -m pipeline.report RESULTS_DIR [--runs RUN_DIR …] [--teacher NAME]
    students compared with their teacher and with the papers, from the results of pipeline.evaluate and pipeline.speed:
    RESULTS_DIR/report.md with its charts (quality against size and speed also as PNG), and report.html, one file that needs
    nothing else
python -m pipeline.report OUT [--scores RESULTS_DIR]
    the students of a run side by side, or its stages: what they differ in, held-out losses and their chart, and the scores
    of a results folder: OUT/report.md and its chart, and report.html
python -m pipeline.report RUN_DIR STUDENT_FOLDER [--scores RESULTS_DIR]
    sizes, measured speed-up, held-out losses with their chart and relation maps of a run and its exported student, and the
    scores of both: RUN_DIR/report.md and its pictures, and report.html
"""

import argparse
from pathlib import Path

from data_prep.cli import Parser, UserError, run_command
from data_prep.files import write_atomic, write_text
from pipeline.artifacts.results import inner_runs, make_folder, read_results
from pipeline.report.beside_papers import paper_section
from pipeline.report.distilled import runs_section
from pipeline.report.origin import origin_section
from pipeline.report.page import html, words
from pipeline.report.quality import quality_section
from pipeline.report.scores import Scores, check, find_teacher
from pipeline.report.sections import (
    language_section,
    retention_section,
    scores_section,
    speed_section,
    summarise,
)
from pipeline.report.sweep import side_by_side


def make(folder: Path, runs: list[Path], teacher: str | None = None, all_tables: bool = False) -> tuple[str, list[str]]:
    """Write report.md, its charts and report.html into ``folder``. Returns the Markdown text and a short summary."""
    results = read_results(folder)
    make_folder(folder)
    check(results)
    scores = Scores(results, find_teacher(results, teacher))
    summary = summarise(scores)
    teachers = " and ".join(model for model in scores.models if scores.is_teacher(model))
    name = f"Scores compared with {teachers}" if teachers else f"Scores of {scores.models[0]}"
    lines = [f"# {words(name)}", "", *(f"* {words(line)}" for line in summary), ""]
    charts: dict[str, bytes] = {}
    for section, drawn in (
        scores_section(scores),
        retention_section(scores),
        paper_section(scores, all_tables),
        language_section(scores),
        speed_section(scores),
        quality_section(scores),
        runs_section(runs),
        origin_section(scores),
    ):
        lines += section
        charts |= drawn
    text = "\n".join(lines).rstrip() + "\n"
    _write(folder, text, html(name, text, charts), charts)
    return text, summary


def _write(folder: Path, text: str, page: str, charts: dict[str, bytes]) -> None:
    """Write the files and delete charts of previous reports; report.md, which links to the charts, comes last."""
    for old in (*folder.glob("report-*.svg"), *folder.glob("report-*.png")):
        if old.name not in charts:
            old.unlink()
    for name, chart in charts.items():
        write_atomic(folder / name, chart)
    write_text(folder / "report.html", page)
    write_text(folder / "report.md", text)


def parser() -> Parser:
    made = Parser(
        prog="python -m pipeline.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add(
        "folder",
        type=Path,
        metavar="RESULTS_DIR | RUN_DIR",
        help="a results folder, or the folder of a run or of several",
    )
    add(
        "student",
        type=Path,
        metavar="STUDENT_FOLDER",
        nargs="?",
        help="the student that pipeline.export made of the run",
    )
    add("--runs", type=Path, nargs="+", default=[], metavar="RUN_DIR", help="distillation runs, for their curves")
    add("--teacher", metavar="NAME", help="the model that those are compared with whose own teacher is not on record")
    add(
        "--scores",
        type=Path,
        metavar="RESULTS_DIR",
        help="with a run: what pipeline.evaluate left there, for its report",
    )
    add("--all-tables", action="store_true", help="also the papers' tables of tasks that were not scored")
    return made


def main() -> None:
    options = parser().parse_args()
    if options.student:
        _report_run(options)
    elif inner_runs(options.folder):
        _report_several(options)
    else:
        _report_results(options)


def _report_several(options: argparse.Namespace) -> None:
    _refuse_for_runs(options, "leave them out")
    title, (lines, drawn) = side_by_side(options.folder, options.scores, options.teacher)
    text = "\n".join([f"# {words(title)}", "", *lines]) + "\n"
    _write(options.folder, text, html(title, text, drawn), drawn)
    print(f"{text}\n{options.folder / 'report.md'}\n{options.folder / 'report.html'}")


def _refuse_for_runs(options: argparse.Namespace, remedy: str) -> None:
    if options.runs or options.all_tables or (options.teacher and not options.scores):
        raise UserError(f"--runs, --teacher and --all-tables are for a results folder; {remedy}")


def _report_run(options: argparse.Namespace) -> None:
    _refuse_for_runs(options, "leave the student's folder out")
    from pipeline.report.run import report  # torch takes seconds

    text = report(options.folder, options.student, options.scores, options.teacher)
    print(f"{text}\n{options.folder / 'report.md'}\n{options.folder / 'report.html'}")


def _report_results(options: argparse.Namespace) -> None:
    if options.scores:
        raise UserError("--scores goes with a run and its student; a results folder is reported by itself")
    if (options.folder / "checkpoints").is_dir():
        remedy = f"python -m pipeline.report {options.folder} STUDENT_FOLDER, or --runs {options.folder} with a results folder"
        raise UserError(f"{options.folder}: the folder of a run, not of results; {remedy}")
    _, summary = make(options.folder, options.runs, options.teacher, options.all_tables)
    print("\n".join([*summary, f"{options.folder / 'report.md'}", f"{options.folder / 'report.html'}"]))


if __name__ == "__main__":
    run_command(main)
