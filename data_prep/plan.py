"""The plan of a corpus: which files, and which units of them.

``DATA/plan.json`` is the plan without a path in it; ``DATA/.inputs.json`` says where this machine has the files.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from data_prep.description import ResolvedSource
from data_prep.errors import UserError
from data_prep.inputs import InputFile
from data_prep.readers import PIECE
from data_prep.shards import PLAN, VERSION, read_json, sealed, write_json
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
    """``units[name]``: how many of a source's units are prepared, the first ones. ``software``: as by that function."""

    tokenizer_path: Path
    tokenizer: dict
    software: dict[str, str]
    heldout: float
    unit_mib: float
    sources: dict[str, ResolvedSource]
    units: dict[str, int]
    budget: Budget | None = None

    def all_units(self) -> list[Unit]:
        """The units to prepare, source after source by name, in whatever order they were named."""
        sources = (self.sources[name] for name in sorted(self.sources))
        return [unit for source in sources for unit in self.cut(source)[: self.units[source.name]]]

    def cut(self, source: ResolvedSource) -> list[Unit]:
        """All units of a source, also those that no budget calls for."""
        return cut(source.name, source.format, source.field, source.files, int(self.unit_mib * MIB) // PIECE)

    def describe(self) -> dict:
        """The content of plan.json."""
        return {
            "version": VERSION,
            "software": self.software,
            "settings": {"heldout": self.heldout, "unit_mib": self.unit_mib},
            "tokenizer": self.tokenizer,
            "budget": self.budget and asdict(self.budget),
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
        for path, content in ((data / INPUTS, inputs), (data / PLAN, sealed(self.describe()))):
            if not path.exists() or read_json(path) != content:
                write_json(path, content)


def shares_of(sizes: dict[str, float], alpha: float) -> dict[str, float]:
    """Which share of what a run reads is each source's: in proportion to its size ** ``alpha``, 0 if it has none."""
    weights = {name: float(size) ** alpha if size else 0.0 for name, size in sizes.items()}
    total = sum(weights.values()) or 1
    return {name: weight / total for name, weight in weights.items()}


def software(sources: Iterable[ResolvedSource]) -> dict[str, str]:
    """Versions of what decides the text of documents. (What decides their ids is in the tokenizer's fingerprint.)"""
    versions = {"unicode": unicodedata.unidata_version}
    if any(source.format == "wikipedia" for source in sources):
        versions["mwparserfromhell"] = metadata.version("mwparserfromhell")
    return versions


def read_plan(data: Path) -> Plan | None:
    """The plan of DATA; None if there is none. Raises UserError if it cannot be read.

    Where its files and the tokenizer lie is not known without DATA/.inputs.json, a part that a copy may lack: then the
    places are mere names (``places_known``).
    """
    try:
        plan = read_json(data / PLAN)
    except FileNotFoundError:
        return None
    inputs = read_json(data / INPUTS) if places_known(data) else {"tokenizer": "", "sources": {}}
    try:
        if plan["version"] != VERSION:
            raise UserError(
                f"{data / PLAN}: format version {plan['version']!r}, now {VERSION}; prepare into a new folder"
            )
        if sealed(plan) != plan:
            raise UserError(f"{data / PLAN}: was edited or is damaged; delete it, and the same prepare writes it anew")
        sources = {
            name: ResolvedSource(name, entry["format"], entry["field"], _files(entry, inputs["sources"].get(name, [])))
            for name, entry in plan["sources"].items()
        }
        units = {name: entry["units"] for name, entry in plan["sources"].items()}
        budget = Budget(**plan["budget"]) if plan["budget"] else None
        path, settings = Path(inputs["tokenizer"]), plan["settings"]
        return Plan(
            path, plan["tokenizer"], plan["software"], settings["heldout"], settings["unit_mib"], sources, units, budget
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{data / PLAN}: not a plan ({error!r}); prepare into a new folder") from None


def places_known(data: Path) -> bool:
    """Whether DATA says where its files lie on this machine."""
    return (data / INPUTS).exists()


def _files(entry: dict, places: list[dict]) -> tuple[InputFile, ...]:
    """The files of a source; without places for all of them their names stand for these."""
    files = entry["files"]
    if len(places) != len(files):
        places = [{"path": file["name"], "hub": None} for file in files]
    return tuple(
        InputFile(**file, path=Path(place["path"]), hub=tuple(place["hub"]) if place["hub"] else None)
        for file, place in zip(files, places, strict=True)
    )
