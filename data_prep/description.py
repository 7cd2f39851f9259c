"""The sources of a corpus as its user names them: a TOML file, or NAME=FORMAT:GLOB on the command line.

tokenizer = "bert-base-uncased/"     # the keys above the sources are defaults of the options of the same name
heldout = 0.01
unit_mib = 64
alpha = 1.0

[[source]]
name = "wiki"                        # or names = ["af", "am", …], each a source; {name} in ``files`` stands for it
format = "wikipedia"
files = "dumps/*.bz2"                # below --root
field = "text"                       # of formats that have fields
hub = "wikimedia/wikipedia"          # then ``files`` are those of this dataset, at the commit ``revision``
revision = "…"
templates = "words.txt"              # of format wikipedia: a table of the words of templates, before the shipped one
"""

import difflib
import glob
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from data_prep.cli import UserError, some
from data_prep.formats.by_name import WITH_TEMPLATES, open_format
from data_prep.formats.templates import table_in
from data_prep.inputs import InputFile, describe_file, hub_files, local_files
from data_prep.shards import HELDOUT, MANIFEST, PLAN

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Source:
    """A named source; ``files`` is a glob, below the working folder or in the hub's dataset ``hub``."""

    name: str
    format: str
    files: str
    field: str | None = None
    hub: str | None = None
    revision: str | None = None
    templates: str | None = None

    def resolve(self) -> "ResolvedSource":
        """Find the files. Raises UserError if there are none, or if the table of templates cannot be read."""
        what = f"source {self.name}"
        found = hub_files(self.hub, self.revision, self.files, what) if self.hub else local_files(self.files, what)
        table = describe_table(Path(self.templates)) if self.templates else None
        return ResolvedSource(self.name, self.format, self.field, tuple(found), table)


@dataclass(frozen=True)
class ResolvedSource:
    """A source whose files have been found. ``templates``: a table of the words of templates, of a wiki's dumps."""

    name: str
    format: str
    field: str | None
    files: tuple[InputFile, ...]
    templates: InputFile | None = None

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Description:
    """A corpus. None: not given."""

    sources: tuple[Source, ...]
    tokenizer: str | None = None
    heldout: float | None = None
    unit_mib: float | None = None
    alpha: float | None = None


def read_description(name: str, root: Path) -> Description:
    """Read a TOML file, or by its name a description that comes with the package. Local files are below ``root``.

    Raises UserError naming file and key.
    """
    path, content = _find(name)
    try:
        table = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML ({error})") from None
    sources = table.pop("source", None)
    if not isinstance(sources, list) or not sources or not all(isinstance(entry, dict) for entry in sources):
        raise UserError(f"{path}: has no [[source]]")
    known = {"tokenizer": str, "heldout": (int, float), "unit_mib": (int, float), "alpha": (int, float)}
    _check_keys(path, table, known)
    found = tuple(source for entry in sources for source in _read_sources(path, entry, root))
    return Description(found, **table)


def shipped() -> list[str]:
    """The names of the descriptions that come with the package."""
    entries = resources.files("data_prep.corpora").iterdir()
    return sorted(Path(entry.name).stem for entry in entries if ".toml" in entry.name)


def select(description: Description, names: str) -> Description:
    """Keep the sources ``names``, apart by commas. Raises UserError for an unknown one, naming the nearest ones."""
    known = {source.name: source for source in description.sources}
    if not (wanted := [name.strip() for name in names.split(",") if name.strip()]):
        raise UserError(f"--languages {names}: names none; there are {', '.join(known)}")
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or sorted(known)[:3]
            raise UserError(f"--languages {name}: no such source among {len(known)}; nearest: {', '.join(near)}")
    return replace(description, sources=tuple(known[name] for name in wanted))


def parse_source(text: str) -> Source:
    """Read NAME=FORMAT:GLOB or NAME=FORMAT.FIELD:GLOB. Raises UserError saying what is wrong with it."""
    name, equals, rest = text.partition("=")
    form, colon, pattern = rest.partition(":")
    form, dot, field = form.partition(".")
    what = f"--source {text}"
    if not (equals and colon and pattern):
        raise UserError(f"{what}: must be NAME=FORMAT:GLOB, such as wiki=wikipedia:dumps/*.bz2")
    return _checked(what, Source(name, form, pattern, field if dot else None))


def with_templates(description: Description, path: str) -> Description:
    """The description with a table of templates for all its wikis. Raises UserError if it has none."""
    if not any(source.format in WITH_TEMPLATES for source in description.sources):
        raise UserError(f"--templates {path}: is for sources of format wikipedia, and there is none")
    sources = (
        replace(source, templates=path) if source.format in WITH_TEMPLATES else source for source in description.sources
    )
    return replace(description, sources=tuple(sources))


def describe_table(path: Path) -> InputFile:
    """A table of templates with its size and sha256. Raises UserError, with the line, if it cannot be read."""
    table_in(path)
    return describe_file(path)


def check_names(names: Iterable[str]) -> None:
    """Raise UserError if a name is given twice."""
    for name, times in Counter(names).items():
        if times > 1:
            raise UserError(f"source {name}: this name is given {times} times; give each source its own")


def check_files(sources: Iterable[ResolvedSource]) -> list[str]:
    """Warnings: of files that are copies of others. Raises UserError if one and the same file is named twice."""
    places: dict[object, str] = {}
    contents: dict[object, InputFile] = {}
    copies = []
    for source in sources:
        for file in source.files:
            if owner := places.get(place := (file.path, file.hub)):
                raise UserError(f"{file.path}: is in source {source.name} and already in source {owner}; name it once")
            places[place] = source.name
            original = contents.setdefault((file.bytes, file.sha256), file)
            if original is not file and file.bytes:
                copies.append(f"{file.path} has the same bytes as {original.path}")
    return [f"warning: {some(copies, apart='; ', others='more such copies')}"] if copies else []


def _find(name: str) -> tuple[str, str]:
    """(path for messages, content) of a description."""
    if name.endswith(".toml") or "/" in name:
        try:
            return name, Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: cannot be read as a corpus description ({error})") from None
    if name not in shipped():
        raise UserError(f"{name}: no such corpus; name a .toml file, or one of {', '.join(shipped())}")
    return f"{name}.toml", (resources.files("data_prep.corpora") / f"{name}.toml").read_text(encoding="utf-8")


def _read_sources(path: str, entry: dict[str, Any], root: Path) -> list[Source]:
    """The sources of a [[source]] table: one, or one for each of its names."""
    known = {item.name: str for item in fields(Source)} | {"names": list}
    _check_keys(path, entry, known)
    names = entry.get("names", [entry.get("name")])
    if ("name" in entry) == ("names" in entry) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: [[source]] {entry}: needs name, or names, a list")
    for key in ("format", "files"):
        if key not in entry:
            raise UserError(f"{path}: source {names[0]} has no {key}")
    if ("hub" in entry) != ("revision" in entry):
        raise UserError(f"{path}: source {names[0]}: hub and revision go together")
    pattern = entry["files"]
    if "hub" not in entry and not Path(pattern).expanduser().is_absolute():
        pattern = f"{glob.escape(str(root))}/{pattern}"
    rest = {key: entry.get(key) for key in ("field", "hub", "revision")}
    if "templates" in entry:
        rest["templates"] = str(root / Path(entry["templates"]).expanduser())
    found = (Source(name, entry["format"], pattern, **rest) for name in names)
    return [_checked(f"{path}: source {source.name}", _named(source)) for source in found]


def _named(source: Source) -> Source:
    """The source with its name in its paths, for {name}."""
    templates = source.templates and source.templates.replace("{name}", source.name)
    return replace(source, files=source.files.replace("{name}", source.name), templates=templates)


def _check_keys(path: str, table: dict[str, Any], known: dict[str, Any]) -> None:
    """Raise UserError for a key that is not in ``known``, or whose value has another type than there."""
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise UserError(f"{path}: no key {key!r}, did you mean {near!r}? Known: {', '.join(known)}")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise UserError(f"{path}: {key} = {value!r} has the wrong type")


def _checked(what: str, source: Source) -> Source:
    """The same source. Raises UserError, beginning with ``what``, for its name, format or field."""
    if not _NAME.fullmatch(source.name) or source.name in (HELDOUT, MANIFEST, PLAN):
        raise UserError(f"{what}: {source.name!r} cannot be a source's name; use letters, digits, _ - and inner .")
    try:
        open_format(source.format, source.field)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    if source.templates is not None and source.format not in WITH_TEMPLATES:
        raise UserError(
            f"{what}: templates {source.templates!r}: only format wikipedia has templates, not {source.format}; leave it out"
        )
    return source
