"""Parallel texts for the task bitext: a file of each language, whose lines with the same number say the same.

Files are named by their language: de.txt, newstest2019-ref.deu.txt (NTREX), deu_Latn.devtest (FLORES), corpus.de (Moses); or
by a pair of languages, each pair with its own lines: tatoeba.deu-eng.deu and tatoeba.deu-eng.eng (Tatoeba, Moses). They may be
packed (.gz, .xz, .bz2). An empty line has no translation. All languages are paired with a pivot: English where it is there.
"""

import bz2
import gzip
import lzma
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from data_prep.cli import UserError, some
from pipeline.evaluate.rows import TaskData

PIVOTS = ("en", "eng", "eng_Latn", "english")
_PLACES = ("", "devtest", "flores200_dataset/devtest", "flores101_dataset/devtest", "NTREX-128", "tatoeba", "Tatoeba")
_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_LANGUAGE = r"(?P<language>[a-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*)"
_PAIR = re.compile(rf".+\.(?P<pair>[A-Za-z_]{{2,12}}-[A-Za-z_]{{2,12}})\.{_LANGUAGE}")
_NAMES = (
    re.compile(rf"{_LANGUAGE}\.(?:txt|dev|devtest|test)"),
    re.compile(rf".+\.{_LANGUAGE}\.txt"),
    re.compile(rf".+\.{_LANGUAGE}"),
)
_NO_LANGUAGES = (
    "txt",
    "tsv",
    "csv",
    "md",
    "json",
    "py",
    "sh",
    "zip",
    "tar",
    "log",
    "pdf",
    "xml",
)  # endings of other files


def read(folder: Path, languages: Sequence[str]) -> TaskData:
    """Pairs of each language with the pivot: rows {"first": the language's text, "second": the pivot's}.

    ``languages``: those that are scored; where there is no English, the first of them is the pivot. Raises UserError for files
    that are not parallel, and for languages without a pair.
    """
    for place in (folder / name for name in _PLACES):
        files, pairs = _files(place) if place.is_dir() else ({}, {})
        if pairs or len(files) > 1:
            break
    else:
        raise UserError(f"{folder}: no parallel files there: de.txt and en.txt, or NAME.de-en.de and NAME.de-en.en")
    there = sorted({*files} if not pairs else {language for found in pairs.values() for language in found})
    if missing := [language for language in languages if language not in there]:
        raise UserError(f"--languages {missing[0]}: {place} has {some(there, 20)}")
    sets = _of_pairs(pairs, languages) if pairs else _of_languages(files, languages)
    if not sets:
        raise UserError(f"--languages {','.join(languages)}: no pair of two languages; {place} has {some(there, 20)}")
    return TaskData(str(folder), None, sets)


def _files(place: Path) -> tuple[dict[str, Path], dict[str, dict[str, Path]]]:
    """Files by language, and by pair and language."""
    files: dict[str, Path] = {}
    pairs: dict[str, dict[str, Path]] = {}
    for path in sorted(path for path in place.iterdir() if path.is_file()):
        name = path.name.removesuffix(path.suffix) if path.suffix in _OPENERS else path.name
        match = _PAIR.fullmatch(name)
        if match and match["language"] in match["pair"].split("-"):
            pairs.setdefault(match["pair"], {})[match["language"]] = path
            continue
        matches = [match for pattern in _NAMES if (match := pattern.fullmatch(name))]
        if not matches or matches[0]["language"] in _NO_LANGUAGES:
            continue
        language = matches[0]["language"]
        if other := files.get(language):
            raise UserError(f"{path}: {other.name} is of the same language {language}; leave one of them there")
        files[language] = path
    for pair, found in pairs.items():
        if missing := {*pair.split("-")} - found.keys():
            raise UserError(f"{next(iter(found.values()))}: no file of the same name in {missing.pop()} beside it")
    return files, pairs


def _of_languages(files: dict[str, Path], languages: Sequence[str]) -> dict[str, Dataset]:
    """Each language with the pivot, from a file of each."""
    english = [language for language in PIVOTS if language in files]
    pivot, *_ = [*english, *languages, ""]
    if not pivot:
        raise UserError(
            f"no English file among {some(sorted(files), 20)}; name the languages with --languages, the first is the one that "
            "the others are paired with"
        )
    theirs = read_lines(files[pivot])
    chosen = [each for each in languages or files if each != pivot]
    return {each: _paired(files[each], read_lines(files[each]), files[pivot], theirs) for each in chosen}


def _of_pairs(pairs: dict[str, dict[str, Path]], languages: Sequence[str]) -> dict[str, Dataset]:
    """Each pair that has files of its own. English is the pivot, else the second language of the pair's name."""
    sets = {}
    for pair, files in pairs.items():
        first, second = pair.split("-")
        pivot = next((language for language in PIVOTS if language in files), second)
        other = first if pivot == second else second
        key = other if pivot in PIVOTS else pair
        if not languages or other in languages:
            sets[key] = _paired(files[other], read_lines(files[other]), files[pivot], read_lines(files[pivot]))
    return sets


def _paired(path: Path, own: list[str], pivot: Path, theirs: list[str]) -> Dataset:
    if len(own) != len(theirs):
        raise UserError(
            f"{path}: {len(own):,} lines, {pivot.name} has {len(theirs):,}: they are not parallel by line; get both again, or "
            "leave the language out with --languages"
        )
    rows = [(a, b) for a, b in zip(own, theirs, strict=True) if a.strip() and b.strip()]
    if len(rows) < 2:
        raise UserError(
            f"{path}: {len(rows)} lines have a text there and in {pivot.name}, two are needed; leave the language out with "
            "--languages"
        )
    return Dataset.from_dict({"first": [a for a, _ in rows], "second": [b for _, b in rows]})


def read_lines(path: Path) -> list[str]:
    """The lines of a file, which may be packed, without blanks at their ends. Raises UserError if it cannot be read."""
    try:
        with _OPENERS.get(path.suffix, Path.open)(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start:,}; convert it, or get the original file") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).lower()}); get it again") from None
    return [line.strip() for line in text.removesuffix("\n").split("\n")]
