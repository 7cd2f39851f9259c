"""One update of every student: the teacher's pass, then for each its pass, the relation loss, backward, and the optimizer.

The students of a run share the teacher's pass, the samples, the learning rate and the number of steps; nothing else. Each
has its own engine, and what becomes of it is what would become of it alone.
"""

import contextlib
import hashlib
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from data_prep.errors import UserError
from pipeline import encoders, engines
from pipeline.batches import unpadded
from pipeline.compiling import Compiled
from pipeline.engines import Teach
from pipeline.monitor import Monitor
from pipeline.ranks import Ranks
from pipeline.recipe import Recipe
from pipeline.relations import QKV, VALUE_MSE, Divergence, divergence_and_gradient, relation_loss, value_mse


@dataclass
class Trainee:
    """A student in training: its recipe, its DeepSpeed engine, the arithmetic of its loss, and what is kept beside them.

    ``names`` and ``tail`` are those of encoders.split; ``teacher_layers`` those of which the teacher's pass gives q, k, v;
    ``start`` is the step it goes on from; ``unchecked`` losses by step are still to be found finite; the first rank has a
    ``monitor``.
    """

    recipe: Recipe
    engine: Any
    divergence: Divergence = divergence_and_gradient
    names: dict[str, str] = field(default_factory=dict)
    tail: dict[str, Tensor] = field(default_factory=dict)
    teacher_layers: tuple[int, ...] = ()
    start: int = 0
    unchecked: dict[int, Tensor] = field(default_factory=dict)
    monitor: Monitor | None = None

    def losses(
        self, teacher: QKV, output: tuple[Tensor, ...], lengths: Tensor | None, part: slice = slice(None)
    ) -> dict[str, Tensor]:
        """The loss of ``output``, what the student's engine returned for sequences ``part`` of the ``teacher``'s, by part.

        Several layers are several sequences to the loss, which so takes the mean over them.
        """
        recipe = self.recipe
        targets = self.targets(teacher, part, output[0].shape[1])
        if lengths is not None:
            lengths = lengths.repeat_interleave(len(recipe.layers))
        losses = relation_loss(
            targets, QKV(*output[:3]), recipe.relations, recipe.relation_heads, lengths, self.divergence
        )
        if VALUE_MSE in recipe.pairs:
            losses[VALUE_MSE] = value_mse(targets.v, output[3], lengths)
            losses["loss"] = losses["loss"] + losses[VALUE_MSE]
        return {name: losses[name] for name in ("loss", *recipe.pairs)}

    def loss_of_each(self, teacher: QKV, output: tuple[Tensor, ...], lengths: Tensor | None) -> list[Tensor]:
        """The loss of each sequence alone, for looking at: scalars whose mean is ``losses``' of all."""
        eager = replace(
            self, divergence=divergence_and_gradient
        )  # a compiled one would be compiled for one sequence too
        rows = len(self.recipe.layers)  # of the output for a sequence
        found = []
        for i in range(len(output[0]) // rows):
            own = tuple(x[i * rows : (i + 1) * rows] for x in output)
            length = None if lengths is None else lengths[i : i + 1]
            found.append(eager.losses(teacher, own, length, slice(i, i + 1))["loss"])
        return found

    def targets(self, teacher: QKV, part: slice, length: int) -> QKV:
        """What this student learns from: ``part`` of the sequences, their first ``length`` positions, its own layers."""
        if len(self.teacher_layers) <= 1:
            return QKV(*(x[part, :length] for x in teacher))
        chosen = [self.teacher_layers.index(layer) for layer in self.recipe.layers.values()]
        by_layer = (
            x.unflatten(0, (-1, len(self.teacher_layers)))[part, :, :length] for x in teacher
        )  # [b, layers, T, width]
        return QKV(*(x[:, chosen].flatten(0, 1) for x in by_layer))


def trained_part(recipe: Recipe, model: PreTrainedModel, teacher_width: int, padding: int | None = None):
    """encoders.split of a student, as its loss needs it: telling all layers that learn, and its values projected."""
    earlier = tuple(recipe.layers)[:-1]
    width = teacher_width if VALUE_MSE in recipe.pairs else 0
    return encoders.split(model, padding, earlier, width, recipe.seed, own_ids(recipe))


def own_ids(recipe: Recipe) -> Tensor | None:
    """The student's id for each of the teacher's, int64 [vocabulary], if it has a smaller one: dropped pieces are unknown.

    Raises UserError if its tokenizer has no unknown token.
    """
    ids = recipe.student_ids()
    if ids is None:
        return None
    unknown = encoders.load_tokenizer(recipe.student.vocab).unk_token_id
    if unknown is None:
        raise UserError(
            f"student.vocab = {recipe.student.vocab!r}: its tokenizer has no unknown token to stand for dropped pieces"
        )
    return torch.from_numpy(np.where(ids < 0, unknown, ids).astype(np.int64))


def divergence_of(recipe: Recipe) -> Divergence:
    """The loss's arithmetic, compiled unless ``recipe`` says otherwise."""
    if recipe.compile == "none":
        return divergence_and_gradient
    return Compiled(divergence_and_gradient, "the relation loss")


def update(
    trainees: list[Trainee],
    teach: Teach,
    samples: Tensor,
    step: int,
    ranks: Ranks,
    padding: int | None,
    clock: "Clock",
) -> list[Tensor]:
    """Update ``step`` (from 0) of each trainee from this rank's ``samples``, input ids [n, length].

    Returns for each trainee its losses [micro-batches, 1 + pairs], on the device: nothing here waits for it.
    """
    recipe = trainees[0].recipe
    losses: list[list[Tensor]] = [[] for _ in trainees]
    for trainee in trainees:
        trainee.engine.train()
        engines.set_learning_rate(trainee.engine, recipe.learning_rate_at(step))
    for window in samples.split(recipe.teacher_batch):
        with clock("teacher"):
            teacher = teach(unpadded(window, padding)[0].to(ranks.device, non_blocking=True))
        parts = [slice(i, i + recipe.micro_batch) for i in range(0, len(window), recipe.micro_batch)]
        batches = [unpadded(window[part], padding) for part in parts]
        batches = [(ids.to(ranks.device, non_blocking=True), lengths) for ids, lengths in batches]
        for trainee, rows in zip(trainees, losses, strict=True):
            for part, (ids, lengths) in zip(parts, batches, strict=True):
                seed_dropout(recipe.seed, step, len(rows), ranks.rank)
                with clock("student"):
                    output = trainee.engine(ids)
                with clock("loss"):
                    named = trainee.losses(teacher, output, lengths, part)
                rows.append(torch.stack([loss.detach() for loss in named.values()]))
                with clock("student"):
                    trainee.engine.backward(named["loss"])
                with clock("optimizer"):
                    trainee.engine.step()
    return [torch.stack(rows) for rows in losses]


def seed_dropout(seed: int, step: int, micro: int, rank: int) -> None:
    """Dropout is a function of (seed, step, micro-batch, rank), so that a resumed run drops the same."""
    digest = hashlib.blake2b(f"{seed} {step} {micro} {rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest))


class Clock:
    """Where the time goes: ``with clock("teacher"): …`` adds to that part while ``running``.

    On a GPU the time is the device's own, taken by events, so that nothing waits before ``seconds`` is asked for.
    """

    def __init__(self, device: torch.device):
        self._events = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []
        self.running = False

    @contextlib.contextmanager
    def __call__(self, part: str):
        if not self.running:
            yield
            return
        begin = self._now()
        yield
        self._spans.append((part, begin, self._now()))

    def _now(self) -> Any:
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        if self._events:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for part, begin, end in self._spans:
            span = begin.elapsed_time(end) / 1e3 if self._events else end - begin
            total[part] = total.get(part, 0.0) + span
        self._spans.clear()
        return total
