"""The tasks as data: columns, labels, names of scores, and the hyper-parameters of their fine-tuning.

Those of the papers are GLUE (arXiv 1804.07461), SQuAD 1.1 and 2.0 (1606.05250, 1806.03822), XNLI (1809.05053), MLQA
(1910.07475), XQuAD (1910.11856). Hyper-parameters are those of MiniLM (2002.10957, appendix), common to all: linear schedule,
warm-up over 10 % of the steps, weight decay 0.01 (not on biases and norms), gradients clipped to 1. Adam's β and ε are not
given there: they are BERT's usual 0.9, 0.999 and 1e-8. Three more tasks train nothing: they compare the vectors that a model
makes of texts. Another task is one more entry of ``TASKS``, or a user's own, see own_tasks.py.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.cli import UserError

WARMUP, WEIGHT_DECAY, MAX_GRAD_NORM, ADAM_EPSILON = 0.1, 0.01, 1.0, 1e-8

NLI = ("entailment", "neutral", "contradiction")
_BINARY = {"0": 0, "1": 1}


@dataclass(frozen=True)
class Layout:
    """The columns of a tsv file's texts and label: names in its header, or numbers (from 0) if it has none."""

    texts: tuple[str | int, ...]
    label: str | int
    width: int | None = None  # columns of a file without a header
    language: str | None = None  # the column that names a row's language
    open_ended: bool = False  # rows may lack columns after those that are read
    torn_rows: bool = False  # the official file has a few rows with too few or too many columns: they are skipped
    wider: bool = False  # rows may have more columns than ``width``


@dataclass(frozen=True)
class Own:
    """A user's own task: the file that describes it, and the files of its sets by name, train, dev or test."""

    source: Path
    files: dict[str, Path]
    numbers: bool = False  # labels are numbers, not names


@dataclass(frozen=True)
class Task:
    """One task. ``scores`` are in percent; the papers show the first."""

    hub: str
    folders: tuple[str, ...]  # where its files may be below --data, other than directly in it
    scores: tuple[str, ...]
    layout: Layout | None = None  # None: question answering over SQuAD's JSON
    labels: tuple[str, ...] = ()  # in the order of their ids; none: a number, or a span
    spelled: dict[str, int] = field(default_factory=dict)  # labels that files do not write by their name
    bounds: tuple[float, float] = (0.0, 0.0)  # of a label that is a number
    undecided: str | None = None  # the label of rows on which the annotators did not agree: they are left out
    dev_files: dict[str, str] = field(default_factory=lambda: {"": "dev.tsv"})  # suffix of its scores: file
    raw_files: tuple[str, ...] = ()  # as first published, not by GLUE: of training, and a test set with labels or none
    raw_dev_files: dict[str, str] = field(default_factory=dict)  # and of dev, as dev_files
    hub_texts: tuple[str, ...] = ()
    hub_splits: dict[str, str] = field(default_factory=lambda: {"": "validation"})
    official: tuple[int, ...] = ()  # rows of the published train file, then of the others
    languages: bool = False  # one dev or test set for each language
    embeds: bool = False  # nothing is trained: the vectors of texts are compared
    unanswerable: bool = False  # SQuAD 2.0's questions without an answer
    own: Own | None = None  # a user's own, whose layout's columns are names
    length: int = 128  # tokens
    stride: int = 128  # tokens from one window of a long context to the next
    batch: int = 32
    learning_rates: tuple[float, ...] = (2e-5, 3e-5, 4e-5, 5e-5)
    epochs: tuple[int, ...] = (3, 4, 5)
    middle: tuple[float, int] = (3e-5, 4)  # learning rate and epochs without --grid

    @property
    def primary(self) -> str:
        return self.scores[0]

    @property
    def answers(self) -> bool:
        """Whether the model is to find spans of a context, not a label of a text or pair."""
        return self.layout is None and not self.embeds

    @property
    def averaged(self) -> bool:
        """Whether its score is the mean over several sets or languages."""
        return self.languages or self.embeds


_SHORT = (3, 4, 5, 10)  # epochs of the three small tasks: "up to 10"
_SQUAD = ("SQuAD", "squad", "SQuAD1", "SQuAD2")
_QA: dict[str, Any] = {
    "scores": ("f1", "exact_match"),
    "length": 384,
    "learning_rates": (6e-5,),
    "epochs": (3,),
    "middle": (6e-5, 3),
}
_MULTILINGUAL: dict[str, Any] = {"learning_rates": (3e-5, 4e-5, 5e-5, 6e-5), "languages": True}
_MLQA = _QA | _MULTILINGUAL | {"length": 512, "middle": (5e-5, 3)}

MTEB = "mteb-"  # before the name of one of that package's tasks
# The benchmarks of sts on the hub.
STS_HUB = {f"STS{year}": f"mteb/sts{year}-sts" for year in range(12, 17)}
STS_HUB |= {"STS-B": "mteb/stsbenchmark-sts", "SICK-R": "mteb/sickr-sts"}


class _Tasks(dict[str, Task]):
    """The tasks by name; those of mteb are not listed."""

    def __missing__(self, name: str) -> Task:
        if not name.startswith(MTEB):
            raise KeyError(name)
        return Task(hub="", folders=(), scores=("main_score",), embeds=True)


_PAPERS = {
    "mnli": Task(
        hub="nyu-mll/glue",
        folders=("MNLI", "multinli_1.0"),
        scores=("accuracy",),
        layout=Layout(("sentence1", "sentence2"), "gold_label", open_ended=True),
        labels=NLI,
        undecided="-",
        dev_files={"": "dev_matched.tsv", "mm": "dev_mismatched.tsv"},
        raw_files=("multinli_1.0_train.txt",),
        raw_dev_files={"": "multinli_1.0_dev_matched.txt", "mm": "multinli_1.0_dev_mismatched.txt"},
        hub_texts=("premise", "hypothesis"),
        hub_splits={"": "validation_matched", "mm": "validation_mismatched"},
        official=(392702, 9815, 9832),
    ),
    "sst2": Task(
        hub="nyu-mll/glue",
        folders=("SST-2",),
        scores=("accuracy",),
        layout=Layout(("sentence",), "label"),
        labels=("negative", "positive"),
        spelled=_BINARY,
        hub_texts=("sentence",),
        official=(67349, 872),
    ),
    "qnli": Task(
        hub="nyu-mll/glue",
        folders=("QNLI",),
        scores=("accuracy",),
        layout=Layout(("question", "sentence"), "label"),
        labels=("entailment", "not_entailment"),
        hub_texts=("question", "sentence"),
        official=(104743, 5463),
    ),
    "cola": Task(
        hub="nyu-mll/glue",
        folders=("CoLA",),
        scores=("matthews",),
        layout=Layout((3,), 1, width=4),
        labels=("unacceptable", "acceptable"),
        spelled=_BINARY,
        hub_texts=("sentence",),
        official=(8551, 1043),
        epochs=_SHORT,
        middle=(3e-5, 5),
    ),
    "rte": Task(
        hub="nyu-mll/glue",
        folders=("RTE",),
        scores=("accuracy",),
        layout=Layout(("sentence1", "sentence2"), "label"),
        labels=("entailment", "not_entailment"),
        hub_texts=("sentence1", "sentence2"),
        official=(2490, 277),
        epochs=_SHORT,
        middle=(3e-5, 5),
    ),
    "mrpc": Task(
        hub="nyu-mll/glue",
        folders=("MRPC",),
        scores=("accuracy", "f1"),
        layout=Layout(("#1 String", "#2 String"), "Quality"),
        labels=("not_equivalent", "equivalent"),
        spelled=_BINARY,
        raw_files=("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"),
        hub_texts=("sentence1", "sentence2"),
        official=(3668, 408),
        epochs=_SHORT,
        middle=(3e-5, 5),
    ),
    "qqp": Task(
        hub="nyu-mll/glue",
        folders=("QQP",),
        scores=("accuracy", "f1"),
        layout=Layout(("question1", "question2"), "is_duplicate", torn_rows=True),
        labels=("not_duplicate", "duplicate"),
        spelled=_BINARY,
        hub_texts=("question1", "question2"),
        official=(363846, 40430),
    ),
    "stsb": Task(
        hub="nyu-mll/glue",
        folders=("STS-B",),
        scores=("spearman", "pearson"),
        layout=Layout(("sentence1", "sentence2"), "score"),
        bounds=(0.0, 5.0),
        hub_texts=("sentence1", "sentence2"),
        official=(5749, 1500),
    ),
    "squad1": Task(hub="rajpurkar/squad", folders=_SQUAD, official=(87599, 10570), **_QA),
    "squad2": Task(
        hub="rajpurkar/squad_v2", folders=("SQuAD2", *_SQUAD), official=(130319, 11873), unanswerable=True, **_QA
    ),
    "xnli": Task(
        hub="facebook/xnli",
        folders=("XNLI", "xnli"),
        scores=("accuracy",),
        layout=Layout((0, 1), 2, width=3),
        labels=NLI,
        undecided="-",
        spelled={"contradictory": 2},  # in the English training file of XNLI-MT-1.0
        hub_texts=("premise", "hypothesis"),
        official=(392702, 2490, 5010),
        batch=128,
        epochs=(5,),
        middle=(5e-5, 5),
        **_MULTILINGUAL,
    ),
    "mlqa": Task(hub="facebook/mlqa", folders=("MLQA_V1", "MLQA", "mlqa"), **_MLQA),
    "xquad": Task(hub="google/xquad", folders=("XQuAD", "xquad"), **_MLQA),
}
_EMBEDDING = {
    "sts": Task(
        hub="mteb",
        folders=(),
        scores=("spearman", "pearson"),
        bounds=(0.0, 5.0),
        hub_texts=("sentence1", "sentence2"),
        embeds=True,
    ),
    "lee": Task(hub="", folders=("lee", "Lee"), scores=("pearson", "spearman"), bounds=(0.0, 1.0), embeds=True),
    "bitext": Task(
        hub="", folders=(), scores=("accuracy", "accuracy_to_pivot", "accuracy_from_pivot"), languages=True, embeds=True
    ),
}
TASKS = _Tasks(_PAPERS | _EMBEDDING)


def names_in(text: str) -> list[str]:
    """Names separated by commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def is_own(name: str) -> bool:
    """Whether ``--task`` names the file of a user's own task (own_tasks.py)."""
    return name.endswith(".toml")


def check_task(name: str) -> str:
    """Return ``name`` if it is a task. Raises UserError with the one that was probably meant."""
    if name not in TASKS and not (name.startswith(MTEB) and name != MTEB):
        near = difflib.get_close_matches(name.lower().replace("-", "").replace("_", ""), TASKS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"--task {name}: unknown task; {hint}tasks are {', '.join(TASKS)}, and mteb's as {MTEB}NAME; your own as FILE.toml"
        )
    return name


def settings(task: Task, grid: bool, learning_rates: Sequence[float], epochs: Sequence[int]) -> list[tuple[float, int]]:
    """(learning rate, epochs) to run: the middle one or the paper's whole grid, where options do not say otherwise."""
    rates = learning_rates or (task.learning_rates if grid else task.middle[:1])
    counts = epochs or (task.epochs if grid else task.middle[1:])
    return [(rate, count) for rate in dict.fromkeys(rates) for count in dict.fromkeys(counts)]
