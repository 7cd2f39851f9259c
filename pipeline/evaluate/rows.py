"""The rows of a task, wherever they are read from: what trains, what is scored, and questions that were checked.

Rows of texts are {"first", "second" or not, "label"}: label is an index into the task's labels, or a number. Rows of
questions are {"id", "question", "context", "answers": {"text", "answer_start"}}, as on the hub; no answer: both empty.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from data_prep.cli import UserError

WRONG = 0.01  # share of a set's questions that may have a wrong answer: they are left out


class Unlabelled(UserError):
    """A whole set without labels, as some benchmarks publish their test sets."""

    def __init__(self, where: object, how: str = ""):
        super().__init__(
            f"{where}: a set without labels{how}, which cannot be trained on or scored; use train and dev files"
        )


@dataclass(frozen=True)
class TaskData:
    """The sets that a task trains on and is scored by. Their keys are the suffix of their scores, or a language.

    ``dev`` chooses among settings (XNLI: also among epochs); ``test``, where a benchmark has one with labels, is scored. A
    task that trains nothing has no ``train``, and ``dev`` is scored.
    """

    source: str
    train: Dataset | None
    dev: dict[str, Dataset]
    test: dict[str, Dataset] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pinned: str = ""  # what names data that are not read here

    @property
    def scored(self) -> dict[str, Dataset]:
        return self.test or self.dev

    @property
    def split(self) -> str:
        if self.train is None:
            return "all"
        return "test" if self.test else "dev"

    def facts(self) -> dict:
        """A cell's record of its data: the source, the number of rows, and a hash of all of them."""
        digest = hashlib.sha256(self.pinned.encode())
        train = {} if self.train is None else {"train": self.train}
        for name, rows in [*train.items(), *self.dev.items(), *self.test.items()]:
            digest.update(f"{name} {len(rows)}\n".encode())
            for batch in rows.iter(1000):
                digest.update(json.dumps(batch, sort_keys=True).encode())
        sizes = {name: len(rows) for name, rows in train.items()}
        if self.dev:
            sizes["dev"] = sum(map(len, self.dev.values()))
        if self.test:
            sizes["test"] = sum(map(len, self.test.values()))
        return {"source": self.source, **sizes, "fingerprint": digest.hexdigest()[:16]}


def is_path(data: str) -> bool:
    """Whether ``--data`` is meant as a folder, not as a data set's id on the hub."""
    return Path(data).exists() or data.startswith((".", "/", "~")) or data.endswith("/") or data.count("/") != 1


def chosen_languages(found: Iterable[str], languages: Sequence[str], where: object, kind: str) -> list[str]:
    """The languages of ``found`` that are asked for; all, if none are.

    Raises UserError if there is no dev set of one of them; a test set may be missing.
    """
    found = list(found)
    if kind == "dev" and not found:
        raise UserError(f"{where}: no files to score there")
    if kind == "dev" and (missing := [language for language in languages if language not in found]):
        raise UserError(f"--languages {missing[0]}: {where} has {', '.join(found)}")
    return [language for language in found if not languages or language in languages]


class Question(NamedTuple):
    """A question as a file or the hub gives it, unchecked."""

    id: str
    question: Any
    context: Any
    answers: Any  # a list of {"text", "answer_start"}
    impossible: bool | None  # None where that is not said


def sets_with_labels(
    kind: str, keys: Iterable[str], read: Callable[[str], Dataset], source: object, notes: list[str]
) -> dict[str, Dataset]:
    """The sets of a kind by language. Test sets without labels are left out and noted: then the dev sets are scored.

    Raises UserError for a dev set without labels, and for test sets of which only some have them.
    """
    found: dict[str, Dataset] = {}
    without: list[str] = []
    for key in keys:
        try:
            found[key] = read(key)
        except Unlabelled:
            if kind != "test":
                raise
            without.append(key)
    if not without:
        return found
    what = f"the test set of {without[0]} has" if len(without) == 1 else f"the test sets of {', '.join(without)} have"
    if found:
        raise UserError(
            f"{source}: {what} no labels, of {', '.join(found)} they are there; score either with --languages"
        )
    notes.append(f"{source}: {what} no labels; the dev sets are scored")
    return found


def number_label(value: object, bounds: tuple[float, float], where: str) -> float:
    """The label as a number. Raises UserError, beginning with ``where``, if it is none or out of bounds."""
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    low, high = bounds
    if not low <= number <= high:
        raise UserError(f"{where}: the label {str(value)!r} is not a number from {low:g} to {high:g}")
    return number


class _WrongAnswer(UserError):
    """An answer that is blank or not where it is said to be."""


def question_rows(
    questions: Iterable[Question], where: str, unanswerable: bool, notes: list[str], official: Sequence[int] = ()
) -> Dataset:
    """The checked rows of these questions. A few with wrong answers are left out, and ``notes`` receives a line on them.

    Raises Unlabelled if none has an answer of those that can have one, and UserError naming the first without one, or with
    a wrong one where they are many or the set has as many questions as an ``official`` one.
    """
    questions = list(questions)
    answerable = [each for each in questions if not each.impossible]
    if answerable and all(map(_is_unanswered, answerable)):
        raise Unlabelled(where, " (no question has an answer)")
    columns: dict[str, list] = {"id": [], "question": [], "context": [], "answers": []}
    seen: set[str] = set()
    wrong: dict[str, str] = {}
    for each in questions:
        place = f"{where}: question {each.id}"
        if each.answers is None:
            raise UserError(f"{place} has no answers: a test set without labels cannot be scored")
        answers = [] if each.impossible else each.answers
        if not answers and not unanswerable:
            raise UserError(f"{place} has no answer; a test set without labels, or SQuAD 2.0?")
        if not (isinstance(each.question, str) and isinstance(each.context, str)):
            raise UserError(f"{place}: its question or context is not text; get the original file")
        if each.id in seen:
            raise UserError(f"{where}: two questions have the id {each.id}")
        seen.add(each.id)
        try:
            starts, texts = _spans(answers, each.context, place)
        except _WrongAnswer as error:
            wrong[each.id] = str(error)
            continue

        columns["id"].append(each.id)
        columns["question"].append(each.question)
        columns["context"].append(each.context)
        columns["answers"].append({"text": texts, "answer_start": starts})
    _check_wrong(wrong, len(questions), where, notes, official)
    return Dataset.from_dict(columns)


def _is_unanswered(question: Question) -> bool:
    """Whether a question has no answer; blank answers are none."""
    answers = question.answers
    return not answers or (isinstance(answers, list) and all(map(_is_blank, answers)))


def _is_blank(answer: Any) -> bool:
    text = answer.get("text") if isinstance(answer, dict) else None
    return isinstance(text, str) and not text.strip()


def _check_wrong(wrong: dict[str, str], count: int, where: str, notes: list[str], official: Sequence[int]) -> None:
    """Note the questions with wrong answers, by id. Raises UserError if they are too many, or an official set has any."""
    if not wrong:
        return
    first = next(iter(wrong))
    of_all = f"{len(wrong):,} of {count:,} questions"
    if count in official:
        raise UserError(f"{wrong[first]}; get the official file again")
    if len(wrong) > WRONG * count:
        raise UserError(f"{wrong[first]}; {of_all} are like it, more than a hundredth")
    notes.append(f"{where}: {of_all} are left out: their answers are blank or not in the context (the first: {first})")


def _spans(answers: Sequence[dict], context: str, where: str) -> tuple[list[int], list[str]]:
    """The answers' starts and texts. Raises UserError if one is not in SQuAD's layout, _WrongAnswer if not in the context."""
    try:
        starts, texts = ([answer[key] for answer in answers] for key in ("answer_start", "text"))
        wrong = [
            (start, text)
            for start, text in zip(starts, texts, strict=True)
            if start < 0 or context[start : start + len(text)] != text or not text.strip()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: its answers are not in SQuAD's layout ({type(error).__name__}: {error})") from None
    if wrong:
        start, text = wrong[0]
        how = f"is not in the context at {start}" if text.strip() else f"at {start} is blank"
        raise _WrongAnswer(f"{where}: its answer {text!r} {how}")
    return starts, texts
