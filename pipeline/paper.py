"""The papers' tables as data, to compare ours with: MiniLM (arXiv 2002.10957) and MiniLMv2 (arXiv 2012.15828).

Scores are in percent, means over four runs where the papers say so: accuracy, F1 for SQuAD and MLQA, Matthews correlation for
CoLA. GLUE and SQuAD 2.0 are development sets, XNLI and MLQA test sets. Scores by language and those of MiniLMv2's released
models are also in the authors' repository, github.com/microsoft/unilm, minilm/README.md.
"""

from dataclasses import dataclass
from typing import NamedTuple

MINILM, MINILM_V2 = "MiniLM, arXiv 2002.10957", "MiniLMv2, arXiv 2012.15828"

# The public models that the papers distil or compare with, by the last part of their hub ids.
_PUBLIC = {
    "bert-base-uncased": "BERT-base",
    "bert-large-uncased": "BERT-large",
    "distilbert-base-uncased": "DistilBERT",
    "bert-base-multilingual-cased": "mBERT",
    "roberta-base": "RoBERTa-base",
    "roberta-large": "RoBERTa-large",
    "xlm-roberta-base": "XLM-R-base",
    "xlm-roberta-large": "XLM-R-large",
}


class Distilled(NamedTuple):
    """The properties that make a student one of the papers'. The rest of its recipe (steps, data, batch) may differ."""

    teacher: str  # of the first stage
    student: str  # layers x width
    terms: tuple[str, ...]  # relations and other losses, sorted
    layer: int  # of the first stage's teacher
    heads: int  # relation heads
    assistant: str = ""  # layers x width of the stage in between, if there is one

    def is_like(self, other: "Distilled") -> bool:
        """Whether the method is the same, whatever the teacher and the shape."""
        return self.terms == other.terms and bool(self.assistant) == bool(other.assistant)


class Column(NamedTuple):
    """``metric`` is a key of a cell's scores; a column without a task is the mean of those before it."""

    label: str
    task: str = ""
    metric: str = "accuracy"


@dataclass(frozen=True)
class Row:
    """A model of a paper, and its scores."""

    name: str
    model: Distilled | str | None  # which of our models it would be: a student, a public model, or none
    values: tuple[float | None, ...]  # one for each column


@dataclass(frozen=True)
class Table:
    """A table of a paper, or a part of one."""

    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


# --- our models in the papers' terms ----------------------------------------------------------------------------------


def known_as(model: dict) -> Distilled | str | None:
    """One of our models in the papers' terms, by the content of its model.json: a student, or a public model.

    None if it is neither. A student's teacher that the papers have no name for keeps its own name.
    """
    if not model.get("distillation"):
        return public_name(model["path"]) or public_name(model["name"])
    try:
        return _distilled([stage.get("recipe", stage) for stage in model["distillation"]])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # made by other means than our recipes


def public_name(model: str) -> str | None:
    """The papers' name of this hub id or folder."""
    return _PUBLIC.get(model.rstrip("/").rpartition("/")[2].rpartition("--")[2].lower())


def _distilled(stages: list[dict]) -> Distilled:
    first, last = stages[0], stages[-1]
    teacher = first["teacher"]["model"]
    terms = list(last["pairs"])
    if last.get("transfer", "last") != "last":
        terms.append(last["transfer"])
    return Distilled(
        teacher=public_name(teacher) or teacher.rstrip("/").rpartition("/")[2],
        student=_size(last),
        terms=tuple(sorted(terms)),
        layer=int(first["teacher"]["layer"]),
        heads=int(last["relation_heads"]),
        assistant=", ".join(map(_size, stages[:-1])),
    )


def _size(recipe: dict) -> str:
    return size(recipe["student"]["layers"], recipe["student"]["hidden"])


def size(layers: int, hidden: int) -> str:
    """An encoder's shape as the papers write it: layers x width."""
    return f"{layers}x{hidden}"


# --- the tables -------------------------------------------------------------------------------------------------------

_V1 = ("qk", "vv")


def _v1(student: str, terms: tuple[str, ...] = _V1, assistant: str = "", teacher: str = "BERT-base") -> Distilled:
    return Distilled(teacher, student, terms, 12, 12, assistant)


def _v2(student: str, teacher: str) -> Distilled:
    layer = {"BERT-large": 21, "RoBERTa-large": 19, "XLM-R-large": 19}.get(teacher, 12)
    return Distilled(teacher, student, ("kk", "qq", "vv"), layer, 64 if "large" in teacher else 48)


_SQUAD2, _MNLI, _SST2 = Column("SQuAD 2.0", "squad2", "f1"), Column("MNLI-m", "mnli"), Column("SST-2", "sst2")

_GLUE = (
    _SQUAD2,
    _MNLI,
    _SST2,
    Column("QNLI", "qnli"),
    Column("CoLA", "cola", "matthews"),
    Column("RTE", "rte"),
    Column("MRPC", "mrpc"),
    Column("QQP", "qqp"),
    Column("average"),
)

TABLE_2 = Table(
    "Six layers of width 768",
    f"{MINILM}, Table 2",
    _GLUE,
    (
        Row("BERT-base", "BERT-base", (76.8, 84.5, 93.2, 91.7, 58.9, 68.6, 87.3, 91.3, 81.5)),
        Row("DistilBERT", "DistilBERT", (70.7, 79.0, 90.7, 85.3, 43.6, 59.9, 87.5, 84.9, 75.2)),
        Row("TinyBERT", None, (73.1, 83.5, 91.6, 90.5, 42.8, 72.2, 88.4, 90.6, 79.1)),
        Row("MiniLM 6x768", _v1("6x768"), (76.4, 84.0, 92.0, 91.0, 49.2, 71.5, 88.4, 91.0, 80.4)),
    ),
)

_THREE = (_SQUAD2, _MNLI, _SST2)

# Scores of variants in these three tasks, by student.
_DIRECT = {"6x384": (72.4, 82.2, 91.0), "4x384": (69.4, 80.3, 90.2), "3x384": (66.2, 78.8, 89.3)}
_ASSISTED = {"6x384": (72.7, 82.4, 91.2), "4x384": (69.7, 80.6, 90.6), "3x384": (66.9, 79.1, 89.7)}
_NO_VALUES = {"6x384": (71.0, 80.9, 89.9), "4x384": (67.5, 79.0, 89.2), "3x384": (64.2, 77.8, 88.3)}
_VALUE_MSE = {"6x384": (71.4, 82.0, 90.8), "4x384": (68.3, 80.1, 89.9), "3x384": (65.5, 78.4, 89.3)}
_ALL_LAYERS = {"6x384": (71.6, 81.8, 90.6), "4x384": (67.6, 79.9, 89.6), "3x384": (64.8, 77.7, 88.6)}


def _compared(title: str, source: str, *variants: tuple[str, dict, tuple[str, ...], str]) -> Table:
    """A table with a row for each size and variant: (its name, scores, losses, and assistant)."""
    rows = (
        Row(f"{student}, {name}", _v1(student, tuple(sorted(terms)), assistant), scores[student])
        for student in ("6x384", "4x384", "3x384")
        for name, scores, terms, assistant in variants
    )
    return Table(title, source, _THREE, tuple(rows))


TABLE_3 = _compared(
    "Smaller students, and a teacher assistant",
    f"{MINILM}, Table 3",
    ("MiniLM", _DIRECT, _V1, ""),
    ("MiniLM with a 12x384 assistant", _ASSISTED, _V1, "12x384"),
)

VALUE_RELATION = _compared(
    "What the value relation brings",
    MINILM,
    ("MiniLM", _DIRECT, _V1, ""),
    ("without value relation", _NO_VALUES, ("qk",), ""),
)

VALUE_MSE = _compared(
    "Value relation or mean squared error of values",
    MINILM,
    ("MiniLM", _DIRECT, _V1, ""),
    ("value-MSE instead", _VALUE_MSE, ("qk", "v_mse"), ""),
)

LAYERS = _compared(
    "Last layer or layer to layer",
    MINILM,
    ("MiniLM", _DIRECT, _V1, ""),
    ("layer-to-layer", _ALL_LAYERS, (*_V1, "layer-to-layer"), ""),
)

_XLMR_12, _XLMR_6 = (
    _v1("12x384", teacher="XLM-R-base"),
    _v1("6x384", assistant="12x384", teacher="XLM-R-base"),
)

_XNLI_LANGUAGES = ("en", "fr", "es", "de", "el", "bg", "ru", "tr", "ar", "vi", "th", "zh", "hi", "sw", "ur")

_MLQA_LANGUAGES = ("en", "es", "de", "ar", "hi", "vi", "zh")

_MBERT_XNLI = (66.3, 82.1, 73.8, 74.3, 71.1, 66.4, 68.9, 69.0, 61.6, 64.9, 69.5, 55.8, 69.3, 60.0, 50.4, 58.0)

_XLMR_XNLI = (74.5, 84.6, 78.4, 78.9, 76.8, 75.9, 77.3, 75.4, 73.2, 71.5, 75.4, 72.5, 74.9, 71.1, 65.2, 66.5)

_12_XNLI = (71.1, 81.5, 74.8, 75.7, 72.9, 73.0, 74.5, 71.3, 69.7, 68.8, 72.1, 67.8, 70.0, 66.2, 63.3, 64.2)

XNLI = Table(
    "XNLI, trained on English",
    MINILM,
    (Column("average", "xnli"), *(Column(language, "xnli", f"accuracy/{language}") for language in _XNLI_LANGUAGES)),
    (
        Row("mBERT", "mBERT", _MBERT_XNLI),
        Row("XLM-R-base", "XLM-R-base", _XLMR_XNLI),
        Row("MiniLM 12x384", _XLMR_12, _12_XNLI),
        Row("MiniLM 6x384 with a 12x384 assistant", _XLMR_6, (68.0, *(None for _ in _XNLI_LANGUAGES))),
    ),
)

MLQA = Table(
    "MLQA, trained on SQuAD 1.1: F1, and exact match on average",
    MINILM,
    (
        Column("average F1", "mlqa", "f1"),
        Column("average EM", "mlqa", "exact_match"),
        *(Column(language, "mlqa", f"f1/{language}") for language in _MLQA_LANGUAGES),
    ),
    (
        Row("mBERT", "mBERT", (57.7, None, 77.7, 64.3, 57.9, 45.7, 43.8, 57.1, 57.5)),
        Row("XLM-R-base, fine-tuned by the authors", "XLM-R-base", (64.9, None, 80.3, 67.0, 62.7, 55.0, 60.4, 66.5, 62.3)),
        Row("MiniLM 12x384", _XLMR_12, (63.2, 44.7, 79.4, 66.1, 61.2, 54.9, 58.5, 63.1, 59.0)),
        Row("MiniLM 6x384 with a 12x384 assistant", _XLMR_6, (53.7, 36.6, *(None for _ in _MLQA_LANGUAGES))),
    ),
)  # fmt: skip

V2_ENGLISH = Table(
    "MiniLMv2 from several teachers",
    MINILM_V2,
    (_MNLI, _SQUAD2),
    tuple(
        Row(f"{student} from {teacher}", _v2(student, teacher), scores)
        for student, teacher, scores in (
            ("6x768", "RoBERTa-large", (87.0, 81.6)),
            ("12x384", "RoBERTa-large", (86.9, 82.3)),
            ("6x384", "RoBERTa-large", (84.4, 76.4)),
            ("6x768", "BERT-large", (85.0, 77.7)),
            ("6x384", "BERT-large", (83.0, 74.3)),
            ("6x768", "BERT-base", (84.2, 76.3)),
            ("6x384", "BERT-base", (82.8, 72.9)),
        )
    ),
)

V2_MULTILINGUAL = Table(
    "MiniLMv2 from XLM-R-large",
    MINILM_V2,
    (Column("XNLI", "xnli"), Column("MLQA F1", "mlqa", "f1")),
    (
        Row("12x384 from XLM-R-large", _v2("12x384", "XLM-R-large"), (72.9, 64.9)),
        Row("6x384 from XLM-R-large", _v2("6x384", "XLM-R-large"), (69.3, 59.0)),
    ),
)

TABLES = (TABLE_2, TABLE_3, VALUE_RELATION, VALUE_MSE, LAYERS, XNLI, MLQA, V2_ENGLISH, V2_MULTILINGUAL)

# MiniLM: times as fast as 12x768, over 100 batches of QNLI; and millions of parameters, (word embeddings, Transformer).
SPEEDUPS = {"12x768": 1.0, "6x768": 2.0, "12x384": 2.7, "6x384": 5.3, "4x384": 7.8, "3x384": 10.1}

PARAMETERS = {
    "12x768": (23.4, 85.1),
    "6x768": (23.4, 42.5),
    "12x384": (11.7, 21.3),
    "6x384": (11.7, 10.6),
    "4x384": (11.7, 7.1),
    "3x384": (11.7, 5.3),
}


def speedup(student: str, reference: str) -> float | None:
    """The papers' speed-up of one shape over another, a quotient of theirs over 12x768; None where they give no figure."""
    if student not in SPEEDUPS or reference not in SPEEDUPS:
        return None
    return SPEEDUPS[student] / SPEEDUPS[reference]


# The languages of the multilingual sets on the hub.
HUB_LANGUAGES = {
    "xnli": ["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"],
    "mlqa": ["ar", "de", "en", "es", "hi", "vi", "zh"],
    "xquad": ["ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"],
}
