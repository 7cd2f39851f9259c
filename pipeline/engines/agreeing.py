"""The arithmetic of a run: the first rank's measurement decides for all."""

import dataclasses
from collections.abc import Sequence

from pipeline.engines.ranks import Ranks, on_first_rank
from pipeline.models.arithmetic import USUAL, Product, Rates, has_choice, rates
from pipeline.settings.recipe import Recipe


def first_ranks_rates(ranks: Ranks, products: Sequence[Product] = USUAL) -> Rates:
    """What the first rank measures, on every rank. Collective."""
    return Rates(*on_first_rank(ranks, rates, products))


def decided(recipe: Recipe, ranks: Ranks) -> Recipe:
    """``recipe`` with its ``arithmetic`` measured where it is "auto" and there is a choice. Collective."""
    if recipe.arithmetic != "auto" or not has_choice(recipe.precision, ranks.device):
        return recipe
    return dataclasses.replace(recipe, arithmetic=first_ranks_rates(ranks).faster)
