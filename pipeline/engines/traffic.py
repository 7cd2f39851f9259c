"""What ranks send each other of a student in a step, and whether its word embedding travels whole or as rows."""

from typing import Any, NamedTuple

from pipeline.engines.ds_config import load_ds_config
from pipeline.models.precision import DTYPES
from pipeline.settings.recipe import Recipe

ID = 4  # bytes of a token's id on its way


class Table(NamedTuple):
    """The shape of a word embedding: a row for each id of the vocabulary."""

    rows: int
    width: int


def zero_config(recipe: Recipe) -> dict[str, Any]:
    """``zero_optimization`` of the student's ds_config."""
    zero: dict[str, Any] = load_ds_config(recipe.student.ds_config, recipe).get("zero_optimization", {})
    return zero


def sent_type(recipe: Recipe) -> str:
    """The type of the student's gradients on their way between ranks: the run's precision, unless told otherwise."""
    sent: str = load_ds_config(recipe.student.ds_config, recipe).get("communication_data_type", recipe.precision)
    return sent


def dense_bytes(recipe: Recipe, parameters: int, world: int) -> float:
    """Bytes that a rank receives in a step to average gradients of ``parameters``, and to bring these together again.

    As DeepSpeed 0.19 does it: stages 0 and 1 average once in a step, 2 and 3 after each micro-batch. An all-reduce goes
    around a ring twice, stage 3's reduce-scatter once. Weights are gathered once in a step, at stage 3 for each
    micro-batch: a student's stay from its forward to its backward.
    """
    zero = zero_config(recipe)
    stage, times = zero.get("stage", 0), recipe.accumulation(world)
    averages = times if stage >= 2 else 1
    rounds = 1 if stage == 3 and zero.get("reduce_scatter", True) else 2
    gathers = {0: 0, 3: times}.get(stage, 1)
    bytes_of_each = rounds * averages * DTYPES[sent_type(recipe)].itemsize + gathers * DTYPES[recipe.precision].itemsize
    return parameters * bytes_of_each * (world - 1) / world


def rows_bytes(recipe: Recipe, table: Table, world: int) -> float:
    """Bytes that a rank receives in a step if a word embedding travels as rows: one for each token that a rank reads.

    They are the ids and the rows' gradients, and at stages 1 and 2 the rows' weights (see rows.py).
    """
    sizes = [DTYPES[sent_type(recipe)].itemsize]
    if zero_config(recipe).get("stage", 0) > 0:
        sizes.append(DTYPES[recipe.precision].itemsize)
    tokens = recipe.batch // world * recipe.length
    return (world - 1) * tokens * (ID + table.width * sum(sizes))


def sends_rows(recipe: Recipe, table: Table, world: int) -> bool:
    """Whether the word embedding travels as rows: where that is less, and DeepSpeed allows it.

    At stage 3 its own hooks gather and reduce whole parameters; where it averages during the backward pass (overlap_comm), or
    scales gradients in another way, it is left alone as well.
    """
    config, zero = load_ds_config(recipe.student.ds_config, recipe), zero_config(recipe)
    scaled = config.get("prescale_gradients", False) or config.get("gradient_predivide_factor", 1.0) != 1.0
    if scaled or zero.get("stage", 0) == 3 or zero.get("overlap_comm"):
        return False
    return rows_bytes(recipe, table, world) < dense_bytes(recipe, table.rows * table.width, world)


def received_bytes(recipe: Recipe, parameters: int, table: Table, world: int) -> float:
    """Bytes that a rank receives in a step of a student of so many ``parameters``, those of its word ``table`` among them."""
    if not sends_rows(recipe, table, world):
        return dense_bytes(recipe, parameters, world)
    return dense_bytes(recipe, parameters - table.rows * table.width, world) + rows_bytes(recipe, table, world)
