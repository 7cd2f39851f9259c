"""The rows that a measurement gives, and the settings of a relation loss."""

from dataclasses import dataclass, field
from typing import Literal

from data_prep.cli import UserError

VOCABULARY = 30_522  # BERT's, of the random corpus and models


@dataclass(frozen=True)
class Row:
    """One measured number with its meaning. ``case`` has the sizes and settings that it was measured for, by name."""

    measure: str
    value: float
    unit: str
    note: str
    case: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """The parts of a relation loss: pairs of q, k and v, the number of relation heads, and what computes it.

    ``by``: a recipe's ``loss_kernel``, or "literal" for the formula written for whole tensors.
    """

    pairs: tuple[str, ...]
    heads: int
    by: Literal["auto", "triton", "torch", "literal"] = "auto"

    @property
    def case(self) -> dict:
        chosen = {} if self.by == "auto" else {"loss_kernel": self.by}
        return {"pairs": ",".join(self.pairs), "heads": self.heads, **chosen}


def settings_of(heads: list[int], pairs: tuple[str, ...] | None, widths: dict[str, int]) -> list[Setting]:
    """A setting for each number of heads; without ``pairs`` 12 heads are MiniLM's, other numbers MiniLMv2's.

    ``widths`` has the width of every model by its name. Raises UserError for heads that do not divide one.
    """
    for count in heads:
        for name, width in widths.items():
            if width % count:
                fit = [n for n in range(1, width + 1) if all(other % n == 0 for other in widths.values())]
                near = [n for n in fit if n < count][-1:] + [n for n in fit if n > count][:1]
                raise UserError(
                    f"--heads {count}: does not divide the {name}'s width {width}; use {' or '.join(map(str, near))}"
                )
    defaults: dict[int, tuple[str, ...]] = {12: ("qk", "vv")}
    return [Setting(pairs or defaults.get(count, ("qq", "kk", "vv")), count) for count in heads]
