"""Native DeepSpeed configs: what they may hold beside a recipe, and what DeepSpeed would take or drop in silence."""

import difflib
import json
from pathlib import Path

from data_prep.errors import UserError
from pipeline.recipe import DS_CONFIGS, Recipe

# What these files may hold: what only DeepSpeed knows. DeepSpeed itself ignores a misspelt top-level key in silence.
_DS_KEYS = {
    "zero_optimization", "communication_data_type", "prescale_gradients", "gradient_predivide_factor", "aio",
    "comms_logger", "flops_profiler", "memory_breakdown", "dump_state",
}  # fmt: skip
_RECIPE_KEYS = {
    "train_batch_size": "batch", "train_micro_batch_size_per_gpu": "micro_batch", "optimizer": "learning_rate",
    "gradient_accumulation_steps": "batch and micro_batch", "gradient_clipping": "gradient_clipping",
    "scheduler": "warmup_steps", "bf16": "precision", "fp16": "precision", "data_types": "precision",
    "torch_autocast": "precision",
}  # fmt: skip

# What DeepSpeed would take in zero_optimization, and this project does not.
_ZERO_REFUSED = {
    "offload_optimizer": "not supported; the student is small, remove it",
    "cpu_offload": "a former key, which DeepSpeed drops; a teacher is offloaded by offload_param",
    "cpu_offload_param": "a former key, which DeepSpeed drops; a teacher is offloaded by offload_param",
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
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(sorted(p.name for p in DS_CONFIGS.glob("*.json")))
        raise UserError(f"{recipe.source}: ds_config = {name!r}: no such file; shipped are {shipped}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid JSON: {error}") from None
    zero = config.get("zero_optimization", {}) if isinstance(config, dict) else None
    if not isinstance(zero, dict):
        raise UserError(f"{file}: must be a JSON object whose zero_optimization, if any, is an object too")
    for key in config:
        if key in _RECIPE_KEYS:
            raise UserError(
                f"{file}: {key}: belongs to the recipe ({recipe.source}: {_RECIPE_KEYS[key]}); remove it here"
            )
        if key not in _DS_KEYS:
            near = difflib.get_close_matches(key, _DS_KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(sorted(_DS_KEYS))}"
            raise UserError(f"{file}: {key}: unknown or removed DeepSpeed key; {hint}")
    _refuse_auto(config, file, "")
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
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
    if "offload_param" in zero and stage != 3:
        raise UserError(
            f"{file}: zero_optimization.offload_param: does nothing at stage {stage}; use stage 3, or remove it"
        )
    _check_zero_keys(zero, file)
    return config


def _refuse_auto(value, file: Path, key: str) -> None:
    if value == "auto":
        raise UserError(f'{file}: {key} = "auto": DeepSpeed drops it silently; write the value')
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_auto(inner, file, f"{key}.{name}".lstrip("."))


def _check_zero_keys(zero: dict, file: Path) -> None:
    """Raise UserError for a key of zero_optimization that DeepSpeed does not know, or whose value it does not take."""
    from pipeline.ranks import quietly  # importing DeepSpeed takes seconds

    # isort: split
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    with quietly(f"{file}: zero_optimization"):
        DeepSpeedZeroConfig(**zero)
