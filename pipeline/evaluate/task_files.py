"""The tasks' files in their original layouts: GLUE's and XNLI's tsv files, raw MultiNLI and MRPC, and SQuAD's JSON."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from datasets import Dataset

from data_prep.cli import UserError
from pipeline.evaluate.rows import (
    Question,
    TaskData,
    Unlabelled,
    chosen_languages,
    number_label,
    question_rows,
    sets_with_labels,
)
from pipeline.evaluate.tasks import TASKS, Layout, Task
from pipeline.paper import HUB_LANGUAGES

# XNLI as published: all languages in one file, and English for training.
_XNLI_NAMED = Layout(("sentence1", "sentence2"), "gold_label", language="language")
_XNLI_TRAIN = Layout(("premise", "hypo"), "label")
_XNLI_FILES = {"train": "multinli.train.en.tsv", "dev": "xnli.dev.tsv", "test": "xnli.test.tsv"}


def read(name: str, folder: Path, languages: Sequence[str]) -> TaskData:
    """The rows of the task ``name`` from the files in ``folder``."""
    if TASKS[name].answers:
        return _read_answers(name, folder, languages)
    if TASKS[name].languages:
        return _read_xnli(name, folder, languages)
    return _read_glue(name, folder)


def _read_glue(name: str, folder: Path) -> TaskData:
    task = TASKS[name]
    place, train_file = _place(folder, task.folders, ("train.tsv", *task.raw_files[:1]), name)
    notes: list[str] = []
    train = read_tsv(place / train_file, name, notes)
    raw = train_file != "train.tsv"
    if raw and not task.raw_dev_files:
        test = {"": read_tsv(place / task.raw_files[1], name, notes)}
        notes.append(
            f"{place / task.raw_files[1]}: this test set is scored, and chooses among settings: there is no dev set here; "
            "GLUE's is a part of this training set"
        )
        return TaskData(str(folder), train, test, test, notes=tuple(notes))
    dev_files = task.raw_dev_files if raw else task.dev_files
    dev = {key: read_tsv(place / file, name, notes) for key, file in dev_files.items()}
    return TaskData(str(folder), train, dev, notes=tuple(notes))


def _place(folder: Path, names: Iterable[str], patterns: Sequence[str], task: str) -> tuple[Path, str]:
    """The folder of a task's files: ``folder`` itself, or one of a usual name below it; and the pattern found there."""
    places = [folder, *(folder / name for name in names)]
    for pattern in patterns:
        for place in places:
            if any(place.glob(pattern)):
                return place, pattern
    inner = ", ".join(place.name for place in places[1:])
    raise UserError(f"{folder}: no {' or '.join(patterns)} for {task} there or in {inner}")


# --- tsv files --------------------------------------------------------------------------------------------------------


def read_tsv(
    path: Path, name: str, notes: list[str], layout: Layout | None = None, language: str | None = None
) -> Dataset:
    """The rows of a tsv file of the task ``name``, in its layout or another ``layout``; rows of one language, if given.

    Quotes are text, as in csv.QUOTE_NONE. ``notes`` receives a line on rows that are skipped. Raises UserError naming the
    line of a row with too few columns or with a label that the task does not have, Unlabelled if no row has a label.
    """
    task = TASKS[name]
    layout = layout or task.layout
    assert layout
    lines = _lines(path)
    header = [] if layout.width else next(lines, (1, [""]))[1]
    width = layout.width or len(header)
    where = _columns(path, layout, header)
    least = max(where) + 1 if layout.open_ended else width
    most = math.inf if layout.wider else width
    label = where[len(layout.texts)]
    columns: dict[str, list] = {key: [] for key in ("first", "second")[: len(layout.texts)]}
    labels: list[tuple[int, str]] = []  # with the numbers of their lines
    torn: list[tuple[int, int]] = []  # rows of another width: line, columns
    undecided = 0
    for number, row in lines:
        if not least <= len(row) <= most:
            torn.append((number, len(row)))
        elif language is not None and row[where[-1]] != language:
            continue
        elif row[label] == task.undecided:
            undecided += 1
        else:
            labels.append((number, row[label]))
            for key, index in zip(columns, where, strict=False):
                columns[key].append(row[index])

    if torn:
        without_label = layout.width is not None and label == width - 1 and {count for _, count in torn} == {label}
        if without_label and not (labels or undecided):
            raise Unlabelled(path)
        _check_torn(path, name, layout, width, torn, len(labels), notes)
    if (labels or undecided) and not any(text.strip(" -") for _, text in labels):
        raise Unlabelled(path)
    if undecided:
        rows = "1 row" if undecided == 1 else f"{undecided:,} rows"
        of = f" of {language}" if language else ""
        notes.append(f"{path}: {rows}{of} with the label {task.undecided!r} (no majority of annotators) left out")
    return Dataset.from_dict(columns | {"label": [_label(task, text, f"{path}:{number}") for number, text in labels]})


def _check_torn(
    path: Path, name: str, layout: Layout, width: int, torn: list[tuple[int, int]], whole: int, notes: list[str]
) -> None:
    """Note the rows of another width if the official file has a few. Raises UserError otherwise, or if they are many."""
    number, count = torn[0]
    if not layout.torn_rows:
        raise UserError(f"{path}:{number}: {count} columns, {name}'s files have {width} here; wrong file or torn?")
    if len(torn) > 0.01 * whole:
        raise UserError(f"{path}: {len(torn):,} rows have not {width} columns as the header has; wrong file or torn?")
    notes.append(f"{path}: {len(torn):,} rows without {width} columns are skipped")


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, columns). Only a line feed ends a row: texts may hold any other separator of lines."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start:,}; get the original file") from None
    lines = text.removesuffix("\n").split("\n")
    yield from ((number, line.removesuffix("\r").split("\t")) for number, line in enumerate(lines, 1) if line.strip())


def _columns(path: Path, layout: Layout, header: list[str]) -> list[int]:
    """The numbers of the columns of texts, label and language. ``header`` is empty for a file without one."""
    wanted = [*layout.texts, layout.label]
    if layout.language:
        wanted.append(layout.language)
    if layout.width:
        return [int(column) for column in wanted]
    if missing := [str(column) for column in wanted if column not in header]:
        if missing == [layout.label] and "train" not in path.name:
            raise Unlabelled(f"{path}: no column {layout.label!r}")
        raise UserError(f"{path}: no column {missing[0]!r}, only {', '.join(header)}; is this a file of this task?")
    return [header.index(str(column)) for column in wanted]


def _label(task: Task, text: str, where: str) -> int | float:
    if not task.labels:
        return number_label(text, task.bounds, where)
    known = {label: number for number, label in enumerate(task.labels)} | task.spelled
    if text not in known:
        accepted = ", ".join(map(repr, task.spelled if len(task.spelled) > 1 else task.labels))
        raise UserError(f"{where}: the label {text!r} is not one of {accepted}")
    return known[text]


# --- XNLI -------------------------------------------------------------------------------------------------------------


def _read_xnli(name: str, folder: Path, languages: Sequence[str]) -> TaskData:
    """XNLI as XTREME lays it out (train-en.tsv, dev-xx.tsv, test-xx.tsv), or as published (XNLI-1.0, XNLI-MT-1.0)."""
    for place in (folder, *(folder / inner for inner in TASKS[name].folders)):
        if any(place.glob("dev-*.tsv")):
            return _read_xtreme(name, folder, place, languages)
    return _read_published_xnli(name, folder, languages)


def _read_xtreme(name: str, folder: Path, place: Path, languages: Sequence[str]) -> TaskData:
    notes: list[str] = []
    train = read_tsv(place / "train-en.tsv", name, notes)
    sets: dict[str, dict[str, Dataset]] = {}
    for kind in ("dev", "test"):
        files = _by_language(place, rf"{kind}-(.+)\.tsv")
        chosen = chosen_languages(files, languages, place, kind)
        read_one = partial(_read_one, files, partial(read_tsv, name=name, notes=notes))
        sets[kind] = sets_with_labels(kind, chosen, read_one, folder, notes)
    return TaskData(str(folder), train, sets["dev"], sets["test"], tuple(notes))


def _read_one(files: Mapping[str, Path], read_file: Callable[[Path], Dataset], language: str) -> Dataset:
    return read_file(files[language])


def _read_published_xnli(name: str, folder: Path, languages: Sequence[str]) -> TaskData:
    files = _published_xnli(folder)
    notes: list[str] = []
    train = read_tsv(files["train"], name, notes, _XNLI_TRAIN)
    sets: dict[str, dict[str, Dataset]] = {"test": {}}
    for kind in ("dev", "test"):
        if kind in files:
            chosen = chosen_languages(_languages_in(files[kind]), languages, folder, kind)
            read_one = partial(read_tsv, files[kind], name, notes, _XNLI_NAMED)
            sets[kind] = sets_with_labels(kind, chosen, read_one, folder, notes)
    return TaskData(str(folder), train, sets["dev"], sets["test"], tuple(notes))


def _published_xnli(folder: Path) -> dict[str, Path]:
    """The files of XNLI's two archives, unpacked in ``folder`` or all in one; only the test file may be missing."""
    places = [place for place in (folder, *sorted(folder.glob("XNLI*"))) if place.is_dir()]
    found = {}
    for kind, file in _XNLI_FILES.items():
        paths = [path for place in places for path in (place / file, place / "multinli" / file) if path.is_file()]
        if paths:
            found[kind] = paths[0]
    for kind in ("dev", "train"):
        if kind not in found:
            raise UserError(
                f"{folder}: no dev-en.tsv (as in XTREME) and no {_XNLI_FILES[kind]} (as in XNLI-1.0 and XNLI-MT-1.0)"
            )
    return found


def _languages_in(path: Path) -> list[str]:
    """The languages of a file that has all of them."""
    lines = _lines(path)
    column = _columns(path, Layout(("language",), "language"), next(lines, (1, [""]))[1])[0]
    return sorted({row[column] for _, row in lines if len(row) > column})


def _by_language(folder: Path, pattern: str) -> dict[str, Path]:
    """Files by the language in their names."""
    matches = {path: re.fullmatch(pattern, path.name) for path in sorted(folder.iterdir())}
    return {match[1]: path for path, match in matches.items() if match}


# --- questions and answers --------------------------------------------------------------------------------------------


def _read_answers(name: str, folder: Path, languages: Sequence[str]) -> TaskData:
    task = TASKS[name]
    kind, version = ("squad2", "v2.0") if task.unanswerable else ("squad1", "v1.1")
    names = (*task.folders, *TASKS[kind].folders)
    train_folder, train_file = _place(folder, names, (f"train-{version}.json",), name)
    notes: list[str] = []
    read_official = partial(read_squad, unanswerable=task.unanswerable, notes=notes, official=TASKS[kind].official)
    train = read_official(train_folder / train_file)
    if not task.languages:
        dev = read_official(train_folder / f"dev-{version}.json")
        return TaskData(str(folder), train, {"": dev}, notes=tuple(notes))

    sets: dict[str, dict[str, Dataset]] = {}
    for split in ("dev", "test") if name == "mlqa" else ("dev",):
        files = _mlqa_files(folder, split) if name == "mlqa" else _xquad_files(folder)
        for language in files.keys() - set(HUB_LANGUAGES[name]):
            raise UserError(f"{files[language]}: {name} has no {language!r}, only {', '.join(HUB_LANGUAGES[name])}")
        where = next(iter(files.values())).parent if files else folder
        chosen = chosen_languages(files, languages, where, split)
        read_one = partial(_read_one, files, partial(read_squad, unanswerable=False, notes=notes))
        sets[split] = sets_with_labels(split, chosen, read_one, folder, notes)
    return TaskData(str(folder), train, sets["dev"], sets.get("test", {}), tuple(notes))


def _xquad_files(folder: Path) -> dict[str, Path]:
    place, _ = _place(folder, TASKS["xquad"].folders, ("xquad.*.json",), "xquad")
    return _by_language(place, r"xquad\.(.+)\.json")


def _mlqa_files(folder: Path, split: str) -> dict[str, Path]:
    """The files of context and question in one language. MLQA's archive has the folders dev and test; one will do.

    XTREME unpacks the archive in its folder mlqa.
    """
    for place in (folder / name for name in ("", "MLQA_V1", "MLQA", "mlqa", "mlqa/MLQA_V1")):
        for inner in (place, place / split):
            if any(inner.glob(f"{split}-context-*.json")):
                return _by_language(inner, rf"{split}-context-(.+)-question-\1\.json")
    return {}


def read_squad(path: Path, unanswerable: bool, notes: list[str], official: Sequence[int] = ()) -> Dataset:
    """The questions of a file in SQuAD's JSON.

    Raises UserError if it is of the other version, and as question_rows does, which writes into ``notes``.
    """
    try:
        content = json.loads(path.read_bytes())
        questions = [
            Question(str(qa["id"]), qa["question"], paragraph["context"], qa.get("answers"), qa.get("is_impossible"))
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
        version = str(content.get("version", ""))
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a file in SQuAD's layout ({type(error).__name__}: {error})") from None

    is_second = version.removeprefix("v").startswith("2") or any(each.impossible is not None for each in questions)
    if is_second != unanswerable:
        other, wanted = ("2.0", "1.1") if is_second else ("1.1", "2.0")
        raise UserError(
            f"{path}: SQuAD {other} (version {version!r}), this task reads {wanted}; files of another task?"
        )
    return question_rows(questions, str(path), unanswerable, notes, official)
