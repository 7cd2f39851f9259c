"""The manifest of a finished corpus: the sums of its units' receipts, and what its user should be warned of."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from data_prep.cli import UserError, some
from data_prep.counts import summed, summed_names
from data_prep.description import ResolvedSource
from data_prep.formats.by_name import COLUMNS, open_format
from data_prep.formats.encodings import advice
from data_prep.inputs import InputFile
from data_prep.plan import Plan
from data_prep.shards import HELDOUT
from data_prep.units import Unit

Receipts = dict[Unit, dict[str, dict[str, Any]]]  # of each unit by side
Say = Callable[[str], object]

_Mine = list[tuple[Unit, dict[str, Any]]]  # the units of one source, with their receipts of the side train

# What was dropped for a fault of the input: the words for it, and what its user can do.
_LEFT_OUT = "left out, and the rest is whole"
_DAMAGE = (
    (("torn",), "broken off in the middle", "fetch {files} again, and run the same command with --refresh"),
    (("broken_xml",), "no well-formed XML", _LEFT_OUT),
    (
        ("over_time", "crashed_parser", "unparsable"),
        "more than the parser can read (it failed, or took too long)",
        _LEFT_OUT,
    ),
)


def manifest(plan: Plan, receipts: Receipts, say: Say) -> dict[str, Any]:
    """The manifest's content, from the receipts. Raises UserError if no document is left of a source."""
    described = plan.describe()
    content: dict[str, Any] = {"tokenizer": described["tokenizer"], "settings": described["settings"]}
    content |= {"sources": {}, HELDOUT: {}}
    for name, entry in described["sources"].items():
        source = plan.sources[name]
        of_source = [(unit, sides) for unit, sides in receipts.items() if unit.source == name]
        mine = [(unit, sides["train"]) for unit, sides in of_source]
        part = sum(unit.size for unit, _ in mine)

        entry |= _totals([receipt for _, receipt in mine], source.bytes, part)
        for key in ("dropped", "repairs"):
            entry[key] = summed(receipt[key] for _, receipt in mine)
        entry |= summed_names([receipt for _, receipt in mine])
        if empty := _empty_files(mine):
            entry["dropped"]["empty_file"] = len(empty)
            say(f"warning: source {name}: {len(empty)} files are empty: {', '.join(empty[:3])}")
        _warn_of_mended(source, mine, say)
        _warn_of_damaged(source, mine, say)
        if not entry["documents"]:
            raise UserError(f"source {name}: no document was left of its {len(entry['files'])} files{_why(entry)}")
        content["sources"][name] = entry
        if plan.heldout:
            content[HELDOUT][name] = _totals([sides["heldout"] for _, sides in of_source], source.bytes, part)
    if plan.heldout and not any(entry["documents"] for entry in content[HELDOUT].values()):
        say(f"warning: --heldout {plan.heldout:g} set no document aside; training will have no held-out loss")
    return content


def _totals(receipts: list[dict[str, Any]], whole: int, part: int) -> dict[str, Any]:
    """Sums over shards; ``size``: the tokens of all ``whole`` bytes of the source, estimated from those of ``part``."""
    rows = [receipt["shard"] for receipt in receipts]
    tokens = sum(row["tokens"] for row in rows)
    return {
        "documents": sum(row["documents"] for row in rows),
        "tokens": tokens,
        "size": tokens if part == whole else tokens * whole // max(part, 1),
        "unknown": sum(receipt["unknown"] for receipt in receipts),
        "shards": rows,
    }


def _empty_files(mine: _Mine) -> list[str]:
    """The names of the files in which no document was found, not even one to drop."""
    read: Counter[InputFile] = Counter()
    for unit, receipt in mine:
        for part, documents in zip(unit.parts, receipt["read"], strict=True):
            read[part.file] += documents
    return [file.name for file, documents in read.items() if not documents]


def _warn_of_mended(source: ResolvedSource, mine: _Mine, say: Say) -> None:
    """Warn of a source of whose characters a thousandth or more stands for bytes that are not UTF-8."""
    characters, invalid = 0, Counter[InputFile]()
    for unit, receipt in mine:
        characters += sum(receipt.get("characters", []))
        # An earlier version's receipt has neither count.
        for part, count in zip(unit.parts, receipt.get("invalid", []), strict=False):
            invalid[part.file] += count
    if (mended := invalid.total()) * 1000 < max(characters, 1):
        return
    [(worst, _)] = invalid.most_common(1)
    try:
        raws = (raw for _, raw in open_format(source.format, source.field).split(worst.local()))
        remedy = f"most are in {worst.name}: {advice(raws, source.format in COLUMNS)}"
    except UserError:  # the file is gone or changed; the corpus is whole all the same
        remedy = f"most are in {worst.name}: convert it to UTF-8 with iconv, and prepare into a new folder"
    say(
        f"warning: source {source.name}: {mended / characters:.1%} of its characters were not UTF-8 and are lost; {remedy}"
    )


def _warn_of_damaged(source: ResolvedSource, mine: _Mine, say: Say) -> None:
    """Warn of documents that were dropped for a fault of the input, by the files that they are in."""
    files: dict[str, Counter[str]] = {}
    for unit, receipt in mine:
        for part, reason, count in receipt.get("damaged", []):  # an earlier version's receipt has none
            files.setdefault(reason, Counter())[unit.parts[part].file.name] += count
    for reasons, words, remedy in _DAMAGE:
        found = sum((files.get(reason, Counter()) for reason in reasons), Counter[str]())
        if count := found.total():
            are = "document is" if count == 1 else "documents are"
            todo = remedy.format(files="that file" if len(found) == 1 else "these files")
            say(f"warning: source {source.name}: {count:,} {are} {words}, in {some(list(found))}; {todo}")


def _why(entry: dict[str, Any]) -> str:
    """What is known of why no document was left."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(entry["dropped"].items()))
    return f" (dropped: {dropped}); check its files and format" if dropped else "; check its files and format"
