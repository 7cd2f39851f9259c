"""A student in training, and its loss."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.bounds import Bounds
from pipeline.engines.compiling import Compiled
from pipeline.models.cut import Taught
from pipeline.pairs import VALUE_MSE
from pipeline.relations import QKV, Divergence, divergence_and_gradient, relation_loss, value_mse
from pipeline.settings.recipe import Recipe
from pipeline.vectors import vector_losses


@dataclass
class Trainee:
    """A student in training: its recipe, its DeepSpeed engine, and the arithmetic of its loss.

    ``fused``: its loss is computed by the kernel, not by ``divergence``. ``names`` and ``tail`` are those of models.cut.split;
    ``teacher_layers`` those whose q, k, v the teacher's pass returns; ``history`` is that of start.Built;
    ``start`` is the step it resumes from, ``earlier_steps`` are those of resuming.py; ``unchecked`` losses, by step, are still
    to be found finite.
    """

    recipe: Recipe
    engine: Any
    divergence: Divergence = divergence_and_gradient
    fused: bool = False
    names: dict[str, str] = field(default_factory=dict)
    tail: dict[str, Tensor] = field(default_factory=dict)
    teacher_layers: tuple[int, ...] = ()
    history: list[dict] = field(default_factory=list)
    start: int = 0
    earlier_steps: list[list[int]] = field(default_factory=list)
    unchecked: dict[int, Tensor] = field(default_factory=dict)

    def losses(
        self, teacher: Taught, output: Taught, bounds: Bounds | None, part: slice = slice(None)
    ) -> dict[str, Tensor]:
        """The loss of ``output``, what the student's engine returned for sequences ``part`` of the ``teacher``'s, by part.

        Several layers are several sequences to the loss, which so takes the mean over them.
        """
        recipe = self.recipe
        if recipe.embeds:
            return {name: x.mean() for name, x in vector_losses(teacher[0][part], output[0], bounds).items()}
        targets = self.targets(teacher, part, output[0].shape[1])
        bounds = bounds and bounds.repeated(len(recipe.layers))
        student = QKV(*output[:3])
        how: dict[str, Any] = {"divergence": self.divergence, "fused": self.fused, "bounds": bounds}
        losses = relation_loss(targets, student, recipe.relations, recipe.relation_heads, **how)
        if VALUE_MSE in recipe.pairs:
            losses[VALUE_MSE] = value_mse(targets.v, output[3], bounds=bounds)
            losses["loss"] = losses["loss"] + losses[VALUE_MSE]
        return {name: losses[name] for name in ("loss", *recipe.pairs)}

    def loss_of_each(self, teacher: Taught, output: Taught, bounds: Bounds | None) -> list[Tensor]:
        """Compute the loss of each row alone, for looking at: scalars whose mean is ``losses``' of all.

        A row of texts is still compared with the others.
        """
        if self.recipe.embeds:
            return list(vector_losses(teacher[0], output[0], bounds)["loss"])
        # A compiled divergence would be compiled for one sequence too.
        eager = replace(self, divergence=divergence_and_gradient)
        rows = len(self.recipe.layers)  # of the output for a sequence
        found = []
        for i in range(len(output[0]) // rows):
            own = tuple(x[i * rows : (i + 1) * rows] for x in output)
            row = slice(i, i + 1)
            found.append(eager.losses(teacher, own, bounds and bounds.rows(row), row)["loss"])
        return found

    def targets(self, teacher: Taught, part: slice, length: int) -> QKV:
        """The teacher's q, k, v to learn from: ``part`` of the sequences, ``length`` positions, this student's layers."""
        if len(self.teacher_layers) <= 1:
            return QKV(*(x[part, :length] for x in teacher))
        chosen = [self.teacher_layers.index(layer) for layer in self.recipe.layers.values()]
        layers = len(self.teacher_layers)
        by_layer = (x.unflatten(0, (-1, layers))[part, :, :length] for x in teacher)  # [b, layers, T, width]
        return QKV(*(torch.stack([x[:, i] for i in chosen], 1).flatten(0, 1) for x in by_layer))


def divergence_of(recipe: Recipe) -> Divergence:
    """The loss's arithmetic, compiled unless ``recipe`` says otherwise."""
    if recipe.compile == "none":
        return divergence_and_gradient
    return Compiled(divergence_and_gradient, "the relation loss")
