"""How a run takes its bf16 products on CPUs: as its recipe says, or as it began, or as the first rank finds faster."""

from dataclasses import replace

from pipeline.engines.agreeing import first_ranks_rates
from pipeline.models.arithmetic import Way, has_choice
from pipeline.models.fit import products_of, teacher_config_of
from pipeline.models.precision import way_of
from pipeline.training.run import Run
from pipeline.training.start import Pending

_WORDS: dict[Way, str] = {"native": "as they are", "widened": "widened to fp32 and rounded"}


def with_arithmetic(run: Run, pending: list[Pending]) -> tuple[Run, list[Pending]]:
    """The run and its students with an ``arithmetic`` that is decided, the same on all ranks. Collective.

    A run that resumes goes on in the way that its checkpoint was made, if its recipe says nothing else: for the same bits.
    """
    if not has_choice(run.recipe.precision, run.ranks.device):
        return run, pending
    way, lines = _decided(run, pending)
    students = [student._replace(recipe=replace(student.recipe, arithmetic=way)) for student in pending]
    return replace(run, recipe=replace(run.recipe, arithmetic=way), about_arithmetic=lines), students


def _decided(run: Run, pending: list[Pending]) -> tuple[Way, tuple[str, ...]]:
    """The way to take products, and the lines that say so."""
    recipe = run.recipe
    if recipe.arithmetic != "auto":
        return recipe.arithmetic, (f"Arithmetic: bf16 products {_WORDS[recipe.arithmetic]}, as the recipe says.",)
    config = teacher_config_of(recipe)
    rates = first_ranks_rates(run.ranks, products_of([student.recipe for student in pending], config))
    for checkpoint in (student.checkpoint for student in pending if student.checkpoint):
        way = way_of(checkpoint.info.get("arithmetic"))
        if way is None:
            continue
        lines = [f"Arithmetic: bf16 products {_WORDS[way]}, as {checkpoint.path} was made; here {rates}."]
        if way != rates.faster:
            lines.append(
                f"note: bf16 products {_WORDS[rates.faster]} would be faster on this machine, in other last bits; "
                f"arithmetic={rates.faster} takes them"
            )
        return way, tuple(lines)
    return rates.faster, (f"Arithmetic: bf16 products {_WORDS[rates.faster]}, by measurement: {rates}.",)
