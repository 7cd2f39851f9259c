"""A recipe in words: every key with its value, and the numbers that follow from them."""

import json
from collections.abc import Iterator

from transformers import PreTrainedConfig

from pipeline.engines.ds_config import load_ds_config
from pipeline.models.configs import planned_config, takes_published_shape
from pipeline.models.counting import count_parameters
from pipeline.models.fit import check_teacher, student_config_of, teacher_config_of
from pipeline.recipe.outlook import data_lines, machine_lines
from pipeline.settings.plausible import doubts
from pipeline.settings.reading import load_stages
from pipeline.settings.recipe import OF_RELATIONS, Recipe


def describe(recipe: Recipe, teacher_config: PreTrainedConfig) -> str:
    """The resolved recipe as TOML-like lines, and what follows from it."""
    without = OF_RELATIONS if recipe.embeds else ()
    values = {key: value for key, value in recipe.to_dict().items() if key not in without}
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]

    lines += ["", "# What follows from it"]
    for name, config in (("teacher", teacher_config), ("student", student_config_of(recipe, teacher_config))):
        count = count_parameters(config)
        lines.append(
            f"# {name}: {config.num_hidden_layers} layers × {config.hidden_size}, {count['total'] / 1e6:.2f} M parameters = "
            f"{count['embeddings'] / 1e6:.1f} M word embeddings + {count['transformer'] / 1e6:.1f} M Transformer "
            f"+ {count['other'] / 1e6:.2f} M positions, norms and pooler"
        )
    if not recipe.previous and takes_published_shape(recipe.teacher.model, recipe.teacher.revision):
        lines.append(
            "# note: the teacher's config.json is not on this machine: this is its published shape, a run reads its own"
        )
    padded = "" if recipe.layout == "full" else " (padding included)"
    lines.append(
        f"# one step: {recipe.batch} sequences × {recipe.length} = {recipe.tokens_per_step:,} tokens{padded}; "
        f"all {recipe.steps:,} steps: {recipe.tokens_per_step * recipe.steps:,} tokens"
    )
    fitting = []
    for ranks in (1, 2, 4, 8, 16, 32):
        accumulation, rest = divmod(recipe.batch, ranks * recipe.micro_batch)
        if accumulation and not rest:
            fitting.append(f"{ranks} × {recipe.micro_batch} × {accumulation}")
    lines.append(f"# batch = ranks × micro_batch × accumulation: {', '.join(fitting) or 'no split over 1 to 32 ranks'}")
    lines += [f"# note: {doubt}" for doubt in doubts(recipe)]
    return "\n".join(lines)


def described(name: str, overrides: list[str]) -> Iterator[str]:
    """The lines on a recipe, stage by stage and student by student, and on data and machine.

    Raises UserError for a recipe that a run would refuse, whose lines so far are then printed already.
    """
    stages = load_stages(name, overrides)
    for number, recipes in enumerate(stages):
        config = teacher_config_of(recipes[0], planned_config)
        for recipe in recipes:
            check_teacher(recipe, config)
            for ds_config in (recipe.teacher.ds_config, recipe.student.ds_config):
                load_ds_config(ds_config, recipe)
            heading = f"# Stage {recipe.stage}\n" if recipe.stage else ""
            yield ("\n" if number or recipe is not recipes[0] else "") + heading + describe(recipe, config)
        for line in (*data_lines(recipes[0], config), *machine_lines(recipes, config)):
            yield f"# {line}"
