"""A student's word embedding between ranks: the rows that some rank has read, instead of the whole table.

A step reads few rows of a large vocabulary, and only they have a gradient: ranks send each other these, and add them up in
the order of ranks. All other gradients stay the zeros that they are, so that norm, clipping, Adam and decay do with each row
what they would do with a gradient that was averaged whole.

At ZeRO stages 1 and 2 each rank updates a part of the table, and DeepSpeed then sends all of it to all. Here a rank is sent
the rows that it is about to read, from the ranks that own them, and the whole table only where it is read without a gradient
or saved. Nothing has a size that depends on the ids, which would make the host wait for a GPU: each token counts as a row.
"""

from collections.abc import Callable
from typing import Any

import torch
from deepspeed import comm
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.zero import stage_1_and_2
from torch import Tensor, nn

from pipeline.engines.ranks import Ranks
from pipeline.engines.traffic import Table, sends_rows, sent_type
from pipeline.models.cut import CutEncoder, word_table
from pipeline.models.precision import DTYPES
from pipeline.settings.recipe import Recipe

_gather_groups = stage_1_and_2.all_gather_dp_groups


def _gather_other_groups(
    groups_flat: list, partitioned_param_groups: list, dp_process_group: list, **sizes: int
) -> None:
    """DeepSpeed's gathering of updated weights, without the tables whose rows are sent when they are read."""
    kept = [number for number, flat in enumerate(groups_flat) if not hasattr(flat, "stale")]
    for flat in groups_flat:
        if hasattr(flat, "stale"):
            flat.stale = True
    lists = ([each[number] for number in kept] for each in (groups_flat, partitioned_param_groups, dp_process_group))
    _gather_groups(*lists, **sizes)


for _module in (stage_1_and_2, bf16_optimizer):
    _module.all_gather_dp_groups = _gather_other_groups


class WordRows:
    """The traffic of the word embedding of one student, [V, width]."""

    def __init__(self, table: nn.Embedding, ranks: Ranks, tokens: int, sent: torch.dtype):
        """``tokens``: of a rank's micro-batch, at most. ``sent``: the type of gradients on their way."""
        self.weight = table.weight
        self._ranks, self._tokens, self._sent = ranks, tokens, sent
        self._read: list[Tensor] = []  # of each micro-batch since the last exchange, the ids on all ranks [W, tokens]
        self._flat: Any = None  # the padded table at stages 1 and 2; ``stale`` if other ranks have newer weights
        table.register_forward_pre_hook(self._before_reading)

    def own(self, flat: Any) -> None:
        """Have this rank keep only its part of the table ``flat`` up to date: one of as many equal ones as there are ranks."""
        self._flat, flat.stale = flat, False

    def _before_reading(self, _table: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not torch.is_grad_enabled():
            self.gather()
            return
        own = inputs[0].flatten()
        own = nn.functional.pad(own, (0, self._tokens - len(own))).int()
        ids = own.new_empty(self._ranks.world * self._tokens)
        comm.all_gather_into_tensor(ids, own)
        self._read.append(ids.view(self._ranks.world, -1).long())
        if self._flat is not None and self._flat.stale:
            self._fetch(self._read[-1])

    @torch.no_grad()
    def _fetch(self, ids: Tensor) -> None:
        """Bring this rank's rows up to date, of the ``ids`` [W, tokens] that all ranks are about to read.

        Each rank gives what it owns of everyone's rows, and zeros: as whole numbers, whose sum is exact for any bits.
        """
        weight, width = self.weight.data, self.weight.shape[1]
        share = self._flat.numel() // self._ranks.world
        first = (
            self._ranks.rank * share - ids.flatten()[:, None] * width
        )  # where this rank's part begins, from a row's begin
        place = torch.arange(width, device=ids.device)
        owned = (first <= place) & (place < first + share)
        rows = torch.where(owned, weight[ids.flatten()], 0)
        received = rows.new_empty(ids.shape[1], width)
        comm.reduce_scatter_tensor(received.view(torch.int32), rows.view(torch.int32))
        weight[ids[self._ranks.rank]] = received

    @torch.no_grad()
    def gather(self) -> None:
        """Bring the whole table up to date. Collective."""
        if self._flat is not None and self._flat.stale:
            share = self._flat.numel() // self._ranks.world
            comm.all_gather_into_tensor(self._flat, self._flat.narrow(0, self._ranks.rank * share, share))
            self._flat.stale = False

    @torch.no_grad()
    def average(self, gradient: Any) -> None:
        """Make ``gradient`` [V · width] or [V, width], of what was read since the last call, its mean over ranks."""
        gradient = gradient.view(self.weight.shape)
        ids = torch.cat(self._read, 1).sort(1).values  # [W, n]; what is read twice is sent once, and then zeros
        self._read.clear()
        own = ids[self._ranks.rank]
        twice = own.diff(prepend=own.new_full((1,), -1)) == 0
        rows = gradient[own].masked_fill_(twice[:, None], 0).to(self._sent)
        everyones = rows.new_empty(ids.numel(), rows.shape[1])
        comm.all_gather_into_tensor(everyones, rows)
        gradient[own] = 0
        for theirs, sent in zip(ids, everyones.view(*ids.shape, -1), strict=True):
            gradient.index_add_(0, theirs, sent.to(gradient.dtype))
        touched = ids.flatten()
        gradient[touched] = gradient[touched] * (1 / self._ranks.world)


def word_rows(recipe: Recipe, ranks: Ranks, student: CutEncoder) -> WordRows | None:
    """What sends rows of the student's word embedding, or None where it travels whole. Call before its engine is made."""
    table = word_table(student)
    if not sends_rows(recipe, Table(*table.weight.shape), ranks.world):
        return None
    return WordRows(table, ranks, recipe.micro_batch * recipe.length, DTYPES[sent_type(recipe)])


def take_rows_out(engine: Any, rows: WordRows) -> None:
    """Have ``engine`` leave its word embedding to ``rows``. At stages 1 and 2 it is alone in the first group of parameters."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if isinstance(optimizer, stage_1_and_2.DeepSpeedZeroOptimizer):
        rows.own(optimizer.bit16_groups_flat[0])
        optimizer.reduce_ready_partitions_and_remove_grads = _averaging(optimizer, rows)
    else:
        if stage > 0:
            rows.own(optimizer.bf16_groups_flat[0])
        engine.buffered_allreduce_fallback = _averaging_at_the_end(engine, rows)


def _averaging_at_the_end(engine: Any, rows: WordRows) -> Callable[..., None]:
    """DeepSpeed's averaging of all gradients at stage 0, and of flat ones in fp32 under bf16 at stage 1."""
    average_dense, optimizer = engine.buffered_allreduce_fallback, engine.optimizer

    def average(grads: Any = None, **sizes: Any) -> None:
        if engine.zero_optimization_stage() > 0:
            words, *others = optimizer.get_grads_for_reduction()[0]
            rows.average(words[: rows.weight.numel()])
        else:
            rows.average(rows.weight.grad)
            others = []
            for parameter in engine.module.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                if parameter is not rows.weight:
                    others.append(parameter.grad.data)
        average_dense(grads=others, **sizes)

    return average


def _averaging(optimizer: Any, rows: WordRows) -> Callable[[Any, int], None]:
    """DeepSpeed's averaging of one parameter's gradient, under fp32 at stage 1 and at stage 2."""
    average_dense = optimizer.reduce_ready_partitions_and_remove_grads

    def average(parameter: Any, group: int) -> None:
        if parameter is not rows.weight:
            average_dense(parameter, group)
            return
        gradient: Any = parameter.grad
        rows.average(gradient)
        number = optimizer.get_param_id(parameter)
        if optimizer._use_compact_grad_partition_buffer(group):  # noqa: SLF001 - DeepSpeed has no other way
            rank, size = comm.get_rank(), int(optimizer.partition_size[group])
            part = gradient.flatten()[rank * size : (rank + 1) * size]
            output = optimizer._get_compact_grad_partition_slice(group, rank, number, len(part))  # noqa: SLF001 - nor here
            output.add_(part)
            optimizer.clear_grad_attribute(parameter)
        elif optimizer.partition_gradients and not optimizer.is_param_in_current_partition[number]:
            optimizer.clear_grad_attribute(parameter)

    return average
