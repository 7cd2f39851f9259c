"""A recipe's values: from TOML or JSON into the frozen dataclasses, each key checked against its annotation."""

import dataclasses
import difflib
import typing
from typing import Any, Literal, TypeVar, cast

from data_prep.cli import UserError
from pipeline.settings.recipe import PLACE, Recipe, Student, Teacher

Tables = dict[str, Any]  # as a TOML or JSON reader gives them
Built = TypeVar("Built")


def recipe_of(values: object, source: str) -> Recipe:
    """The recipe that ``Recipe.to_dict`` gave these values of. Raises UserError naming ``source`` if none can have.

    Runs of before there were segments read single ones, whatever the teacher.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: recipe = {values!r} is not what a run writes")
    recipe = build(Recipe, {"segments": "single"} | values, source)
    recipe.check()
    return recipe


def build(kind: type[Built], values: Tables, source: str, prefix: str = "") -> Built:
    """``kind`` from a TOML table, each key checked against the dataclass's own annotations."""
    fields = {spec.name: spec for spec in dataclasses.fields(cast(Any, kind)) if spec.name not in PLACE}
    for key in values:
        if key not in fields:
            raise UserError(f"{source}: {prefix}{key} = {values[key]!r}: unknown key; {_guess(key, prefix)}")
    types = typing.get_type_hints(kind)
    ready: Tables = {}
    for name, spec in fields.items():
        if name in values:
            ready[name] = _value(types[name], values[name], source, prefix + name)
        elif spec.default is dataclasses.MISSING:
            raise UserError(f"{source}: {prefix}{name} is missing; it must be set to {_describe(types[name])}")
    if kind is Recipe:
        ready["source"] = source
    return kind(**ready)


# What other tools call a key.
_ELSEWHERE = {
    "lr": "learning_rate", "peak_lr": "learning_rate", "warmup": "warmup_steps", "warmup_ratio": "warmup_steps",
    "epochs": "steps", "num_train_epochs": "steps", "max_steps": "steps", "iterations": "steps",
    "batch_size": "batch", "bs": "batch",
    "train_batch_size": "batch", "per_device_train_batch_size": "micro_batch", "micro_batch_size": "micro_batch",
    "max_length": "length", "max_seq_length": "length", "max_seq_len": "length", "seq_len": "length", "seq_length": "length",
    "output": "out", "output_dir": "out", "out_dir": "out", "dataset": "data", "corpus": "data", "train_data": "data",
    "wd": "weight_decay", "decay": "weight_decay", "clip": "gradient_clipping", "max_grad_norm": "gradient_clipping",
    "grad_clip": "gradient_clipping", "fp16": "precision", "bf16": "precision", "dtype": "precision", "betas": "adam_betas",
    "eps": "adam_eps", "alpha": "sampling_alpha", "temperature": "sampling_alpha", "relations": "pairs",
    "num_layers": "student.layers", "num_hidden_layers": "student.layers", "hidden_size": "student.hidden",
    "width": "student.hidden", "num_attention_heads": "student.heads", "num_heads": "student.heads",
    "teacher_layer": "teacher.layer", "path": "teacher.model", "save_steps": "checkpoint_every", "eval_steps": "eval_every",
    "logging_steps": "log_every", "random_seed": "seed", "torch_compile": "compile",
}  # fmt: skip
_GUESSES = 3


def _guess(key: str, prefix: str) -> str:
    """What an unknown key was meant to be: near names in its table, then in others; few of them, most likely first."""
    own: list[str] = []
    others: list[str] = []
    for table, kind in (("", Recipe), ("teacher.", Teacher), ("student.", Student)):
        names = [spec.name for spec in dataclasses.fields(kind) if spec.name not in PLACE]
        near = difflib.get_close_matches(key, names, 1)
        (own if table == prefix else others).extend(table + name for name in near)
    same = [name for name in others if name.rpartition(".")[2] == key]
    meant = [_ELSEWHERE[key.lower()]] if key.lower() in _ELSEWHERE else []
    found = list(dict.fromkeys(meant or [*own, *same] or others))[:_GUESSES]
    if found:
        return f"did you mean {' or '.join(found)}?"
    return "docs/reference/recipe-keys.md has all keys, and `./run.sh recipe demo` shows them with their values"


def _value(kind: Any, value: Any, source: str, key: str) -> Any:
    """A TOML value as an annotation wants it. Raises UserError if it cannot be."""
    if dataclasses.is_dataclass(kind):
        if isinstance(value, dict):
            return build(cast(type[Any], kind), value, source, key + ".")
    elif typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
    elif typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if isinstance(value, str) and inner is str:  # qk,vv on a command line
            value = value.split(",")
        if isinstance(value, list):
            return tuple(_value(inner, item, source, key) for item in value)
    elif key == "teacher.revision" and type(value) is int:  # of digits alone
        return str(value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise UserError(f"{source}: {key} = {value!r}: must be {_describe(kind)}")


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "a list of " + {"str": "strings", "float": "numbers"}[typing.get_args(kind)[0].__name__]
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return names.get(kind, f"a table [{kind.__name__.lower()}]")
