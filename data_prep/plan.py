"""The plan of a corpus: which files, and which units of them.

``DATA/plan.json`` is the plan without a path in it; ``DATA/.inputs.json`` says where this machine has the files.
"""

from dataclasses import dataclass
from pathlib import Path

from data_prep.description import ResolvedSource
from data_prep.errors import UserError
from data_prep.inputs import InputFile
from data_prep.readers import PIECE
from data_prep.shards import PLAN, VERSION, read_json, write_json
from data_prep.units import Unit, cut

INPUTS = ".inputs.json"
MIB = 1 << 20


@dataclass(frozen=True)
class Budget:
    """``tokens`` that a training run will read in all, and the α of its sampling: source l in proportion to size_l ** α."""

    tokens: float
    alpha: float


@dataclass(frozen=True)
class Plan:
    """``units[name]``: how many of a source's units are prepared, the first ones."""

    tokenizer_path: Path
    tokenizer: dict
    heldout: float
    unit_mib: float
    sources: dict[str, ResolvedSource]
    units: dict[str, int]
    budget: Budget | None = None

    def all_units(self) -> list[Unit]:
        """The units to prepare, source after source."""
        return [unit for source in self.sources.values() for unit in self.cut(source)[: self.units[source.name]]]

    def cut(self, source: ResolvedSource) -> list[Unit]:
        """All units of a source, also those that no budget calls for."""
        return cut(source.name, source.format, source.field, source.files, int(self.unit_mib * MIB) // PIECE)

    def describe(self) -> dict:
        """The content of plan.json."""
        return {
            "version": VERSION,
            "settings": {"heldout": self.heldout, "unit_mib": self.unit_mib},
            "tokenizer": self.tokenizer,
            "budget": {"tokens": self.budget.tokens, "alpha": self.budget.alpha} if self.budget else None,
            "sources": {
                source.name: {
                    "format": source.format,
                    "field": source.field,
                    "files": [file.entry for file in source.files],
                    "units": self.units[source.name],
                }
                for source in self.sources.values()
            },
        }

    def write(self, data: Path) -> None:
        """Write the places of the inputs, then the plan."""
        places = {
            name: [{"path": str(file.path), "hub": file.hub} for file in source.files]
            for name, source in self.sources.items()
        }
        inputs = {"tokenizer": str(self.tokenizer_path.resolve()), "sources": places}
        for path, content in ((data / INPUTS, inputs), (data / PLAN, self.describe())):
            if not path.exists() or read_json(path) != content:
                write_json(path, content)


def read_plan(data: Path) -> Plan | None:
    """The plan of DATA; None if there is none. Raises UserError if it cannot be read."""
    try:
        plan, inputs = read_json(data / PLAN), read_json(data / INPUTS)
        if plan["version"] != VERSION:
            raise UserError(
                f"{data / PLAN}: format version {plan['version']!r}, now {VERSION}; prepare into a new folder"
            )
        sources = {
            name: ResolvedSource(name, entry["format"], entry["field"], _files(entry, inputs["sources"][name]))
            for name, entry in plan["sources"].items()
        }
        units = {name: entry["units"] for name, entry in plan["sources"].items()}
        budget = Budget(**plan["budget"]) if plan["budget"] else None
        return Plan(
            Path(inputs["tokenizer"]),
            plan["tokenizer"],
            **plan["settings"],
            sources=sources,
            units=units,
            budget=budget,
        )
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{data / PLAN}: not a plan ({error!r}); prepare into a new folder") from None


def _files(entry: dict, places: list[dict]) -> tuple[InputFile, ...]:
    return tuple(
        InputFile(**file, path=Path(place["path"]), hub=tuple(place["hub"]) if place["hub"] else None)
        for file, place in zip(entry["files"], places, strict=True)
    )
