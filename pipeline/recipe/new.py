"""A new recipe whose numbers fit the teacher, the data and this machine, with the reason for each as a comment."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from data_prep.cli import UserError, as_typed
from data_prep.files import write_text
from data_prep.remote import is_url
from data_prep.shards import Corpus, open_corpus
from pipeline.data.fits import check_corpus
from pipeline.models.configs import planned_config
from pipeline.plan.here import Machine
from pipeline.recipe.machine import Fitted, fitted
from pipeline.recipe.outlook import data_lines, machine_lines, tokenizer_here
from pipeline.recipe.shape import Shape, shape_of
from pipeline.settings.recipe import Recipe, Student, Teacher

_WIDTH = 100  # columns of a comment
_PAPER = "MiniLMv2 (arXiv 2012.15828)"

Reasons = dict[str, tuple[Any, str]]  # key: its value, and why


def write(file: Path, teacher: str, data: str, layers: int | None, hidden: int | None) -> Iterator[str]:
    """Write the recipe to ``file`` and yield what to know of it. Raises UserError, and then writes nothing."""
    _check_file(file)
    config = planned_config(teacher)
    shape = shape_of(config, layers, hidden)
    corpus = _corpus(data, teacher)
    recipe = _first(file, teacher, data, config, shape)
    tokenizer = tokenizer_here(recipe)
    if tokenizer is not None:
        check_corpus(corpus, tokenizer, teacher, "full", config.vocab_size)
    found = fitted(recipe, config, corpus, tokenizer)
    text = text_of(found, config, shape)
    write_text(file, text)

    yield f"{file}: {shape.layers} layers × {shape.hidden} from {teacher}, {found.recipe.steps:,} steps"
    yield from data_lines(found.recipe, config)
    yield from machine_lines([found.recipe], config)
    ranks = found.machine.cluster.world if found.machine.is_cpu else 1
    command = f"{f'RANKS={ranks} ' if ranks > 1 else ''}./run.sh distill {file}"
    yield as_typed(f"Each number's reason is in the file. Next: {command}")


def _check_file(file: Path) -> None:
    if file.exists():
        raise UserError(f"--new {file}: exists; name another file, or delete it first")
    if not file.parent.is_dir():
        raise UserError(f"--new {file}: there is no folder {file.parent}; make it first")


def _corpus(data: str, teacher: str) -> Corpus:
    """The prepared corpus. Raises UserError with the command that prepares it."""
    if is_url(data):
        return open_corpus(data)
    folder = Path(data)
    if folder.is_dir() and any(folder.iterdir()):
        return open_corpus(folder)
    out, source = (f"data/{folder.stem}", data) if folder.is_file() else (data, "YOUR_FILES")
    what = "a file, not prepared data" if folder.is_file() else "no prepared data there"
    command = f"./run.sh prep prepare --out {out} --tokenizer {teacher} --source mine=text:'{source}' --heldout 0.02"
    raise UserError(f"--data {data}: {what}; prepare text with the teacher's tokenizer first: {command}")


def _first(file: Path, teacher: str, data: str, config: PreTrainedConfig, shape: Shape) -> Recipe:
    """The recipe before data and machine are looked at."""
    out, number = f"runs/{file.stem}", 2
    while Path(out).exists():
        out, number = f"runs/{file.stem}-{number}", number + 1
    return Recipe(
        data=data,
        out=out,
        teacher=Teacher(teacher, shape.layer),
        student=Student(shape.layers, shape.hidden, shape.heads, init=shape.init),
        steps=1,
        batch=1,
        micro_batch=1,
        learning_rate=6e-4,
        warmup_steps=0,
        pairs=("qq", "kk", "vv"),
        relation_heads=shape.relation_heads,
        source=str(file),
    )


def text_of(found: Fitted, config: PreTrainedConfig, shape: Shape) -> str:
    """The file: a table of keys after the other, each below the reason for its value."""
    recipe, machine = found.recipe, found.machine
    head = (
        f"{shape.layers} layers × {shape.hidden} from {recipe.teacher.model} ({config.num_hidden_layers} × "
        f"{config.hidden_size}), as {_PAPER} distils. Written for this data and for {machine}; change what you know better, "
        f"and look at it by: ./run.sh recipe {recipe.source}"
    )
    lines = _comment(as_typed(head))
    for name, keys in (
        ("", _of_run(found) | _of_time(found)),
        ("teacher", _of_teacher(found, config, shape)),
        ("student", _of_student(found, config, shape)),
    ):
        if name:
            lines += ["", f"[{name}]"]
        for key, (value, why) in keys.items():
            lines += [*_comment(why), f"{key} = {json.dumps(value, ensure_ascii=False)}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _of_run(found: Fitted) -> Reasons:
    """What is read, and how much of it at a time."""
    recipe, machine = found.recipe, found.machine
    keys: Reasons = {
        "data": (recipe.data, f"{found.tokens:,} tokens in {found.documents:,} documents"),
        "out": (recipe.out, "the run folder: checkpoints, log, figures"),
        "length": (recipe.length, found.why["length"]),
        "layout": (recipe.layout, found.why["layout"]),
        "batch": (recipe.batch, found.why["batch"]),
        "micro_batch": (recipe.micro_batch, found.why["micro_batch"]),
    }
    if found.sources > 1:
        keys["sampling_alpha"] = (
            recipe.sampling_alpha,
            f"the {found.sources} sources in proportion to their tokens; 0.5 or 0.3 reads small ones more often",
        )
    keys["precision"] = (recipe.precision, _precision(recipe, machine))
    return keys


def _precision(recipe: Recipe, machine: Machine) -> str:
    if not machine.is_cpu:
        return f"{machine.cluster.gpu.name} has {'' if recipe.precision == 'bf16' else 'no '}units for bf16"
    return f"by a short measurement, products of {recipe.precision} are the faster ones on this CPU"


def _of_time(found: Fitted) -> Reasons:
    """How long it trains, and how often it evaluates."""
    recipe, steps = found.recipe, found.recipe.steps
    rate = "the paper's, for its batch and long runs"
    if recipe.learning_rate > 6e-4:
        rate = "a short run of small batches learns faster than at the paper's 6e-4; the shipped demo's"
    heads = f"the paper's way to compare models of different heads; both widths are divided by {recipe.relation_heads}"
    return {
        "steps": (steps, found.why["steps"]),
        "warmup_steps": (recipe.warmup_steps, "5 % of the steps; the papers' 4,000 are 1 % of much longer runs"),
        "learning_rate": (recipe.learning_rate, rate),
        "pairs": (list(recipe.pairs), f'relations among queries, keys and values: {_PAPER}; MiniLM is ["qk", "vv"]'),
        "relation_heads": (recipe.relation_heads, heads),
        "log_every": (recipe.log_every, "some 50 lines"),
        "eval_every": (recipe.eval_every, "ten held-out losses on the way"),
        "eval_samples": (recipe.eval_samples, found.why["eval_samples"]),
        "checkpoint_every": (
            recipe.checkpoint_every,
            "a run that is stopped resumes from the newest; Ctrl-C writes one",
        ),
    }


def _of_teacher(found: Fitted, config: PreTrainedConfig, shape: Shape) -> Reasons:
    hosting = f'on this machine "auto" takes {found.hosting.kind}: {found.hosting.reason}'
    return {
        "model": (
            found.recipe.teacher.model,
            f"{config.model_type}, {config.num_hidden_layers} × {config.hidden_size}",
        ),
        "layer": (found.recipe.teacher.layer, shape.why["layer"]),
        "hosting": ("auto", hosting),
    }


def _of_student(found: Fitted, config: PreTrainedConfig, shape: Shape) -> Reasons:
    student = found.recipe.student
    return {
        "layers": (student.layers, shape.why["layers"]),
        "hidden": (student.hidden, shape.why["hidden"]),
        "heads": (student.heads, shape.why["heads"]),
        "init": (student.init, shape.why["init"]),
        "ds_config": (student.ds_config, found.why["ds_config"]),
    }
