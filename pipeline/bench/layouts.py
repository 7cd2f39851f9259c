"""``python -m pipeline.bench step --layout``: an update of the same recipe, on the same text, in each layout.

Batches hold more or less text, so every repetition reads others, and what is compared is the tokens of text that an update
learns from in a second. Those are the documents' own: no [CLS] or [SEP], so no separators between documents, and no padding.
"""

import contextlib
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

from data_prep.cli import UserError
from data_prep.shards import Corpus, open_corpus
from pipeline.bench.shares import shares_of
from pipeline.bench.step import SEED, Models
from pipeline.bench.tools import Row, Setting, settings_of
from pipeline.data.inputs import Inputs
from pipeline.data.reading import filled, order_of, sequences_a_row, steps, training_windows
from pipeline.engines.ranks import Ranks, start_ranks
from pipeline.measuring import interleaved_times, median_ratio
from pipeline.training.trainee import Trainee

_TARGETS = {
    ("packed", "full"): "target: at least 0.9",
    ("packed", "doc"): "target: at least 1.15 for news, 1.5 for lines in a micro-batch of 32",
}


def layouts(options: Namespace) -> Iterator[Row]:
    """Measure an update in each layout under each setting; rows are meant for the first rank."""
    corpus = _checked(options)
    widths = {"teacher": options.teacher[1]} | {f"student {size[0]}x{size[1]}": size[1] for size in options.student}
    settings = [
        Setting(setting.pairs, setting.heads, kernel)
        for setting in settings_of(options.heads, options.pairs, widths)
        for kernel in dict.fromkeys(options.loss_kernel)
    ]
    ranks = start_ranks()
    readings = [Reading(corpus, name, options, ranks) for name in dict.fromkeys(options.layout)]
    models = Models(options, settings, ranks, options.arithmetic[0])
    case = models.case | {"data": str(options.data)}
    for setting, trainees in zip(settings, models.trainees, strict=True):
        yield from _rows_of_setting(readings, models, trainees, options.repeats, case | setting.case)


def _checked(options: Namespace) -> Corpus:
    """The corpus to read. Raises UserError for options that do not go together."""
    if not options.layout:
        raise UserError("--data: goes with --layout; other updates read random ids")
    if options.data is None:
        raise UserError("--layout: add --data DIR, a prepared corpus")
    for name in ("launches", "embeddings"):
        if getattr(options, name):
            raise UserError(f"--{name}: does not go with --layout")
    if len(options.arithmetic) > 1:
        raise UserError("--arithmetic: one with --layout")
    if "literal" in options.loss_kernel:
        raise UserError("--loss-kernel literal: does not go with --layout; it takes rows of one sequence")
    corpus = open_corpus(options.data)
    size = corpus.tokenizer["vocab_size"]
    if size > options.vocabulary:
        raise UserError(
            f"--vocabulary {options.vocabulary}: {options.data} has {size} entries; add --vocabulary {size}"
        )
    return corpus


class Reading:
    """A layout's reading of a corpus: ``batches`` of this rank, one for each repetition and one before, and the ``tokens`` of
    text in each."""

    def __init__(self, corpus: Corpus, layout: str, options: Namespace, ranks: Ranks):
        """Makes the index of packed rows if need be, and reports so on stderr."""
        self.layout = layout
        with contextlib.redirect_stdout(sys.stderr):
            self.windows = training_windows(corpus, options.length, layout)
        self.order = order_of(self.windows, 1.0, SEED)
        count, whole = options.repeats + 1, options.batch * ranks.world
        read = list(steps(self.windows, self.order, 0, count, whole, ranks.rank, ranks.world))
        self.tokens = [text_tokens(batch, corpus.tokenizer["special"]) for batch in read]
        self.batches = [batch.to(ranks.device) for batch in read]

    def updates(self, models: Models, trainees: list[Trainee]) -> Callable[[], None]:
        """What makes an update of the trainees from the next of the batches each time it is called."""
        batches = iter(self.batches)
        return lambda: models.update(trainees, next(batches))


def text_tokens(batch: Inputs, special: dict[str, int]) -> int:
    """The tokens of documents in a batch; a text never becomes one of the ``special`` ids but the unknown one."""
    others = torch.tensor([special[role] for role in ("cls", "sep", "pad")])
    return int((~torch.isin(batch.ids, others)).sum())


def _rows_of_setting(
    readings: list[Reading], models: Models, trainees: list[Trainee], repeats: int, case: dict
) -> Iterator[Row]:
    works = {reading.layout: reading.updates(models, trainees) for reading in readings}
    times = interleaved_times(works, repeats, models.ranks.device)
    speeds: dict[str, list[float]] = {}
    for reading in readings:
        layout, tokens = reading.layout, reading.tokens[1:]  # the first batch is the warm-up
        speeds[layout] = [count / time for count, time in zip(tokens, times[layout], strict=True)]
        row = partial(Row, case=case | {"layout": layout})
        note = "of text in a second, on each rank; special tokens, separators and padding are not counted"
        yield row("speed", median(speeds[layout]), "tokens/s", note)
        yield row("tokens", median(tokens), "", "of text in a batch of a rank")
        yield row("update", median(times[layout]), "s", "teacher's pass, and an update of every student")
        fill = 100 * filled(reading.windows, reading.order)
        target = "; target: at least 97" if layout == "packed" else ""
        yield row("fill", fill, "%", f"of the positions of whole rows is not padding{target}")
        yield row("pieces a row", sequences_a_row(reading.windows, reading.order), "", "sequences, each by itself")
        spent = shares_of(trainees, models.teach, models.ranks, reading.windows, reading.order)
        for part, share in spent.items():
            yield row(f"share of {part}", 100 * share, "%", "of the time of consecutive updates")
    for (above, below), target in _TARGETS.items():
        if {above, below} <= speeds.keys():
            yield Row(f"{above} / {below}", median_ratio(speeds[above], speeds[below]), "×", f"speeds; {target}", case)
