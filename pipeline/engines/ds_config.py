"""Native DeepSpeed configs: what they may hold next to a recipe; keys that DeepSpeed would drop in silence are refused."""

import difflib
import functools
import json
import math
from pathlib import Path

from data_prep.cli import UserError
from pipeline.settings.recipe import Recipe

# What these files may hold, and of what type: what only DeepSpeed knows. DeepSpeed itself ignores what is misspelt outside of
# zero_optimization in silence, and ends with a traceback at a wrong value.
_DS_KEYS: dict[str, type | dict | tuple] = {
    "zero_optimization": dict,  # looked at by DeepSpeed's own model of it
    "communication_data_type": ("bf16", "fp32"),  # fp16 would lose small gradients in silence
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "comms_logger": {"enabled": bool, "prof_all": bool, "prof_ops": list, "verbose": bool, "debug": bool},
    "flops_profiler": {
        "enabled": bool, "recompute_fwd_factor": float, "profile_step": int, "module_depth": int, "top_modules": int,
        "detailed": bool, "output_file": str,
    },
    "memory_breakdown": bool,
    "dump_state": bool,
}  # fmt: skip
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list"}
_RECIPE_KEYS = {
    "train_batch_size": "batch", "train_micro_batch_size_per_gpu": "micro_batch", "optimizer": "learning_rate",
    "gradient_accumulation_steps": "batch and micro_batch", "gradient_clipping": "gradient_clipping",
    "scheduler": "warmup_steps", "bf16": "precision", "fp16": "precision", "data_types": "precision",
    "torch_autocast": "precision",
}  # fmt: skip

# What DeepSpeed would take in zero_optimization, and this project does not.
_ZERO_REFUSED = {
    "offload_optimizer": "not supported; the student is small, remove it",
    "cpu_offload_use_pin_memory": "an old key; it is offload_param's pin_memory now",
    "stage3_gather_fp16_weights_on_model_save": "an old key of DeepSpeed's checkpoints, which are not used here; remove it",
    "elastic_checkpoint": "an old key of DeepSpeed's checkpoints, which are not used here; remove it",
    "legacy_stage1": "an old form of stage 1, which DeepSpeed no longer has; remove it",
    "round_robin_gradients": "DeepSpeed's accessors then return other weights than those that are trained; remove it",
    "zenflow": "updates the student in another way than the recipe says; remove it",
    "cpu_offload": "an old key, which DeepSpeed drops; a teacher is offloaded by offload_param",
    "cpu_offload_param": "an old key, which DeepSpeed drops; a teacher is offloaded by offload_param",
    "memory_efficient_linear": "would replace torch's linear layer for the whole process, student and teacher; remove it",
    "zero_hpz_partition_size": "a second way to shard within a node; use the recipe's teacher.shard_group = 'node'",
    "zero_quantized_weights": "a sharded teacher must be exact; remove it",
    "zero_quantized_nontrainable_weights": "a sharded teacher must be exact; remove it",
    "zero_quantized_gradients": "gradients are not quantized here; remove it",
}


def load_ds_config(name: str, recipe: Recipe) -> dict:
    """A native DeepSpeed config: a file in ds_configs/ by its bare name, or a path. Raises UserError on a clash."""
    file = Path(name) if "/" in name else DS_CONFIGS / name
    try:
        config = json.loads(_text(file), object_pairs_hook=_once)
    except FileNotFoundError:
        shipped = ", ".join(sorted(p.name for p in DS_CONFIGS.glob("*.json")))
        raise UserError(f"{recipe.source}: ds_config = {name!r}: no such file; shipped are {shipped}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read as a ds_config ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON: {error}") from None
    zero = config.get("zero_optimization", {}) if isinstance(config, dict) else None
    if not isinstance(zero, dict):
        raise UserError(f"{file}: must be a JSON object whose zero_optimization, if any, is an object too")
    for key in (key for key in config if key in _RECIPE_KEYS):
        raise UserError(f"{file}: {key}: belongs to the recipe ({recipe.source}: {_RECIPE_KEYS[key]}); remove it here")
    _refuse_auto(config, file, "")
    _check_keys(config, _DS_KEYS, file, "")
    _check_stage(name, zero, recipe, file)
    _check_averaging(config, zero, recipe, file)
    _check_zero_keys(zero, file)
    return config


@functools.cache
def _text(file: Path) -> str:
    """The file's text, read once in a process: all that a run takes from it is of one version."""
    return file.read_text(encoding="utf-8")


def _check_stage(name: str, zero: dict, recipe: Recipe, file: Path) -> None:
    """Raise UserError for a stage that does not go with the recipe, and for keys that do not go with the stage."""
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise UserError(f"{file}: zero_optimization.stage = {stage!r}: must be 0, 1, 2 or 3")
    if name == recipe.teacher.ds_config and stage != 3:
        # Without an optimizer DeepSpeed refuses stages 1 and 2, and stage 0 is what hosting = "replicate" does.
        raise UserError(
            f"{file}: zero_optimization.stage = {stage}: a teacher is hosted at stage 3, or hosting = 'replicate'"
        )
    if name == recipe.student.ds_config and stage == 3 and recipe.compile == "all":
        raise UserError(
            f"{recipe.source}: compile = 'all': a student at stage 3 ({file}) gathers its weights between operations, which "
            "cannot be compiled; use compile = 'loss' or a lower stage"
        )
    for key, why in _ZERO_REFUSED.items():
        if zero.get(key):
            raise UserError(f"{file}: zero_optimization.{key}: {why}")
    for key in zero:
        if stage != 3 and (key == "offload_param" or key.startswith("stage3_")):
            raise UserError(
                f"{file}: zero_optimization.{key}: does nothing at stage {stage}; use stage 3, or remove it"
            )


def _check_averaging(config: dict, zero: dict, recipe: Recipe, file: Path) -> None:
    """Raise UserError for ways to scale and measure gradients that DeepSpeed rejects once models are loaded.

    Of the norm: in runtime/zero/config.py, runtime/zero/stage_1_and_2.py, and runtime/engine.py for bf16 at stage 1.
    """
    stage, factor = zero.get("stage", 0), config.get("gradient_predivide_factor", 1.0)
    if not 0 < factor < math.inf:
        raise UserError(f"{file}: gradient_predivide_factor = {factor}: must be above 0 and finite")
    scattered = stage >= 2 and zero.get("reduce_scatter", True)
    for key, changed in (
        ("gradient_predivide_factor", factor != 1.0),
        ("prescale_gradients", config.get("prescale_gradients", False)),
    ):
        if scattered and changed:
            raise UserError(
                f"{file}: {key} = {json.dumps(config[key])}: DeepSpeed has it at stage {stage} without reduce_scatter only; "
                "remove it, or use stage 0 or 1"
            )
    if not zero.get("compute_grad_norm", True):
        key = f"{file}: zero_optimization.compute_grad_norm = false"
        if recipe.gradient_clipping > 0:
            raise UserError(
                f"{key}: the norm is what gradients are clipped by; remove it, or set gradient_clipping = 0"
            )
        if stage not in (1, 2) or (stage == 1 and recipe.precision == "bf16"):
            raise UserError(f"{key}: DeepSpeed has it at stage 2, and at stage 1 with precision = 'fp32'; remove it")


def _once(pairs: list[tuple]) -> dict:
    """A JSON object; of a key that is there twice Python would keep the second."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return values


def _refuse_auto(value, file: Path, key: str) -> None:
    if value == "auto":
        raise UserError(f'{file}: {key} = "auto": DeepSpeed drops it silently; write the value')
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_auto(inner, file, f"{key}.{name}".lstrip("."))


def _check_keys(values: dict, known: dict, file: Path, prefix: str) -> None:
    """Raise UserError for a key that is not ``known``, or whose value is none of its kind."""
    for key, value in values.items():
        name, kind = prefix + key, known.get(key)
        if kind is None:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"allowed are {', '.join(sorted(known))}"
            raise UserError(f"{file}: {name}: unknown or removed DeepSpeed key; {hint}")
        if isinstance(kind, dict):
            if not isinstance(value, dict):
                raise UserError(f"{file}: {name} = {value!r}: must be an object with {', '.join(kind)}")
            _check_keys(value, kind, file, f"{name}.")
        elif isinstance(kind, tuple):
            if value not in kind:
                raise UserError(f"{file}: {name} = {value!r}: must be one of {', '.join(kind)}")
        elif type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"{file}: {name} = {value!r}: must be {_NAMES[kind]}")


def _check_zero_keys(zero: dict, file: Path) -> None:
    """Raise UserError for a key of zero_optimization that DeepSpeed does not know, or whose value it does not take."""
    from pipeline.engines.ranks import quietly  # importing DeepSpeed takes seconds

    # isort: split
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    with quietly(f"{file}: zero_optimization"):
        known = DeepSpeedZeroConfig(**zero)
    if known.offload_param and known.offload_param.device == "nvme":
        raise UserError(
            f"{file}: zero_optimization.offload_param.device = 'nvme': not supported; use 'cpu', the host's memory"
        )


DS_CONFIGS = Path(__file__).parent.parent.parent / "ds_configs"
