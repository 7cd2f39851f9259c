"""A student's engine."""

from collections.abc import Iterable

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.engines.both import QUIET, fit, made, precision_config
from pipeline.engines.ds_config import load_ds_config
from pipeline.engines.gradients import flatten_gradients
from pipeline.engines.ranks import Ranks, quietly
from pipeline.engines.rows import take_rows_out, word_rows
from pipeline.engines.state import write_masters
from pipeline.models.cut import CutEncoder, word_table
from pipeline.models.weights import weights_hash
from pipeline.settings.recipe import Recipe


def send_weights(ranks: Ranks, student: nn.Module) -> None:
    """Give every rank the student's weights that the first one has: another CPU would compute other last bits of them."""
    for parameter in student.parameters() if ranks.world > 1 else ():
        sent = parameter.detach().to(ranks.device)
        dist.broadcast(sent, 0)
        parameter.data.copy_(sent)


def check_same_weights(ranks: Ranks, student: nn.Module) -> str:
    """The hash of the student's weights, compared over all ranks: under ZeRO each rank keeps a part of *its own* copy."""
    hashes: list = [None] * ranks.world
    dist.all_gather_object(hashes, weights_hash(student.parameters()))
    if len(set(hashes)) > 1:
        raise RuntimeError(f"ranks hold different students: {hashes}")
    return hashes[0]


def student_engine(recipe: Recipe, ranks: Ranks, student: CutEncoder):
    """The student under DeepSpeed: micro-batches go through ``engine(ids)``, ``engine.backward`` and ``engine.step``.

    ``engine.backward`` divides by the accumulation steps and averages over ranks: losses go in undivided, and calls go
    through the engine, never its module, or gradients would not be synchronised.
    """
    config = load_ds_config(recipe.student.ds_config, recipe)
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage == 3:
        config["zero_optimization"]["memory_efficient_linear"] = False
    config |= precision_config(recipe, stage) | {
        "train_batch_size": recipe.batch,
        "train_micro_batch_size_per_gpu": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.accumulation(ranks.world),
        "gradient_clipping": recipe.gradient_clipping,  # DeepSpeed's own default is 1.0, not none
    }
    fit(student, recipe, ranks, "student")
    rows = word_rows(recipe, ranks, student)
    alone = word_table(student).weight if stage in (1, 2) and ranks.world > 1 else None
    optimizer = torch.optim.AdamW(
        decay_groups(student.parameters(), recipe.weight_decay, alone),
        lr=recipe.learning_rate,
        betas=(recipe.adam_betas[0], recipe.adam_betas[1]),
        eps=recipe.adam_eps,
        fused=True,
    )
    weights = {name: parameter.detach() for name, parameter in student.named_parameters()}  # no copies
    with quietly(recipe.student.ds_config):
        engine, *_ = deepspeed.initialize(
            model=student,
            optimizer=optimizer,
            config=config | QUIET,
            dist_init_required=False,
        )
    flatten_gradients(engine, flat_norm=recipe.compile == "all")
    if rows:
        take_rows_out(engine, rows)
    engine.word_rows = rows
    made.append(engine)
    write_masters(engine, weights)
    engine.resolved_config = config
    return engine


def decay_groups(parameters: Iterable[Tensor], weight_decay: float, alone: Tensor | None = None) -> list[dict]:
    """Weight decay for matrices, none for biases and norms, as BERT was trained. A matrix ``alone`` is the first group."""
    parameters = [p for p in parameters if p is not alone]
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    return [
        *([] if alone is None else [{"params": [alone], "weight_decay": weight_decay}]),
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def gradient_norm(engine) -> dict[str, float]:
    """{"gradient_norm": the global norm of the last update, before clipping}; empty where DeepSpeed computes none."""
    norm = engine.get_global_grad_norm()
    return {} if norm is None else {"gradient_norm": float(norm)}
