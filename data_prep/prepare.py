"""``prepare``: from what the user names to a whole corpus; goes on where an earlier run stopped."""

import difflib
import glob
import re
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from data_prep.encode import load_encoder
from data_prep.errors import UserError
from data_prep.locks import sole_process
from data_prep.readers import PIECE
from data_prep.shards import HELDOUT, MANIFEST, PLAN, VERSION, open_corpus, read_json, write_json, write_manifest
from data_prep.units import FORMATS, Job, Unit, describe_file, finished
from data_prep.workers import Progress, run_units

_MIB = 1 << 20


@dataclass(frozen=True)
class SourceSpec:
    """What the user named NAME=FORMAT:GLOB, with the glob expanded in sorted order."""

    name: str
    format: str
    paths: tuple[Path, ...]


def prepare(
    data: Path, tokenizer: Path, sources: list[str], workers: int, heldout: float = 0.01, unit_mib: float = 64
) -> None:
    """Prepare a corpus at ``data`` from sources NAME=FORMAT:GLOB.

    ``heldout`` is the share of documents that is set aside, ``unit_mib`` the MiB of an input file in a unit. Raises
    UserError for any fault of the arguments or the input, and if ``data`` holds something else.
    """
    if not 0 <= heldout < 1:
        raise UserError(f"--heldout {heldout}: must be at least 0 and below 1")
    if not PIECE / _MIB <= unit_mib <= _MIB:
        raise UserError(f"--unit-mib {unit_mib}: must be from {PIECE / _MIB} to {_MIB}")
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    specs = parse_sources(sources)
    job = Job(data, tokenizer, load_encoder(tokenizer).fingerprint(), float(heldout))
    _make_folder(data)
    with sole_process(data, _say):
        plan = _agree_plan(job, specs, float(unit_mib))
        _prepare_locked(job, plan, _units(plan, specs), workers)


def parse_sources(texts: list[str]) -> list[SourceSpec]:
    """Read NAME=FORMAT:GLOB arguments. Raises UserError for a fault in one, or a name or file that comes twice."""
    specs = [_parse_source(text) for text in texts]
    for name, times in Counter(spec.name for spec in specs).items():
        if times > 1:
            raise UserError(f"--source {name}: this name is given {times} times; give each source its own")
    seen: dict[Path, str] = {}
    for spec in specs:
        for path in spec.paths:
            if other := seen.get(path.resolve()):
                raise UserError(f"{path}: is in source {spec.name} and already in source {other}; name it once")
            seen[path.resolve()] = spec.name
    return specs


def _parse_source(text: str) -> SourceSpec:
    name, equals, rest = text.partition("=")
    form, colon, pattern = rest.partition(":")
    if not (equals and colon and pattern):
        raise UserError(f"--source {text}: must be NAME=FORMAT:GLOB, such as wiki=wikipedia:dumps/*.bz2")
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) or name in (HELDOUT, MANIFEST, PLAN):
        raise UserError(f"--source {text}: {name!r} cannot be a source's name; use letters, digits, _ - and inner .")
    if form not in FORMATS:
        near = difflib.get_close_matches(form, FORMATS, n=1, cutoff=0)
        raise UserError(f"--source {text}: no format {form!r}, did you mean {near[0]!r}? Known: {', '.join(FORMATS)}")
    found = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207
    paths = tuple(Path(path) for path in found if Path(path).is_file())
    if not paths:
        raise UserError(f"--source {text}: no file matches {pattern} (from {Path.cwd()})")
    return SourceSpec(name, form, paths)


def _make_folder(data: Path) -> None:
    """Make DATA, or find it empty or begun by an earlier prepare. Raises UserError if it is anything else."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        strangers = [entry.name for entry in data.iterdir() if entry.name != ".lock" and entry.suffix != ".tmp"]
    except OSError as error:
        raise UserError(f"--out {data}: {error.strerror}; name a new or an empty folder") from None
    if strangers and PLAN not in strangers:
        raise UserError(f"--out {data}: holds {min(strangers)} but no {PLAN}; name a new or an empty folder")


def _agree_plan(job: Job, specs: list[SourceSpec], unit_mib: float) -> dict:
    """Write DATA/plan.json, or find the one there equal. Raises UserError naming what differs once work was done."""
    plan = {
        "version": VERSION,
        "settings": {"heldout": job.heldout, "unit_mib": unit_mib},
        "tokenizer": job.tokenizer,
        "sources": {
            spec.name: {"format": spec.format, "files": [describe_file(path) for path in spec.paths]} for spec in specs
        },
    }
    path = job.data / PLAN
    before = read_json(path) if path.exists() else None
    if before is not None and before != plan and any(job.data.glob("**/[0-9]*.json")):
        raise UserError(f"{path}: {_difference(before, plan)}; go back to that, or prepare into a new folder")
    if before != plan:
        write_json(path, plan)
    return plan


def _difference(before: dict, now: dict) -> str:
    """The first thing in which two plans differ, in words."""
    for key in ("version", "settings", "tokenizer"):
        if before.get(key) != now[key]:
            if key == "tokenizer":
                return f"the tokenizer was another one (sha256 {before[key]['sha256'][:12]}, now {now[key]['sha256'][:12]})"
            return f"{key} was {before.get(key)}, now {now[key]}"
    old, new = before["sources"], now["sources"]
    if old.keys() != new.keys():
        return f"the sources were {', '.join(sorted(old))}, now {', '.join(sorted(new))}"
    for name in new:
        if old[name]["format"] != new[name]["format"]:
            return f"the format of source {name} was {old[name]['format']}, now {new[name]['format']}"
        names = [[file["name"] for file in entry[name]["files"]] for entry in (old, new)]
        if names[0] != names[1]:
            changed = sorted({*names[0]} ^ {*names[1]}) or names[1]
            return (
                f"source {name} had {len(names[0])} files, now {len(names[1])}; not in both: {', '.join(changed[:3])}"
            )
        for was, file in zip(old[name]["files"], new[name]["files"], strict=True):
            if was != file:
                return f"{file['name']} of source {name} has changed since ({was['bytes']} bytes, now {file['bytes']})"
    return "it was written by another version of this program"


def _units(plan: dict, specs: list[SourceSpec]) -> list[Unit]:
    """Every unit of the plan, in order. An empty file has one unit."""
    unit_pieces = int(plan["settings"]["unit_mib"] * _MIB) // PIECE
    units = []
    for spec in specs:
        number = 0
        for path, file in zip(spec.paths, plan["sources"][spec.name]["files"], strict=True):
            count = max(1, -(-file["bytes"] // (unit_pieces * PIECE)))
            for index in range(count):
                units.append(Unit(spec.name, spec.format, path, file, index, unit_pieces, number + index))
            number += count
    return units


def _prepare_locked(job: Job, plan: dict, units: list[Unit], workers: int) -> None:
    _remove_leftovers(job.data)
    pending = [unit for unit in units if not finished(job, unit)]
    whole = (job.data / MANIFEST).exists()
    if whole and not pending:
        _say(f"{job.data}: already complete, nothing to do ({_summary(job.data)})")
        return
    if len(pending) < len(units):
        _say(f"{len(units) - len(pending)} of {len(units)} units are done; going on with the others")
    total = sum(unit.size for unit in units)
    with closing(Progress(total, total - sum(unit.size for unit in pending))) as progress:
        run_units(job, pending, workers, progress)
    _remove_leftovers(job.data)
    write_manifest(job.data, _manifest(job, plan, units))
    _say(f"{job.data}: complete ({_summary(job.data)})")


def _remove_leftovers(data: Path) -> None:
    for path in data.glob("**/.*.tmp"):
        path.unlink()


def _manifest(job: Job, plan: dict, units: list[Unit]) -> dict:
    """The manifest's content, from the receipts. Raises UserError if a source came to nothing."""
    receipts = [(unit, finished(job, unit)) for unit in units]
    manifest = {key: plan[key] for key in ("tokenizer", "settings")} | {"sources": {}, HELDOUT: {}}
    for name, source in plan["sources"].items():
        mine = [(unit, receipt) for unit, receipt in receipts if unit.source == name]
        entry = source | _totals([receipt["train"] for _, receipt in mine])
        entry["dropped"] = dict(sum((Counter(receipt["train"]["dropped"]) for _, receipt in mine), Counter()))
        entry["repairs"] = dict(sum((Counter(receipt["train"]["repairs"]) for _, receipt in mine), Counter()))
        if empty := _empty_files(mine):
            entry["dropped"]["empty_file"] = len(empty)
            _say(f"warning: source {name}: {len(empty)} files are empty: {', '.join(empty[:3])}")
        if not entry["documents"]:
            raise UserError(f"source {name}: no document was left of its {len(source['files'])} files{_why(entry)}")
        manifest["sources"][name] = entry
        if job.heldout:
            manifest[HELDOUT][name] = _totals([receipt["heldout"] for _, receipt in mine])
    return manifest


def _totals(receipts: list[dict]) -> dict:
    rows = [receipt["shard"] for receipt in receipts]
    return {
        "documents": sum(row["documents"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "unknown": sum(receipt["unknown"] for receipt in receipts),
        "shards": rows,
    }


def _empty_files(mine: list[tuple[Unit, dict]]) -> list[str]:
    """Names of the files in which no document was found, not even one to drop."""
    read = Counter()
    for unit, receipt in mine:
        read[unit.path] += receipt["train"]["read"]
    return [path.name for path, documents in read.items() if not documents]


def _why(entry: dict) -> str:
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(entry["dropped"].items()))
    return f" (dropped: {dropped}); check its files and format" if dropped else "; check its files and format"


def _summary(data: Path) -> str:
    corpus = open_corpus(data)
    parts = [
        f"{source.name}: {source.documents:,} documents, {source.tokens:,} tokens" for source in corpus.sources.values()
    ]
    return f"{'; '.join(parts)}; id {corpus.id[:12]}"


def _say(line: str) -> None:
    print(f"prepare: {line}", file=sys.stderr, flush=True)
