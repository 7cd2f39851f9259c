"""A task's rows, from local files in their original layouts or from the hub, checked before anything is trained.

Rows of texts are {"first", "second" or not, "label"}: label is an index into the task's labels, or a number. Rows of
questions are {"id", "question", "context", "answers": {"text", "answer_start"}}, as on the hub; no answer: both empty.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets import ClassLabel, Dataset, load_dataset

from data_prep.errors import UserError, some
from pipeline.tasks import HUB_LANGUAGES, TASKS, Layout, Task

OVERLAP = 0.1  # share of a scored set's rows that may be in the training set too

_XNLI_NAMED = Layout(("sentence1", "sentence2"), "gold_label", language="language")
_XNLI_TRAIN = Layout(("premise", "hypo"), "label")


@dataclass(frozen=True)
class TaskData:
    """What a task trains on and is scored by. Sets have the suffix of their scores, or a language, as key.

    ``dev`` chooses among settings (XNLI: also among epochs); ``test``, where a benchmark has one with labels, is scored.
    """

    source: str
    train: Dataset
    dev: dict[str, Dataset]
    test: dict[str, Dataset] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def scored(self) -> dict[str, Dataset]:
        return self.test or self.dev

    @property
    def split(self) -> str:
        return "test" if self.test else "dev"

    def facts(self) -> dict:
        """What a cell says of its data: where from, how many rows, and a hash of all of them."""
        digest = hashlib.sha256()
        for name, rows in [("train", self.train), *self.dev.items(), *self.test.items()]:
            digest.update(f"{name} {len(rows)}\n".encode())
            for batch in rows.iter(1000):
                digest.update(json.dumps(batch, sort_keys=True).encode())
        sizes = {"train": len(self.train), "dev": sum(map(len, self.dev.values()))}
        sizes |= {"test": sum(map(len, self.test.values()))} if self.test else {}
        return {"source": self.source, **sizes, "fingerprint": digest.hexdigest()[:16]}


def read_task(name: str, data: str | None, languages: Sequence[str] = ()) -> TaskData:
    """The rows of the task ``name`` from a folder or hub id (default: the task's own), in all languages or in these.

    Raises UserError for files that are not there, torn, of another layout, task or split, and for rows without labels.
    """
    task = TASKS[name]
    if languages and not task.languages:
        raise UserError(f"--languages: {name} has one language; leave it out")
    if data is not None and _is_path(data):
        if not Path(data).is_dir():
            raise UserError(f"--data {data}: no such folder (from {Path.cwd()}); name a folder or a hub id")
        found = (_read_answers if task.answers else _read_xnli if task.languages else _read_glue)(
            name, Path(data), languages
        )
    else:
        found = (_hub_answers if task.answers else _hub_labelled)(name, data or task.hub, languages)
    return _checked(name, found)


def _is_path(data: str) -> bool:
    return Path(data).exists() or data.startswith((".", "/", "~")) or data.endswith("/") or data.count("/") != 1


# --- checks -----------------------------------------------------------------------------------------------------------


def _checked(name: str, data: TaskData) -> TaskData:
    task = TASKS[name]
    sets = [(f"{kind} {key}".strip(), rows) for kind in ("dev", "test") for key, rows in getattr(data, kind).items()]
    if data.test and (missing := [key for key in data.dev if key not in data.test]):
        raise UserError(
            f"{data.source}: {name} has a test set of {', '.join(data.test)} and none of {', '.join(missing)}; get the others, "
            f"or give --languages {','.join(data.test)}"
        )
    for what, rows in [("train", data.train), *sets]:
        if len(rows) == 0:
            raise UserError(f"{data.source}: the {what} set of {name} is empty")
    if len(data.train) in task.official[1:]:
        raise UserError(
            f"{data.source}: the training set has {len(data.train):,} rows, the number of {name}'s official dev or test set; "
            "files of another split?"
        )
    if task.official and any(len(rows) == task.official[0] for _, rows in sets):
        raise UserError(
            f"{data.source}: a set to be scored has {task.official[0]:,} rows, the number of {name}'s official training set; "
            "files of another split?"
        )
    notes = []
    train = set(_keys(data.train))
    for what, rows in sets:
        both = sum(key in train for key in _keys(rows))
        if both > OVERLAP * len(rows):
            raise UserError(
                f"{data.source}: {both:,} of the {len(rows):,} rows of the {what} set are in the training set too: "
                "the same file, or files of another split?"
            )
        if both:
            notes.append(f"{name}: {both:,} of the {len(rows):,} rows of the {what} set are in the training set too")
    return replace(data, notes=(*data.notes, *notes))


def _keys(rows: Dataset) -> Iterator[tuple[str, ...]]:
    columns = [name for name in ("first", "second", "question", "context") if name in rows.column_names]
    for batch in rows.select_columns(columns).iter(1000):
        yield from zip(*(batch[name] for name in columns), strict=True)


# --- tsv files --------------------------------------------------------------------------------------------------------


def _read_glue(name: str, folder: Path, languages: Sequence[str]) -> TaskData:
    task = TASKS[name]
    place = _place(folder, task.folders, "train.tsv", name)
    notes: list[str] = []
    train = read_tsv(place / "train.tsv", name, task.layout, notes)
    dev = {key: read_tsv(place / file, name, task.layout, notes) for key, file in task.dev_files.items()}
    return TaskData(str(folder), train, dev, notes=tuple(notes))


def _place(folder: Path, names: Iterable[str], pattern: str, task: str) -> Path:
    """Where below ``folder`` the files of a task are: there itself, or in a folder of a usual name."""
    places = [folder, *(folder / name for name in names)]
    for place in places:
        if any(place.glob(pattern)):
            return place
    raise UserError(f"{folder}: no {pattern} for {task} there or in {', '.join(str(p.name) for p in places[1:])}")


def read_tsv(path: Path, name: str, layout: Layout, notes: list[str], language: str | None = None) -> Dataset:
    """The rows of a tsv file, quotes being text (as in csv.QUOTE_NONE), of one language where the layout tells them apart.

    Raises UserError naming the line of a row with too few columns or with a label that the task does not have.
    """
    task = TASKS[name]
    lines = _lines(path)
    header = None if layout.width else next(lines, (1, [""]))[1]
    width = layout.width or len(header)
    where = _columns(path, layout, header)
    columns: dict[str, list] = {key: [] for key in ("first", "second")[: len(layout.texts)]} | {"label": []}
    torn = 0
    for number, row in lines:
        if len(row) != width:
            if layout.torn_rows:
                torn += 1
                continue
            raise UserError(
                f"{path}:{number}: {len(row)} columns, {name}'s files have {width} here; wrong file or torn?"
            )
        if language is not None and row[where[-1]] != language:
            continue
        for key, index in zip(columns, where, strict=False):
            columns[key].append(_label(task, row[index], f"{path}:{number}") if key == "label" else row[index])
    if torn > 0.01 * len(columns["label"]):
        raise UserError(f"{path}: {torn:,} rows have not {width} columns as the header has; wrong file or torn?")
    if torn:
        notes.append(f"{path}: {torn:,} rows without {width} columns are left out")
    return Dataset.from_dict(columns)


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


def _columns(path: Path, layout: Layout, header: list[str] | None) -> list[int]:
    """The numbers of the columns of texts, label and language."""
    wanted = [*layout.texts, layout.label, *([layout.language] if layout.language else [])]
    if header is None:
        return [int(column) for column in wanted]
    if missing := [str(column) for column in wanted if column not in header]:
        if missing == [layout.label] and "train" not in path.name:
            raise UserError(
                f"{path}: no column {layout.label!r}: a set without labels, which cannot be scored; use train and dev files"
            )
        raise UserError(f"{path}: no column {missing[0]!r}, only {', '.join(header)}; is this a file of this task?")
    return [header.index(str(column)) for column in wanted]


def _label(task: Task, text: str, where: str) -> int | float:
    if not task.labels:
        try:
            return float(text)
        except ValueError:
            raise UserError(f"{where}: the label {text!r} is not a number") from None
    known = {label: number for number, label in enumerate(task.labels)} | task.spelled
    if text not in known:
        accepted = ", ".join(map(repr, task.spelled if len(task.spelled) > 1 else task.labels))
        raise UserError(f"{where}: the label {text!r} is not one of {accepted}")
    return known[text]


def _read_xnli(name: str, folder: Path, languages: Sequence[str]) -> TaskData:
    """XNLI as XTREME lays it out (train-en.tsv, dev-xx.tsv, test-xx.tsv), or as published (XNLI-1.0, XNLI-MT-1.0)."""
    places = (folder, *(folder / inner for inner in TASKS[name].folders))
    place = next((place for place in places if any(place.glob("dev-*.tsv"))), None)
    notes: list[str] = []
    if place is not None:
        train = read_tsv(place / "train-en.tsv", name, TASKS[name].layout, notes)
        dev, test = (
            {
                key: read_tsv(path, name, TASKS[name].layout, notes)
                for key, path in _chosen(found, languages, place, kind).items()
            }
            for kind, found in ((kind, _by_language(place, f"{kind}-(.+)\\.tsv")) for kind in ("dev", "test"))
        )
    else:
        files = _published_xnli(folder)
        train = read_tsv(files["multinli.train.en.tsv"], name, _XNLI_TRAIN, notes)
        dev, test = (
            {
                key: read_tsv(path, name, _XNLI_NAMED, notes, language=key)
                for key, path in _chosen(_languages_in(path), languages, folder, kind).items()
            }
            for kind, path in ((kind, files[f"xnli.{kind}.tsv"]) for kind in ("dev", "test"))
        )
    return TaskData(str(folder), train, dev, test, tuple(notes))


def _published_xnli(folder: Path) -> dict[str, Path | None]:
    """The files of XNLI's two archives by name, unpacked in ``folder`` or all in one; only the test file may be missing."""
    places = [p for p in (folder, *sorted(folder.glob("XNLI*"))) if p.is_dir()]
    files = {
        file: next((path for p in places for path in (p / file, p / "multinli" / file) if path.is_file()), None)
        for file in ("multinli.train.en.tsv", "xnli.dev.tsv", "xnli.test.tsv")
    }
    for file in ("xnli.dev.tsv", "multinli.train.en.tsv"):
        if files[file] is None:
            raise UserError(f"{folder}: no dev-en.tsv (as in XTREME) and no {file} (as in XNLI-1.0 and XNLI-MT-1.0)")
    return files


def _languages_in(path: Path | None) -> dict[str, Path]:
    """The languages of a file that has all: each with that file."""
    if path is None:
        return {}
    lines = _lines(path)
    where = _columns(path, _XNLI_NAMED, next(lines, (1, [""]))[1])
    return dict.fromkeys(sorted({row[where[-1]] for _, row in lines if len(row) > where[-1]}), path)


def _by_language(folder: Path, pattern: str) -> dict[str, Path]:
    """Files by the language in their names."""
    matches = {path: re.fullmatch(pattern, path.name) for path in sorted(folder.iterdir())}
    return {match[1]: path for path, match in matches.items() if match}


def _chosen(found: dict[str, Path], languages: Sequence[str], where: object, kind: str) -> dict[str, Path]:
    """What is there of the languages asked for; all, if none are. A dev set must be there for each, a test set need not."""
    if kind == "dev" and not found:
        raise UserError(f"{where}: no files to score there")
    if kind == "dev" and (missing := [language for language in languages if language not in found]):
        raise UserError(f"--languages {missing[0]}: {where} has {', '.join(found)}")
    return {key: path for key, path in found.items() if not languages or key in languages}


# --- questions and answers --------------------------------------------------------------------------------------------


def _read_answers(name: str, folder: Path, languages: Sequence[str]) -> TaskData:
    task = TASKS[name]
    kind = "squad2" if task.unanswerable else "squad1"
    version = "v2.0" if task.unanswerable else "v1.1"
    train_folder = _place(folder, (*task.folders, *TASKS[kind].folders), f"train-{version}.json", name)
    train = read_squad(train_folder / f"train-{version}.json", task.unanswerable)
    if not task.languages:
        return TaskData(str(folder), train, {"": read_squad(train_folder / f"dev-{version}.json", task.unanswerable)})
    sets: dict[str, dict[str, Dataset]] = {}
    for split in ("dev", "test") if name == "mlqa" else ("dev",):
        place, pattern = folder, r"xquad\.(.+)\.json"
        if name == "mlqa":
            place, pattern = _mlqa_place(folder, split), rf"{split}-context-(.+)-question-\1\.json"
        else:
            place = _place(folder, task.folders, "xquad.*.json", name)
        files = _by_language(place, pattern) if place else {}
        for language in files.keys() - set(HUB_LANGUAGES[name]):
            raise UserError(f"{files[language]}: {name} has no {language!r}, only {', '.join(HUB_LANGUAGES[name])}")
        sets[split] = {
            key: read_squad(path, False) for key, path in _chosen(files, languages, place or folder, split).items()
        }
    return TaskData(str(folder), train, sets["dev"], sets.get("test", {}))


def _mlqa_place(folder: Path, split: str) -> Path | None:
    """MLQA's archive has the folders MLQA_V1/dev and MLQA_V1/test; all files in one folder will do."""
    places = [folder / name for name in ("", "MLQA_V1", "MLQA", "mlqa")]
    inner = [p / part for p in places for part in ("", split)]
    return next((p for p in inner if any(p.glob(f"{split}-context-*.json"))), None)


def read_squad(path: Path, unanswerable: bool) -> Dataset:
    """The questions of a file in SQuAD's JSON. Raises UserError if it is of the other version, or names the question
    whose answer is not in its context."""
    try:
        content = json.loads(path.read_bytes())
        articles = content["data"]
        version = str(content.get("version", ""))
        rows = [
            (question, paragraph["context"])
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
        found = [
            (str(q["id"]), q["question"], context, q.get("answers"), q.get("is_impossible")) for q, context in rows
        ]
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a file in SQuAD's layout ({type(error).__name__}: {error})") from None
    is_second = version.removeprefix("v").startswith("2") or any(impossible is not None for *_, impossible in found)
    if is_second != unanswerable:
        other, wanted = ("2.0", "1.1") if is_second else ("1.1", "2.0")
        raise UserError(
            f"{path}: SQuAD {other} (version {version!r}), this task reads {wanted}; files of another task?"
        )
    return _questions(found, str(path), unanswerable)


def _questions(rows: Iterable[tuple], where: str, unanswerable: bool) -> Dataset:
    columns: dict[str, list] = {"id": [], "question": [], "context": [], "answers": []}
    seen: set[str] = set()
    for id_, question, context, answers, impossible in rows:
        if answers is None:
            raise UserError(f"{where}: question {id_} has no answers: a test set without labels cannot be scored")
        answers = [] if impossible else answers
        if not answers and not unanswerable:
            raise UserError(f"{where}: question {id_} has no answer; a test set without labels, or SQuAD 2.0?")
        if not (isinstance(question, str) and isinstance(context, str)):
            raise UserError(f"{where}: question {id_}: its question or context is not text; get the original file")
        starts, texts = _spans(answers, context, f"{where}: question {id_}")
        if id_ in seen:
            raise UserError(f"{where}: two questions have the id {id_}")
        seen.add(id_)
        values = (id_, question, context, {"text": texts, "answer_start": starts})
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return Dataset.from_dict(columns)


def _spans(answers: Sequence[dict], context: str, where: str) -> tuple[list[int], list[str]]:
    """The answers' starts and texts. Raises UserError if one is not in the context, or not in SQuAD's layout."""
    try:
        starts, texts = ([answer[key] for answer in answers] for key in ("answer_start", "text"))
        for start, text in zip(starts, texts, strict=True):
            if context[start : start + len(text)] != text:
                raise UserError(f"{where}: its answer {text!r} is not in the context at {start}")
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: its answers are not in SQuAD's layout ({type(error).__name__}: {error})") from None
    return starts, texts


# --- the hub ----------------------------------------------------------------------------------------------------------


def _from_hub(hub: str, config: str | None, split: str) -> Dataset:
    try:
        return load_dataset(hub, config, split=split)
    except Exception as error:  # a client, a server and half a dozen libraries may refuse
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = " ".join(filter(None, (config, split)))
        raise UserError(
            f"--data {hub}: no such folder (from {Path.cwd()}), and {what} is not to be had from the hub ({cause})"
        ) from None


def _hub_labelled(name: str, hub: str, languages: Sequence[str]) -> TaskData:
    def load(config: str, split: str) -> Dataset:
        return _labelled(_from_hub(hub, config, split), name, f"{hub} {config} {split}")

    task = TASKS[name]
    if not task.languages:
        return TaskData(hub, load(name, "train"), {key: load(name, split) for key, split in task.hub_splits.items()})
    chosen = _hub_languages(name, languages)
    dev, test = ({key: load(key, split) for key in chosen} for split in ("validation", "test"))
    return TaskData(hub, load("en", "train"), dev, test)


def _hub_languages(name: str, languages: Sequence[str]) -> list[str]:
    known = dict.fromkeys(HUB_LANGUAGES[name], Path())
    return list(_chosen(known, languages, name, "dev"))


def _labelled(rows: Dataset, name: str, where: str) -> Dataset:
    """The hub's columns under our names, its label ids in the task's order."""
    task = TASKS[name]
    wanted = [*task.hub_texts, "label"]
    if missing := [column for column in wanted if column not in rows.column_names]:
        raise UserError(f"{where}: no column {missing[0]!r}, only {', '.join(rows.column_names)}")
    labels = list(rows["label"])
    if -1 in labels:
        raise UserError(f"{where}: rows without a label (-1): a test set cannot be scored")
    if task.labels:
        labels = _in_our_order(labels, rows, task, where)
    columns = {new: list(rows[old]) for new, old in zip(("first", "second"), task.hub_texts, strict=False)}
    return Dataset.from_dict(columns | {"label": labels})


def _in_our_order(labels: list[int], rows: Dataset, task: Task, where: str) -> list[int]:
    feature = rows.features["label"]
    names = feature.names if isinstance(feature, ClassLabel) else list(task.labels)
    if sorted(names) != sorted(task.labels):
        raise UserError(f"{where}: its labels are {', '.join(names)}, the task's {', '.join(task.labels)}")
    if outside := sorted(set(labels) - set(range(len(names)))):
        raise UserError(f"{where}: the label {outside[0]} is not one of {some(range(len(names)))}")
    return [task.labels.index(names[label]) for label in labels]


def _hub_answers(name: str, hub: str, languages: Sequence[str]) -> TaskData:
    task = TASKS[name]

    def load(repository: str, config: str | None, split: str) -> Dataset:
        rows = _from_hub(repository, config, split)
        return _questions(map(_hub_row, rows), " ".join(filter(None, (repository, config, split))), task.unanswerable)

    if not task.languages:
        return TaskData(hub, load(hub, None, "train"), {"": load(hub, None, "validation")})
    chosen = _hub_languages(name, languages)
    configs = {key: f"mlqa.{key}.{key}" if name == "mlqa" else f"xquad.{key}" for key in chosen}
    dev = {key: load(hub, config, "validation") for key, config in configs.items()}
    test = {key: load(hub, config, "test") for key, config in configs.items()} if name == "mlqa" else {}
    return TaskData(hub, load(TASKS["squad1"].hub, None, "train"), dev, test)


def _hub_row(row: dict) -> tuple:
    """A row of the hub's as _questions wants it."""
    answers = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    own = [{"text": text, "answer_start": start} for text, start in answers]
    return row["id"], row["question"], row["context"], own, None
