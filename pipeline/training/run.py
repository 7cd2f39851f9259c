"""A run as each of its ranks sees it: what its students share, what is due in which step, and the hosted teacher."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from data_prep.shards import Corpus
from pipeline.data.following import followed
from pipeline.data.inputs import Inputs
from pipeline.data.order import Order
from pipeline.data.reading import ReadAhead, filled, order_of, steps
from pipeline.data.windows import Windows
from pipeline.engines.hosting import Hosting
from pipeline.engines.ranks import Ranks
from pipeline.engines.teacher import Teach
from pipeline.models.cut import Taught
from pipeline.settings.recipe import Recipe
from pipeline.training.early_stop import EarlyStop
from pipeline.training.progress import Progress


class Due(NamedTuple):
    """Whether an update is followed by a log, an evaluation, a checkpoint, the end; the same on all ranks."""

    logs: bool
    evaluates: bool
    saves: bool
    leaves: bool

    @property
    def any(self) -> bool:
        """Whether the losses are looked at, which waits for the device."""
        return self.logs or self.evaluates or self.saves


@dataclass(frozen=True)
class Run:
    """``recipe`` is any of the students': it stands for what they share, which is all but [student] and settings.recipe.OWN.

    ``last``: the step to reach, at most its ``steps``.
    """

    recipe: Recipe
    ranks: Ranks
    corpus: Corpus
    windows: Windows
    tokenizer: PreTrainedTokenizerBase
    last: int
    early: EarlyStop
    progress: Progress = field(default_factory=Progress)  # which the watchdog watches
    about_arithmetic: tuple[str, ...] = ()  # for the introduction

    @property
    def padding(self) -> int | None:
        """The id that right-pads input ids, if any does."""
        return self.windows.padding

    @cached_property
    def order(self) -> Order:
        """The sampling order: which window is sample number g."""
        return self._order()

    def _order(self) -> Order:
        recipe = self.recipe
        return order_of(self.windows, recipe.sampling_alpha, recipe.seed, recipe.shuffle_shards)

    @property
    def tokens_per_step(self) -> float:
        """Real tokens in a step of all ranks, padding left out."""
        return filled(self.windows, self.order) * self.recipe.tokens_per_step

    def reading(self, first: int) -> Iterator[tuple[int, Inputs, Callable[[], Inputs | None]]]:
        """(step, this rank's samples, what gives those of the next one if they have been read), from step ``first`` on."""
        batch, ranks = self.recipe.batch, self.ranks
        read = steps(self.windows, self.order, first, self.last, batch, ranks.rank, ranks.world)
        read = followed(read, self.corpus, self.windows, self._order(), batch, first, self.last)
        ready = ReadAhead(read, ranks.device)
        return ((step, samples, ready.coming) for step, samples in enumerate(ready, first))

    def due(self, step: int) -> Due:
        """Decide what follows update ``step`` (from 0), once before each. Waits neither for the device nor in a collective."""
        recipe, done = self.recipe, step + 1
        finished = done == recipe.steps
        leaves = done == self.last or self.early.agreed(step)
        return Due(
            logs=finished or done % recipe.log_every == 0,
            evaluates=finished or done % recipe.eval_every == 0,
            saves=leaves or done % recipe.checkpoint_every == 0,
            leaves=leaves,
        )


@dataclass(frozen=True)
class HostedTeacher:
    """The hosted teacher, a function of what engines.teacher.host_teacher says; ``digests``: hashes of its weights
    up to each layer that students learn from."""

    forward: Teach
    digests: dict[int, str]
    hosting: Hosting
    config: PreTrainedConfig
    history: list[dict]

    def __call__(self, input_ids: Tensor, **told: Any) -> Taught:
        return self.forward(input_ids, **told)
