"""A student's whole state, read from its engine and put back, at any ZeRO stage and number of ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from data_prep.cli import UserError
from pipeline.artifacts.checkpoints import MOMENTS


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

    Keys: NAME for the fp32 weight and exp_avg/NAME, exp_avg_sq/NAME for Adam's moments, by the model's own names. Raises
    UserError on every rank if a weight is not the one that is trained: settings of DeepSpeed can make its accessors return
    others, and a run then looks right while its checkpoints are not.
    """
    if engine.word_rows:
        engine.word_rows.gather()
    state, trained = {}, dict(engine.module.named_parameters())
    wrong = torch.zeros(len(trained), device=engine.device)
    for number, (name, weight, moments) in enumerate(_masters(engine)):
        for key, slot in {names[name]: weight, **{f"{m}/{names[name]}": moments[m] for m in MOMENTS}}.items():
            tensor = slot.get()
            if slot is weight and not _is_trained(trained[name], tensor):
                wrong[number] = 1
            if first:
                state[key] = tensor.detach().float().cpu().clone()
    dist.all_reduce(wrong)
    for name in (name for name, ranks in zip(trained, wrong.tolist(), strict=True) if ranks):
        raise UserError(
            f"{names[name]}: DeepSpeed returns another fp32 weight than the one that is trained; nothing was saved: remove "
            "unusual keys from student.ds_config"
        )
    return state


def _is_trained(parameter: nn.Parameter, weight: Tensor) -> bool:
    """Whether the fp32 ``weight``, rounded, is what the module computes with: this rank's part of it at stage 3.

    One that is not finite equals nothing, and is rejected where it would be written.
    """
    own = getattr(parameter, "ds_tensor", parameter).detach().flatten()
    rounded = _own_part(parameter, weight).flatten().to(own.dtype)
    if hasattr(parameter, "ds_tensor"):  # the last ranks' parts are padded with anything
        first = dist.get_rank(getattr(parameter, "ds_process_group")) * own.numel()  # noqa: B009 - DeepSpeed's attribute
        real = min(max(weight.numel() - first, 0), own.numel())
        own, rounded = own[:real], rounded[:real]
    return torch.equal(own, rounded) or not bool(rounded.isfinite().all())


def write_state(engine, names: dict[str, str], state: dict[str, Tensor], updates: int) -> None:
    """Put back what ``read_state`` gave, after ``updates`` optimizer steps, at any stage and number of ranks.

    Call ``prime_optimizer`` before. The bf16 copies are not touched: the module must have been given the same weights
    before its engine was made, or its first forward would run on stale ones.
    """
    for name, weight, moments in _masters(engine):
        weight.set(state[names[name]])
        for moment in MOMENTS:
            moments[moment].set(state[f"{moment}/{names[name]}"])
    set_updates(engine, updates)


def write_masters(engine, weights: dict[str, Tensor]) -> None:
    """Give a new engine the fp32 ``weights`` that its student had, by the cut's names, and no update behind it.

    Under bf16 DeepSpeed makes its masters of weights that are rounded already; the wrapper of stage 0 then takes an empty
    first step, which decays them once and would leave Adam's bias correction one off.
    """
    slots = _weight_slots(engine)
    for name, parameter in engine.module.named_parameters():
        slots(parameter).set(weights[name])
    set_updates(engine, 0)


def set_updates(engine, updates: int) -> None:
    """Set the number of steps that Adam has taken."""
    for values in engine.basic_optimizer.state.values():
        values["step"] = torch.full_like(torch.as_tensor(values["step"]), updates)


@dataclass(frozen=True)
class _Slot:
    """One whole fp32 tensor of the optimizer, wherever its pieces live. ``get`` is collective."""

    get: Callable[[], Tensor]
    set: Callable[[Tensor], object]


def _masters(engine) -> Iterator[tuple[str, _Slot, dict[str, _Slot]]]:
    """For each parameter: its name in the cut encoder, its fp32 weight, and Adam's moments."""
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        # Stages 1 and 2 link the moments of all parameter groups after the first group's step, when the others have none.
        engine.optimizer._hp_optimizer_states_linked = False  # noqa: SLF001 - DeepSpeed has no other way
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # noqa: SLF001
    slots, plain = _weight_slots(engine), _stage0_masters(engine)
    for name, parameter in engine.module.named_parameters():
        if plain is None:
            moments = {m: _zero_moment_slot(parameter, m) for m in MOMENTS}
        else:
            adam = engine.basic_optimizer.state[plain[parameter]]
            moments = {m: _tensor_slot(adam[m]) for m in MOMENTS}
        yield name, slots(parameter), moments


def _weight_slots(engine) -> Callable[[nn.Parameter], _Slot]:
    """The fp32 weight of each parameter of the cut encoder."""
    plain = _stage0_masters(engine)
    return _zero_weight_slot if plain is None else lambda parameter: _tensor_slot(plain[parameter])


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
    size, group = parameter.ds_tensor.numel(), getattr(parameter, "ds_process_group")  # noqa: B009 - DeepSpeed's attribute
    padded = nn.functional.pad(value.flatten(), (0, size * dist.get_world_size(group) - value.numel()))
    return padded.split(size)[dist.get_rank(group)]


def set_learning_rate(engine, rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
