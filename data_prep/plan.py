"""The plan of a corpus: which files, and which units of them.

``DATA/plan.json`` is the plan without a path in it; ``DATA/.inputs.json`` says where this machine has the files.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from data_prep.cli import UserError
from data_prep.description import ResolvedSource
from data_prep.files import read_json, sealed, write_json
from data_prep.formats.by_name import CLEANUPS
from data_prep.formats.readers import PIECE
from data_prep.inputs import InputFile
from data_prep.shards import PLAN, VERSION
from data_prep.units import Job, Unit, cut

INPUTS = ".inputs.json"
MIB = 1 << 20


@dataclass(frozen=True)
class Budget:
    """The ``tokens`` that a training run will read, and the α of its sampling: source l in proportion to size_l ** α."""

    tokens: float
    alpha: float


@dataclass(frozen=True)
class Plan:
    """The plan of a corpus. ``units[name]``: the number of a source's units to prepare, from the first on."""

    tokenizer_path: Path
    tokenizer: dict[str, Any]
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
        pieces = int(self.unit_mib * MIB) // PIECE
        return cut(source.name, source.format, source.field, source.files, pieces, source.templates)

    def cleanup(self, form: str) -> int:
        """The version of a format's clean-up by which the corpus is prepared."""
        return int(self.software.get(_cleanup_of(form), 1))

    def job(self, data: Path) -> Job:
        """What all units of the corpus in ``data`` have in common."""
        cleanups = {source.format: self.cleanup(source.format) for source in self.sources.values()}
        return Job(data, self.tokenizer_path, self.tokenizer, self.heldout, cleanups)

    def describe(self) -> dict[str, Any]:
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
                | ({"templates": source.templates.entry} if source.templates else {})
                for source in self.sources.values()
            },
        }

    def write(self, data: Path) -> None:
        """Write the places of the inputs, then the plan."""
        places = {name: [_place(file) for file in source.files] for name, source in self.sources.items()}
        tables = {name: str(source.templates.path) for name, source in self.sources.items() if source.templates}
        inputs = {"tokenizer": str(self.tokenizer_path.resolve()), "sources": places}
        inputs |= {"templates": tables} if tables else {}
        for path, content in ((data / INPUTS, inputs), (data / PLAN, sealed(self.describe()))):
            if not path.exists() or read_json(path) != content:
                write_json(path, content)


def shares_of(sizes: dict[str, float], alpha: float) -> dict[str, float]:
    """Each source's share of what a run reads: in proportion to its size ** ``alpha``, 0 if it has none."""
    weights = {name: float(size) ** alpha if size else 0.0 for name, size in sizes.items()}
    total = sum(weights.values()) or 1
    return {name: weight / total for name, weight in weights.items()}


def software(sources: Iterable[ResolvedSource]) -> dict[str, str]:
    """Versions of the software that decides the text of documents. (For their ids see the tokenizer's fingerprint.)"""
    versions = {"unicode": unicodedata.unidata_version}
    formats = {source.format for source in sources}
    if "wikipedia" in formats:
        versions["mwparserfromhell"] = metadata.version("mwparserfromhell")
    versions |= {_cleanup_of(form): str(CLEANUPS[form]) for form in formats & CLEANUPS.keys()}
    return versions


def _cleanup_of(form: str) -> str:
    """Its key among the software's."""
    return f"clean-up of {form}"


def read_plan(data: Path) -> Plan | None:
    """Read the plan of DATA; None if there is none. Raises UserError if it cannot be read.

    The places of its files and of the tokenizer are in DATA/.inputs.json, which a copy may lack: then they are mere names
    (``places_known``).
    """
    try:
        plan = read_json(data / PLAN)
    except FileNotFoundError:
        return None
    inputs: dict[str, Any] = {"tokenizer": "", "sources": {}}
    if places_known(data):
        inputs = read_json(data / INPUTS)
    try:
        if plan["version"] != VERSION:
            raise UserError(
                f"{data / PLAN}: format version {plan['version']!r}, now {VERSION}; prepare into a new folder"
            )
        if sealed(plan) != plan:
            raise UserError(f"{data / PLAN}: was edited or is damaged; delete it, and the same prepare writes it again")
        sources = {
            name: ResolvedSource(
                name,
                entry["format"],
                entry["field"],
                _files(entry, inputs["sources"].get(name, [])),
                _table(entry, inputs.get("templates", {}).get(name)),
            )
            for name, entry in plan["sources"].items()
        }
        units = {name: entry["units"] for name, entry in plan["sources"].items()}
        budget = Budget(**plan["budget"]) if plan["budget"] else None
        return Plan(
            tokenizer_path=Path(inputs["tokenizer"]),
            tokenizer=plan["tokenizer"],
            software=plan["software"],
            heldout=plan["settings"]["heldout"],
            unit_mib=plan["settings"]["unit_mib"],
            sources=sources,
            units=units,
            budget=budget,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{data / PLAN}: not a plan ({error!r}); prepare into a new folder") from None


def places_known(data: Path) -> bool:
    """Whether DATA says where its files are on this machine."""
    return (data / INPUTS).exists()


def _place(file: InputFile) -> dict[str, Any]:
    return {"path": str(file.path), "hub": file.hub}


def _table(entry: dict[str, Any], place: str | None) -> InputFile | None:
    """The table of templates of a source, if it has one; without a ``place`` its name stands for that."""
    file = entry.get("templates")
    return file and InputFile(**file, path=Path(place or file["name"]))


def _files(entry: dict[str, Any], places: list[dict[str, Any]]) -> tuple[InputFile, ...]:
    """The files of a source; unless there is a place for each of them, their names stand for the places."""
    files = entry["files"]
    if len(places) != len(files):
        places = [{"path": file["name"], "hub": None} for file in files]
    return tuple(
        InputFile(**file, path=Path(place["path"]), hub=tuple(place["hub"]) if place["hub"] else None)
        for file, place in zip(files, places, strict=True)
    )
