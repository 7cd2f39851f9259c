"""DeepSpeed's bf16 optimizer of stage 1, whose gradients are handled as the few flat tensors that they lie in."""

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor


class FlatGradients(BF16_Optimizer):
    """Adds a micro-batch's gradients to the fp32 ones group by group; DeepSpeed's own loop takes two operations a parameter.

    The sums are the same bit for bit. With ``flat_norm`` the global norm, too, is taken group by group, not parameter by
    parameter, so that its last bits are others.
    """

    flat_norm = False

    @torch.no_grad()
    def update_hp_grads(self, clear_lp_grads: bool = False) -> None:
        """Add the bf16 gradients of all parameters to the fp32 ones, and free them. Called after each backward pass."""
        groups = list(zip(self.bf16_groups, self.fp32_groups_actual_gradients_flat, strict=True))
        if any(parameter.grad is None for group, _ in groups for parameter in group):
            return super().update_hp_grads(clear_lp_grads=clear_lp_grads)
        for number, (group, flat) in enumerate(groups):
            flat.add_(torch.cat([parameter.grad.flatten() for parameter in group]))
            for parameter in group:
                parameter.grad = None
            self.fp32_groups_has_gradients[number] = [True] * len(group)

    def get_grads_for_norm(self, for_clipping: bool = False) -> Any:
        """The gradients whose norm is taken, and which are scaled where it is too large."""
        if not self.flat_norm:
            return super().get_grads_for_norm(for_clipping)
        flat: list[Tensor] = self.fp32_groups_actual_gradients_flat
        return flat if for_clipping else (flat, {})


def flatten_gradients(engine: Any, flat_norm: bool) -> None:
    """Have the engine's optimizer handle its gradients by groups, if it is the one of bf16 at stage 1."""
    if type(engine.optimizer) is BF16_Optimizer:
        engine.optimizer.__class__ = FlatGradients
        engine.optimizer.flat_norm = flat_norm
