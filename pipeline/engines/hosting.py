"""How a run keeps its teacher: a replica on each rank, or shards."""

from dataclasses import dataclass

from data_prep.cli import UserError
from pipeline.models.precision import DTYPES
from pipeline.settings.recipe import Recipe

GIB = 2**30
FP32 = 4  # bytes


@dataclass(frozen=True)
class Hosting:
    """How the teacher is kept, ``replicate`` or ``zero3``, and why.

    ``parameters``: up to its layer; ``per_rank``: those that one rank holds; ``shards``: over how many ranks;
    ``widened``: those that are kept in fp32 instead of bf16, for products that are widened.
    """

    kind: str
    reason: str
    parameters: int
    per_rank: float
    shards: int = 1
    widened: int = 0

    def weights(self, number: int) -> float:
        """Bytes of a rank's weights, those of ``number`` bytes a parameter that are not widened."""
        return number * self.per_rank + (FP32 - number) * self.widened


def hosting_of(
    recipe: Recipe, parameters: int, embeddings: int, memory: float, world: int, local_world: int
) -> Hosting:
    """The recipe's hosting, or with ``auto`` a replica unless it takes more than a quarter of a rank's ``memory`` [bytes].

    ``parameters`` are all up to the teacher's layer; its ``embeddings`` are whole on each rank in any case. ``local_world``:
    the ranks of the smallest node, whose shares are the largest. Raises UserError if that is one rank, over which nothing can
    be sharded.
    """
    wanted, reason = recipe.teacher.hosting, "set in the recipe"
    if wanted == "auto":
        weights = parameters * DTYPES[recipe.precision].itemsize
        large = weights > memory / 4
        wanted = "zero3" if large and world > 1 else "replicate"
        reason = f"its weights take {weights / GIB:.2f} GiB of {memory / GIB:.1f} GiB a rank"
        reason += ", more than a quarter" if large else ""
        reason += ", and there is one rank only" if world == 1 else ""
    if wanted == "replicate":
        return Hosting(wanted, reason, parameters, parameters)
    shards = world if recipe.teacher.shard_group == "world" else local_world
    if shards == 1 < world:
        raise UserError(
            f"{recipe.source}: teacher.shard_group = 'node': a node has one rank only, which would hold the whole teacher; "
            "use 'world', or hosting = 'replicate'"
        )
    return Hosting(wanted, reason, parameters, embeddings + (parameters - embeddings) / shards, shards)
