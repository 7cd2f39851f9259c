"""Extractive question answering: windows over long contexts, the best span of each question, and the official scores.

Scoring follows the published scorers of SQuAD 1.1, SQuAD 2.0 and MLQA to the last digit; XQuAD is scored as SQuAD 1.1, as its
authors and XTREME do. No answer (SQuAD 2.0) is predicted where the score of [CLS] is above the best span's: the papers' plain
F1, threshold 0. ``best_f1`` and ``best_exact_match`` are at the threshold that is best on the scored set.
"""

import functools
import operator
import re
import string
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from data_prep.cli import UserError

LONGEST_QUESTION = 64  # tokens; what BERT's own program for SQuAD reads
LONGEST_ANSWER = 30  # tokens, likewise
_SHORTEST_WINDOW = 32  # tokens of context

# --- features ---------------------------------------------------------------------------------------------------------


def check_length(tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    """Raise UserError if a long question would leave no room for its context."""
    least = LONGEST_QUESTION + tokenizer.num_special_tokens_to_add(pair=True) + _SHORTEST_WINDOW
    if length < least:
        raise UserError(f"--length {length}: too short for a question and its context; {least} at least")
    if not tokenizer.is_fast:
        raise UserError(f"{tokenizer.name_or_path}: question answering needs a fast tokenizer (tokenizer.json)")


def encode_questions(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, options: dict
) -> Dataset:
    """Windows of at most ``length`` tokens, each question with a stretch of its context, ``stride`` tokens apart.

    Columns: the model's inputs; start_positions and end_positions, the first answer's tokens, or [CLS] where the window has
    not all of it; row, the question's number; starts and ends, each token's characters in the context, −1 outside of it.
    ``options`` go to Dataset.map.
    """

    def encode(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        columns: dict[str, list] = defaultdict(list)
        for group, overlap in _by_overlap(batch["question"], tokenizer, length, stride):
            encoded = tokenizer(
                [text for _, text in group],
                [batch["context"][index] for index, _ in group],
                truncation="only_second",
                max_length=length,
                stride=overlap,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            origin, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
            for name, values in encoded.items():
                columns[name] += values
            for window, (which, spans) in enumerate(zip(origin, offsets, strict=True)):
                index = group[which][0]
                inside = [sequence == 1 for sequence in encoded.sequence_ids(window)]
                spans = [span if real else (-1, -1) for span, real in zip(spans, inside, strict=True)]
                starts, ends = [start for start, _ in spans], [end for _, end in spans]
                cls = encoded["input_ids"][window].index(tokenizer.cls_token_id)
                first, last = answer_tokens(starts, ends, batch["answers"][index], cls)
                own = {"row": numbers[index], "starts": starts, "ends": ends, "length": len(starts)}
                for name, value in (own | {"start_positions": first, "end_positions": last}).items():
                    columns[name].append(value)
        return dict(columns)

    return rows.map(encode, batched=True, with_indices=True, remove_columns=rows.column_names, **options)


def _by_overlap(
    questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, stride: int
) -> list[tuple[list[tuple[int, str]], int]]:
    """Questions, cut to LONGEST_QUESTION tokens and numbered, grouped by how far windows of their contexts overlap.

    The tokenizer wants the overlap; the papers' stride is the step, so it depends on the question's length.
    """
    room = length - tokenizer.num_special_tokens_to_add(pair=True)
    encoded = tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True)
    groups: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for index, (text, spans) in enumerate(zip(questions, encoded["offset_mapping"], strict=True)):
        if len(spans) > LONGEST_QUESTION:
            text, spans = text[: spans[LONGEST_QUESTION - 1][1]], spans[:LONGEST_QUESTION]
        groups[max(0, room - len(spans) - stride)].append((index, text))
    return [(group, overlap) for overlap, group in groups.items()]


def answer_tokens(starts: list[int], ends: list[int], answers: dict[str, list], cls: int) -> tuple[int, int]:
    """The tokens (first, last) of the first answer in a window; ``cls`` twice if it is not all there, or there is none."""
    if not answers["text"]:
        return cls, cls
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    real = [index for index, start in enumerate(starts) if start >= 0]
    if not real or starts[real[0]] > begin or ends[real[-1]] < end:
        return cls, cls
    first = next(index for index in real if ends[index] > begin)
    last = next(index for index in reversed(real) if starts[index] < end)
    return (first, last) if first <= last else (cls, cls)


# --- spans ------------------------------------------------------------------------------------------------------------


def best_spans(
    features: Dataset, contexts: Sequence[str], start: np.ndarray, end: np.ndarray
) -> list[tuple[str, float]]:
    """The text of each question's best answer, and the score of no answer minus that answer's.

    ``start``, ``end``: logits [windows, tokens]. The score of no answer is the lowest of a question's windows.
    """
    best = [(-np.inf, "")] * len(contexts)
    nothing = np.full(len(contexts), np.inf)
    for window, feature in enumerate(features.select_columns(["row", "starts", "ends", "input_ids"])):
        row, starts, ends = feature["row"], feature["starts"], feature["ends"]
        nothing[row] = min(nothing[row], start[window, 0] + end[window, 0])
        real = [index for index, value in enumerate(starts) if value >= 0]
        if not real:
            continue
        low, high = real[0], real[-1] + 1
        score, first, last = _best_span(start[window, low:high], end[window, low:high])
        if score > best[row][0]:
            best[row] = score, contexts[row][starts[low + first] : ends[low + last]]
    return [(text, float(null - score)) for (score, text), null in zip(best, nothing, strict=True)]


def _best_span(start: np.ndarray, end: np.ndarray) -> tuple[float, int, int]:
    """(score, first, last) of the span of at most LONGEST_ANSWER tokens with the highest sum of logits."""
    found = (-np.inf, 0, 0)
    for more in range(min(LONGEST_ANSWER, len(start))):
        sums = start[: len(start) - more] + end[more:]
        first = int(sums.argmax())
        found = max(found, (float(sums[first]), first, first + more), key=lambda each: each[0])
    return found


# --- scores -----------------------------------------------------------------------------------------------------------

_PUNCTUATION = {chr(code) for code in range(sys.maxunicode) if unicodedata.category(chr(code))[0] == "P"}
_PUNCTUATION |= set(string.punctuation)
_ASCII = str.maketrans("", "", string.punctuation)
_EVERY = str.maketrans(dict.fromkeys(map(ord, _PUNCTUATION)))


def _words(words: str) -> re.Pattern:
    return re.compile(rf"\b({'|'.join(words.split())})\b")


# The words that MLQA's scorer treats as articles; Hindi and Chinese have none.
_ARTICLES = {
    "en": _words("a an the"),
    "es": _words("un una unos unas el la los las"),
    "vi": _words("của là cái chiếc những"),
    "de": _words("ein eine einen einem eines einer der die das den dem des"),
    "ar": re.compile(r"\sال^|ال"),
    "hi": None,
    "zh": None,
}
_HAN = re.compile("([\u4e00-\u9fa5])")  # in mixed text each of these is a word


def words_of(text: str, language: str | None = None) -> list[str]:
    """The words that are compared: lower case, without punctuation and articles.

    By SQuAD's rules (ASCII punctuation, English articles), or with a ``language`` by MLQA's.
    """
    articles = _ARTICLES[language or "en"]
    text = text.lower().translate(_EVERY if language else _ASCII)
    if articles is not None:
        text = articles.sub(" ", text)
    if language == "zh":
        text = _HAN.sub(r" \1 ", text)
    return text.split()


def overlap_f1(prediction: list[str], answer: list[str], empty_may_match: bool) -> float:
    """F1 of two bags of words. Two empty ones match in SQuAD 2.0, not in SQuAD 1.1 and MLQA."""
    if empty_may_match and not (prediction and answer):
        return float(prediction == answer)
    same = (Counter(prediction) & Counter(answer)).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def question_scores(
    prediction: str, answers: Sequence[str], language: str | None = None, unanswerable: bool = False
) -> tuple[float, float]:
    """(F1, exact match), 0 to 1, each compared with the answer that it fits best."""
    golds = [words_of(answer, language) for answer in answers]
    if unanswerable:  # what is left of an answer may be nothing; without an answer, nothing is right
        golds = [words for words in golds if words] or [[]]
    words = words_of(prediction, language)
    return max(overlap_f1(words, gold, unanswerable) for gold in golds), float(any(words == gold for gold in golds))


def set_scores(
    spans: Sequence[tuple[str, float]], answers: Sequence[Sequence[str]], language: str | None, unanswerable: bool
) -> dict[str, float]:
    """Scores of a whole set in percent. ``spans``: (text, score of no answer minus the text's); ``answers``: per question."""
    score = functools.partial(question_scores, language=language, unanswerable=unanswerable)
    plain = [
        score("" if unanswerable and odds > 0 else text, gold)
        for (text, odds), gold in zip(spans, answers, strict=True)
    ]
    found = {"f1": _percent(f1 for f1, _ in plain), "exact_match": _percent(exact for _, exact in plain)}
    if unanswerable:
        always = [score(text, gold) for (text, _), gold in zip(spans, answers, strict=True)]
        found["best_f1"] = _at_best_threshold(spans, answers, [f1 for f1, _ in always])
        found["best_exact_match"] = _at_best_threshold(spans, answers, [exact for _, exact in always])
    return found


def _percent(values: Iterable[float]) -> float:
    """The mean in percent, added up in order: a compensated sum could differ from the scorers' in the last digit."""
    values = list(values)
    return 100.0 * functools.reduce(operator.add, values, 0.0) / len(values)


def _at_best_threshold(
    spans: Sequence[tuple[str, float]], answers: Sequence[Sequence[str]], scores: list[float]
) -> float:
    """The mean in percent at its best threshold: first all are unanswered, then the surest answers are added."""
    current = best = float(sum(not gold for gold in answers))
    for (text, _), gold, score in sorted(zip(spans, answers, scores, strict=True), key=lambda each: each[0][1]):
        if gold:
            current += score
        elif text:
            current -= 1
        best = max(best, current)
    return 100.0 * best / len(scores)


def scorer(
    rows: Dataset, features: Dataset, language: str | None, unanswerable: bool
) -> Callable[..., dict[str, float]]:
    """The function from a model's logits (start, end), each [windows, tokens], to the scores of ``rows``."""
    contexts = list(rows["context"])
    answers = [each["text"] for each in rows["answers"]]

    def score(outputs: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
        return set_scores(best_spans(features, contexts, *outputs[:2]), answers, language, unanswerable)

    return score
