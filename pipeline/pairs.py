"""Names of relations. Without torch."""

from collections.abc import Iterable

PAIRS = tuple(a + b for a in "qkv" for b in "qkv")


VALUE_MSE = "v_mse"  # in a recipe's pairs: value_mse instead of a relation


VALUE_PROJECTION = "value_projection.weight"  # in checkpoints: trained with such a student, not part of it


def value_mse_note(names: Iterable[str]) -> str:
    """The words after "nats", the unit of relation losses, where the loss of values is among these names."""
    return f"; {VALUE_MSE}: mean squared difference of values" if VALUE_MSE in names else ""
