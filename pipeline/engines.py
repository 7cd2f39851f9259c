"""DeepSpeed's engines: the teacher's hosting, the student's engine, and its whole state.

Two engines, not one. A small student wants ZeRO-0 or 1; a large teacher may have to be sharded over all ranks (ZeRO-3).
The comments name the behaviour of DeepSpeed 0.19 that made the code as it is. What is not used, and why:

* forward hooks on a ZeRO-3 model, which would see released weights and break backward: encoders return q, k, v;
* HfDeepSpeedConfig, and zero.Init as a context, which are global to the process and break fresh transformers models;
* its schedulers (WarmupLR is log-shaped and idle for two steps) and its checkpoints (a teacher engine's crashes, and a
  changed world size needs a conversion): see recipe.py and checkpoints.py;
* leaving a ZeRO-3 forward by an exception, after which its engine is lost: what can be refused is refused outside.
"""

import gc
import hashlib
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.compiling import Compiled
from pipeline.ds_config import load_ds_config
from pipeline.encoders import CutEncoder, weights_hash
from pipeline.plan_memory import Hosting, hosting_of
from pipeline.precision import DTYPES, fit_arithmetic
from pipeline.ranks import Ranks, on_first_rank, quietly
from pipeline.recipe import Recipe
from pipeline.relations import QKV

# ranks, imported first, has chosen the accelerator
# isort: split
import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
    set_z3_leaf_modules,
)

# DeepSpeed imports its Muon optimizer whichever is used, and with it all of torch's compiler: seconds of a start with
# compile = "none". It gets by these names what no optimizer of ours is, and what it never calls.
for _module, _name in (("muon_optimizer", "MuonWithAuxAdam"), ("original_muon", "muon_update")):
    _stand_in = types.ModuleType(f"deepspeed.runtime.zero.muon.{_module}")
    setattr(_stand_in, _name, type(_name, (), {}))
    sys.modules.setdefault(_stand_in.__name__, _stand_in)

MOMENTS = ("exp_avg", "exp_avg_sq")
_made: list = []  # the engines of this process


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


# --- the teacher ------------------------------------------------------------------------------------------------------


Teach = Callable[[Tensor], QKV]


def choose_hosting(recipe: Recipe, ranks: Ranks, teacher: CutEncoder) -> Hosting:
    """plan_memory.hosting_of for this ``teacher`` and these ``ranks``."""
    parameters, embeddings = (sum(p.numel() for p in part.parameters()) for part in (teacher, teacher.embeddings))
    return hosting_of(recipe, parameters, embeddings, _memory_per_rank(ranks), ranks.world, ranks.local_world)


def check_memory(recipes: list[Recipe], ranks: Ranks, hosting: Hosting, students: list[nn.Module]) -> None:
    """Raise UserError if teacher and students do not fit a rank's memory, even without a single activation."""
    needs = {"teacher": hosting.per_rank * DTYPES[recipes[0].precision].itemsize}
    for recipe, student in zip(recipes, students, strict=True):
        zero = load_ds_config(recipe.student.ds_config, recipe).get("zero_optimization", {}).get("stage", 0)
        low = DTYPES[recipe.precision].itemsize
        # Weights, gradients, and fp32 weights (of bf16) and moments: sharded from stage 3, 2 and 1 on. DeepSpeed's optimizer
        # for bf16 at stage 1 keeps fp32 gradients.
        parts = ((low, 3), (4 if zero == 1 else low, 2), (8 if recipe.precision == "fp32" else 12, 1))
        share = sum(size / (ranks.world if zero >= stage else 1) for size, stage in parts)
        needs[Path(recipe.out).name] = sum(p.numel() for p in student.parameters()) * share
    memory = _memory_per_rank(ranks)
    if sum(needs.values()) > memory:
        table = ", ".join(f"{name} {need / 2**30:.2f} GiB" for name, need in needs.items())
        raise UserError(
            f"{recipes[0].source}: weights, gradients and optimizer take {sum(needs.values()) / 2**30:.2f} GiB of a rank's "
            f"{memory / 2**30:.2f} GiB ({table}); train fewer students at once, use a higher ZeRO stage in student.ds_config, "
            "or more ranks"
        )


def _memory_per_rank(ranks: Ranks) -> int:
    if ranks.device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks.local_world
    return get_accelerator().total_memory()


def host_teacher(
    recipe: Recipe, ranks: Ranks, teacher: CutEncoder, hosting: Hosting, read: Callable[[str], Tensor]
) -> tuple[Teach, str]:
    """The frozen teacher as a function of input ids [B, T] on this rank's device, and the hash of its fp32 weights.

    ``teacher`` needs no memory for its parameters (see encoders.empty_encoder): ``read(name)`` gives them, asked on one rank
    of those that share a teacher, which sends each to the others. They are taken layer by layer, so a rank holds no
    more than its share and one layer at any time.
    """
    dtype, group, digest = DTYPES[recipe.precision], None, hashlib.sha256()
    config = load_ds_config(recipe.teacher.ds_config, recipe)
    # By default stage 3 replaces torch.nn.functional.linear for the whole process, student included.
    config["zero_optimization"]["memory_efficient_linear"] = False
    config |= _precision_config(recipe, 3) | _QUIET | {"train_micro_batch_size_per_gpu": 1}
    if hosting.kind == "zero3" and recipe.teacher.shard_group == "node":
        group = _node_group(ranks)
    reader = dist.get_global_rank(group, 0) if group else 0

    names = iter([name for name, _ in teacher.named_parameters()])
    body = teacher.body
    blocks = [teacher.embeddings, *body.layers, body.last]
    for block in blocks:
        sharded = hosting.kind == "zero3" and block is not teacher.embeddings
        for module in block.modules():
            for key, empty in list(module.named_parameters(recurse=False)):
                name, filled = next(names), torch.empty(empty.shape, dtype=dtype, device=ranks.device)
                if ranks.rank == reader:
                    value = read(name)
                    filled.copy_(value)
                    for part in value.detach().flatten().split(2**20) if ranks.first else ():
                        digest.update(part.float().view(torch.uint8).numpy())
                    del value
                if ranks.world > 1 and not sharded:
                    dist.broadcast(filled, reader, group)
                setattr(module, key, nn.Parameter(filled, requires_grad=False))
        if sharded:  # sends the first rank's and keeps a share of each
            with quietly(recipe.teacher.ds_config):
                deepspeed.zero.Init(block, data_parallel_group=group, config_dict_or_path=config, dtype=dtype)
    for module in teacher.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(ranks.device))
    teacher.eval()
    fit(teacher, recipe, ranks, "teacher")
    if hosting.kind == "zero3":
        if len(body.layers):
            set_z3_leaf_modules(body, list({type(layer) for layer in body.layers}))
        with quietly(recipe.teacher.ds_config):
            body, *_ = deepspeed.initialize(model=body, config=config, dist_init_required=False)
        _made.append(body)
        body.eval()

    @torch.no_grad()
    def forward(input_ids: Tensor) -> QKV:
        return body(*teacher.embed(input_ids))

    return forward, on_first_rank(ranks, lambda: digest.hexdigest()[:16])


def _node_group(ranks: Ranks):
    """The process group of this rank's node: ranks whose launcher counts from the same first one. Collective."""
    firsts: list = [None] * ranks.world
    dist.all_gather_object(firsts, ranks.rank - int(os.environ["LOCAL_RANK"]))
    groups = {
        first: dist.new_group([r for r in range(ranks.world) if firsts[r] == first]) for first in sorted(set(firsts))
    }
    return groups[firsts[ranks.rank]]


# --- the student ------------------------------------------------------------------------------------------------------


def student_engine(recipe: Recipe, ranks: Ranks, student: CutEncoder):
    """The student under DeepSpeed: micro-batches go through ``engine(ids)``, ``engine.backward`` and ``engine.step``.

    ``engine.backward`` divides by the accumulation steps and averages over ranks: losses go in undivided, and calls go
    through the engine, never its module, or gradients would not be synchronised.
    """
    config = load_ds_config(recipe.student.ds_config, recipe)
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage == 3:
        config["zero_optimization"]["memory_efficient_linear"] = False
    config |= _precision_config(recipe, stage) | {
        "train_batch_size": recipe.batch,
        "train_micro_batch_size_per_gpu": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.accumulation(ranks.world),
        "gradient_clipping": recipe.gradient_clipping,  # DeepSpeed's own default is 1.0, not none
    }
    fit(student, recipe, ranks, "student")
    optimizer = torch.optim.AdamW(
        decay_groups(student.parameters(), recipe.weight_decay),
        lr=recipe.learning_rate,
        betas=recipe.adam_betas,
        eps=recipe.adam_eps,
        fused=True,
    )
    with quietly(recipe.student.ds_config):
        engine, *_ = deepspeed.initialize(
            model=student,
            optimizer=optimizer,
            config=config | _QUIET,
            dist_init_required=False,
        )
    _made.append(engine)
    # The bf16 wrapper of stage 0 takes an empty first step on its own, which would leave Adam's bias correction one off.
    _set_updates(engine, 0)
    engine.resolved_config = config
    return engine


def decay_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict]:
    """Weight decay for matrices, none for biases and norms, as BERT was trained."""
    parameters = list(parameters)
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _precision_config(recipe: Recipe, stage: int) -> dict:
    if recipe.precision == "fp32":
        return {"data_types": {"grad_accum_dtype": "fp32"}}
    # Stage 0 under bf16 keeps fp32 master weights but refuses to accumulate gradients in anything but bf16.
    return {
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "bf16" if stage == 0 else "fp32"},
    }


# The throughput timer would synchronise the device every step; progress is ours to print.
_QUIET = {"steps_per_print": 2**31, "wall_clock_breakdown": False, "timers": {"throughput": {"enabled": False}}}


def fit(encoder: CutEncoder, recipe: Recipe, ranks: Ranks, name: str) -> None:
    """Give ``encoder`` the arithmetic that suits the device, and compile its layers if ``recipe`` says so."""
    fit_arithmetic(encoder, recipe.precision, ranks.device)
    if recipe.compile == "all":
        for layer in encoder.body.layers:
            layer.forward = Compiled(layer.forward, f"the {name}'s layers")


def release() -> None:
    """Free the engines of this process, which no one uses any more, as far as DeepSpeed lets go of them.

    Without this hooks hold all of them for ever. Of ZeRO-3's some part stays.
    """
    while _made:
        _made.pop().destroy()
    gc.collect()
    get_accelerator().empty_cache()


def set_learning_rate(engine, rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(engine) -> dict[str, float]:
    """{"gradient_norm": the global norm of the last update, before clipping}; empty where DeepSpeed computes none."""
    norm = engine.get_global_grad_norm()
    return {} if norm is None else {"gradient_norm": float(norm)}


def prime_optimizer(engine) -> None:
    """One update with zero gradients and rate 0: it changes nothing, but Adam's moments do not exist before a first."""
    set_learning_rate(engine, 0.0)
    ids = torch.zeros((1, 4), dtype=torch.long, device=engine.device)
    for _ in range(engine.gradient_accumulation_steps()):
        output = engine(ids)
        engine.backward(sum(x.float().sum() for x in output) * 0.0)
        engine.step()


def read_state(engine, names: dict[str, str], first: bool) -> dict[str, Tensor]:
    """The student's whole state, gathered by all ranks and returned (on the CPU) where ``first``.

    Keys: NAME for the fp32 weight and exp_avg/NAME, exp_avg_sq/NAME for Adam's moments, by the model's own names.
    """
    state = {}
    for name, weight, moments in _masters(engine):
        for key, read in {
            names[name]: weight,
            **{f"{m}/{names[name]}": moments[m] for m in MOMENTS},
        }.items():
            tensor = read.get()
            if first:
                state[key] = tensor.detach().float().cpu().clone()
    return state


def write_state(engine, names: dict[str, str], state: dict[str, Tensor], updates: int) -> None:
    """Put back what ``read_state`` gave, after ``updates`` optimizer steps, at any stage and number of ranks.

    Call ``prime_optimizer`` before. The bf16 copies are not touched: the module must have been given the same weights
    before its engine was made, or its first forward would run on stale ones.
    """
    for name, weight, moments in _masters(engine):
        weight.set(state[names[name]])
        for moment in MOMENTS:
            moments[moment].set(state[f"{moment}/{names[name]}"])
    _set_updates(engine, updates)


def _set_updates(engine, updates: int) -> None:
    """Tell Adam how many steps it has taken."""
    for values in engine.basic_optimizer.state.values():
        values["step"] = torch.full_like(torch.as_tensor(values["step"]), updates)


@dataclass(frozen=True)
class _Slot:
    """One whole fp32 tensor of the optimizer, wherever its pieces live. ``get`` is collective."""

    get: Callable[[], Tensor]
    set: Callable[[Tensor], None]


def _masters(engine) -> Iterator[tuple[str, _Slot, dict[str, _Slot]]]:
    """For each parameter: its name in the cut encoder, its fp32 weight, and Adam's moments."""
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        # Stages 1 and 2 link the moments of all parameter groups after the first group's step, when the others have none.
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    plain = _stage0_masters(engine)
    for name, parameter in engine.module.named_parameters():
        if plain is not None:
            master = plain[parameter]
            adam = engine.basic_optimizer.state[master]
            yield (
                name,
                _tensor_slot(master),
                {m: _tensor_slot(adam[m]) for m in MOMENTS},
            )
        else:
            yield (
                name,
                _zero_weight_slot(parameter),
                {m: _zero_moment_slot(parameter, m) for m in MOMENTS},
            )


def _stage0_masters(engine) -> dict[nn.Parameter, Tensor] | None:
    """At stage 0 DeepSpeed's accessors know no fp32 weights: they are the parameters, or the bf16 wrapper's copies."""
    if engine.zero_optimization_stage() != 0:
        return None
    if not hasattr(engine.optimizer, "fp32_groups"):
        return {parameter: parameter for parameter in engine.module.parameters()}
    groups = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
    return {low: high for lows, highs in groups for low, high in zip(lows, highs, strict=True)}


def _tensor_slot(tensor: Tensor) -> _Slot:
    return _Slot(lambda: tensor, lambda value: tensor.data.copy_(value))


def _zero_weight_slot(parameter: nn.Parameter) -> _Slot:
    put = safe_set_full_fp32_param if not hasattr(parameter, "ds_tensor") else safe_set_local_fp32_param
    return _Slot(
        lambda: safe_get_full_fp32_param(parameter),
        lambda value: put(parameter, _own_part(parameter, value)),
    )


def _zero_moment_slot(parameter: nn.Parameter, moment: str) -> _Slot:
    put = safe_set_full_optimizer_state if not hasattr(parameter, "ds_tensor") else safe_set_local_optimizer_state
    return _Slot(
        lambda: safe_get_full_optimizer_state(parameter, moment),
        lambda value: put(parameter, _own_part(parameter, value), moment),
    )


def _own_part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """``value`` whole; of a ZeRO-3 ``parameter`` this rank's part, the last ones padded.

    DeepSpeed's own setters of whole tensors do not pad, and fail where the ranks do not divide the size.
    """
    value = value.to(parameter.device)
    if not hasattr(parameter, "ds_tensor"):
        return value
    size, group = parameter.ds_tensor.numel(), parameter.ds_process_group
    padded = nn.functional.pad(value.flatten(), (0, size * dist.get_world_size(group) - value.numel()))
    return padded.split(size)[dist.get_rank(group)]
