"""The teacher's engine: a replica on each rank, or shards of each layer (ZeRO-3)."""

import hashlib
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    set_z3_leaf_modules,
)
from torch import Tensor, nn

from pipeline.engines.both import QUIET, fit, made, precision_config
from pipeline.engines.ds_config import load_ds_config
from pipeline.engines.graphs import graphed
from pipeline.engines.hosting import Hosting
from pipeline.engines.ranks import Ranks, on_first_rank, quietly, wait_for_all
from pipeline.models.cut import CutEncoder, LayerWithQKV, Taught
from pipeline.models.precision import DTYPES
from pipeline.settings.recipe import Recipe

Teach = Callable[..., Taught]  # input ids [B, T], and what Inputs.told says of them


def host_teacher(
    recipe: Recipe, ranks: Ranks, teacher: CutEncoder, hosting: Hosting, read: Callable[[str], Tensor]
) -> tuple[Teach, dict[int, str]]:
    """The frozen teacher as a function on this rank's device, and the hash of its fp32 weights by the layer of a cut.

    It takes input ids [B, T], and by their names what CutEncoder.embed is told of them. The hash at an earlier layer that
    gives its q, k and v is that of a teacher which is cut there: a student's teacher is the same whoever else learns of it.

    ``teacher`` needs no memory for its parameters (see models.cut.empty_encoder): ``read(name)`` gives them, asked on one rank
    of those that share a teacher, which sends each to the others. They are taken layer by layer, so a rank holds no
    more than its share and one layer at any time.
    """
    dtype, group = DTYPES[recipe.precision], None
    config = load_ds_config(recipe.teacher.ds_config, recipe)
    # By default stage 3 replaces torch.nn.functional.linear for the whole process, student included.
    config["zero_optimization"]["memory_efficient_linear"] = False
    config |= precision_config(recipe, 3) | QUIET | {"train_micro_batch_size_per_gpu": 1}
    if hosting.kind == "zero3" and recipe.teacher.shard_group == "node":
        group = _node_group(ranks)

    def shard(block: nn.Module) -> None:  # sends the first rank's and keeps a share of each
        with quietly(recipe.teacher.ds_config):
            deepspeed.zero.Init(block, data_parallel_group=group, config_dict_or_path=config, dtype=dtype)

    body = teacher.body
    digests = _fill(teacher, ranks, dtype, read, group, shard if hosting.kind == "zero3" else None)
    _place(teacher, ranks.device, digests[max(digests)])
    teacher.eval()
    fit(teacher, recipe, ranks, "teacher", sharded=hosting.kind == "zero3", keeps_widened=hosting.widened > 0)
    if hosting.kind == "zero3":
        if len(body.layers):
            set_z3_leaf_modules(body, list({type(layer) for layer in body.layers}))
        with quietly(recipe.teacher.ds_config):
            body, *_ = deepspeed.initialize(model=body, config=config, dist_init_required=False)
        made.append(body)
        body.eval()

    @torch.no_grad()
    def forward(input_ids: Tensor, **told: Any) -> Taught:
        found = body(*teacher.embed(input_ids, **told))
        return teacher.finished(found, input_ids, padded=told.get("padded"), pieces=told.get("pieces"))

    teach = forward if teacher.pooling else graphed(forward, recipe, hosting, ranks.device)
    return teach, dict(on_first_rank(ranks, _digests, digests))


def _fill(
    teacher: CutEncoder,
    ranks: Ranks,
    dtype: torch.dtype,
    read: Callable[[str], Tensor],
    group: Any,
    shard: Callable[[nn.Module], None] | None,
) -> dict[int, Any]:
    """Give the ``teacher`` its weights, block by block, and ``shard`` each but the embeddings.

    Returns the hashes, on the first rank alone of weights, by the layer of a cut.
    """
    reader = dist.get_global_rank(group, 0) if group else 0
    name_of = {id(parameter): name for name, parameter in teacher.named_parameters()}
    names, digest, digests = iter(list(name_of.values())), hashlib.sha256(), {}
    _find(ranks, reader, lambda: read(next(iter(name_of.values()))))
    body = teacher.body
    for number, block in enumerate([teacher.embeddings, *body.layers, body.last]):
        if ranks.first and isinstance(block, LayerWithQKV):
            digests[number] = digest.copy()
            for parameter in block.projections().parameters():
                _add(digests[number], read(name_of[id(parameter)]))
        sharded = shard is not None and block is not teacher.embeddings
        for module in block.modules():
            for key, empty in list(module.named_parameters(recurse=False)):
                name, filled = next(names), torch.empty(empty.shape, dtype=dtype, device=ranks.device)
                if ranks.rank == reader:
                    value = read(name)
                    filled.copy_(value)
                    if ranks.first:
                        _add(digest, value)
                    del value
                if ranks.world > 1 and not sharded:
                    dist.broadcast(filled, reader, group)
                setattr(module, key, nn.Parameter(filled, requires_grad=False))
        if shard is not None and sharded:
            shard(block)
    return digests | {len(body.layers) + (teacher.pooling is None): digest}


def _add(digest: Any, value: Tensor) -> None:
    """Hash ``value`` as fp32."""
    for part in value.detach().flatten().split(2**20):
        digest.update(part.float().view(torch.uint8).numpy())


def _digests(by_layer: dict[int, Any]) -> list[tuple[int, str]]:
    return [(layer, digest.hexdigest()[:16]) for layer, digest in by_layer.items()]


def _place(teacher: CutEncoder, device: torch.device, digest: Any) -> None:
    """Move buffers to ``device``, and a pooling's maps, whole and in fp32; what it computes is hashed with the weights."""
    for module in teacher.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    digest.update(str(teacher.pooling or "").encode())
    for each in teacher.pooling.maps if teacher.pooling else ():
        for tensor in each.state_dict().values():
            digest.update(tensor.numpy())
        each.to(device)


def _find(ranks: Ranks, reader: int, read: Callable[[], object]) -> None:
    """Let each reader read once before the first broadcast: fetching its files may take longer than that may wait."""
    if ranks.rank == reader:
        read()
    wait_for_all(ranks)


def _node_group(ranks: Ranks):
    """The process group of this rank's host. Collective."""
    groups = {node: dist.new_group(list(node)) for node in ranks.nodes}
    return next(group for node, group in groups.items() if ranks.rank in node)
