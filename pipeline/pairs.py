"""Names of relations. Without torch."""

from collections.abc import Iterable

PAIRS = tuple(a + b for a in "qkv" for b in "qkv")


VALUE_MSE = "v_mse"  # in a recipe's pairs: value_mse instead of a relation


VECTORS = ("cosine", "similarities")  # the parts of the loss where vectors are learnt


VALUE_PROJECTION = "value_projection.weight"  # in checkpoints: trained with such a student, not part of it


VECTOR_MAP = "vector_map.weight"  # in checkpoints: of a student whose vectors are as wide as its teacher's by a map


BESIDE = (VALUE_PROJECTION, VECTOR_MAP)  # trained beside the model's own parameters


def loss_note(names: Iterable[str]) -> str:
    """The unit of losses with these names."""
    names = set(names)
    if names & {*VECTORS}:
        return "1 − cosine, and squared differences of cosines"
    return f"nats{value_mse_note(names)}"


def value_mse_note(names: Iterable[str]) -> str:
    """The words after "nats", the unit of relation losses, where the loss of values is among these names."""
    return f"; {VALUE_MSE}: mean squared difference of values" if VALUE_MSE in names else ""
