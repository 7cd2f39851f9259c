"""The rows of a task, wherever they are read from: what trains, what is scored, and questions that were checked.

Rows of texts are {"first", "second" or not, "label"}: label is an index into the task's labels, or a number. Rows of
questions are {"id", "question", "context", "answers": {"text", "answer_start"}}, as on the hub; no answer: both empty.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from datasets import Dataset

from data_prep.cli import UserError


@dataclass(frozen=True)
class TaskData:
    """The sets that a task trains on and is scored by. Their keys are the suffix of their scores, or a language.

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
        """A cell's record of its data: the source, the number of rows, and a hash of all of them."""
        digest = hashlib.sha256()
        for name, rows in [("train", self.train), *self.dev.items(), *self.test.items()]:
            digest.update(f"{name} {len(rows)}\n".encode())
            for batch in rows.iter(1000):
                digest.update(json.dumps(batch, sort_keys=True).encode())
        sizes = {"train": len(self.train), "dev": sum(map(len, self.dev.values()))}
        if self.test:
            sizes["test"] = sum(map(len, self.test.values()))
        return {"source": self.source, **sizes, "fingerprint": digest.hexdigest()[:16]}


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


def question_rows(questions: Iterable[Question], where: str, unanswerable: bool) -> Dataset:
    """The checked rows of these questions. Raises UserError naming the first that has no answer, or a wrong one."""
    columns: dict[str, list] = {"id": [], "question": [], "context": [], "answers": []}
    seen: set[str] = set()
    for each in questions:
        place = f"{where}: question {each.id}"
        if each.answers is None:
            raise UserError(f"{place} has no answers: a test set without labels cannot be scored")
        answers = [] if each.impossible else each.answers
        if not answers and not unanswerable:
            raise UserError(f"{place} has no answer; a test set without labels, or SQuAD 2.0?")
        if not (isinstance(each.question, str) and isinstance(each.context, str)):
            raise UserError(f"{place}: its question or context is not text; get the original file")
        starts, texts = _spans(answers, each.context, place)
        if each.id in seen:
            raise UserError(f"{where}: two questions have the id {each.id}")
        seen.add(each.id)

        columns["id"].append(each.id)
        columns["question"].append(each.question)
        columns["context"].append(each.context)
        columns["answers"].append({"text": texts, "answer_start": starts})
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
