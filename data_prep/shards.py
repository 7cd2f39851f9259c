"""Token shards on disk: the writer, the reader and the checks. The only form in which data reaches ``pipeline``.

    DATA/manifest.json             what is here; written last, so no manifest means no data
    DATA/SOURCE/00000-00000.tokens.npy   token ids [tokens], uint16 if the vocabulary fits, else uint32
    DATA/SOURCE/00000-00000.docs.npy     document ends [documents], uint64: the index one past each document's separator
    DATA/SOURCE/00000-00000.json         the unit's receipt
    DATA/heldout/SOURCE/...              the same, for the documents that were set aside

A document is stored as its token ids followed by one separator. A shard is named by its unit: the number of the file in
its source, and of the unit in the file. It may be empty.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cli import UserError
from data_prep.files import REMEDY, encode_json, file_sha256, read_json, sealed, write_json
from data_prep.mirror import Cache, File, Mirror
from data_prep.npy import GrowingArray, array_problem, header, mapped_array
from data_prep.remote import Remote, is_url

VERSION = 2  # of the format on disk
MANIFEST = "manifest.json"
PLAN = "plan.json"
HELDOUT = "heldout"
SIDES = {"train": "sources", "heldout": HELDOUT}  # side: its key in the manifest
ENDS_DTYPE = np.dtype("uint64")

_PLAIN_NAME = re.compile(r"[^/\\\0.][^/\\\0]*")  # of a file or a folder in a folder
_CONTROL_TOKEN = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")


@dataclass(frozen=True)
class Shard:
    """A stretch of documents of one input file. ``path`` is the tokens file, fetched when it is opened if need be."""

    path: Path
    tokens: int
    documents: int
    docs_path: Path
    mirror: Mirror | None = field(default=None, compare=False, repr=False)  # of a corpus at a URL

    def open(self) -> np.ndarray:
        """Token ids [tokens], read-only and memory-mapped."""
        with self.present(self.path):
            return mapped_array(self.path)

    def ends(self) -> np.ndarray:
        """Document ends [documents]: document i is ``tokens[ends[i-1]:ends[i]]``, its separator included."""
        with self.present(self.docs_path):
            return mapped_array(self.docs_path)

    @property
    def path_bytes(self) -> int:
        """The size of the tokens file."""
        return self.mirror.bytes_of(self.path) if self.mirror else self.path.stat().st_size

    def present(self, path: Path) -> AbstractContextManager[None]:
        """Have one of its two files be there until the block ends."""
        return self.mirror.using(path) if self.mirror else nullcontext()


@dataclass(frozen=True)
class Source:
    """One named part of a corpus. ``tokens`` counts the separators; empty shards are left out of ``shards``.

    ``size``: the tokens that the whole source would have, which sampling weights go by; above ``tokens`` if only a part
    of it was prepared, under a budget.
    """

    name: str
    documents: int
    tokens: int
    size: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. ``heldout`` has the same names as ``sources``, or is empty if nothing was to be set aside."""

    path: Path
    id: str
    tokenizer: dict[str, Any]
    sources: dict[str, Source]
    heldout: dict[str, Source]
    manifest: dict[str, Any]
    mirror: Mirror | None = None  # of a corpus at a URL, of which ``path`` has what was fetched

    @property
    def place(self) -> str:
        """The folder or URL that it was opened by."""
        return self.mirror.remote.url if self.mirror else str(self.path)


def open_corpus(path: str | Path, cache: Cache | None = None) -> Corpus:
    """Open DATA after a quick check: manifest id, and every file's size, dtype and length.

    DATA may be a URL: then its manifest is read, and shards are fetched into ``cache``, None: the default one, when they are
    opened. Raises UserError naming the first file that is not as the manifest says, and the way out.
    """
    if is_url(path):
        return _open_mirrored(Remote(str(path)), cache or Cache.of())
    corpus = _read_corpus(Path(path))
    for finding in _manifest_findings(corpus) or _array_findings(corpus):
        raise UserError(f"{finding}; {REMEDY}")
    return corpus


def verify(path: str | Path, deep: bool) -> list[str]:
    """Check DATA: what is wrong with it, one line each; ``deep`` reads every byte.

    Raises UserError if DATA is not data at all.
    """
    corpus = _read_corpus(Path(path))
    if findings := _manifest_findings(corpus):
        return findings  # what else it says cannot be relied on
    findings = _array_findings(corpus)
    damaged = {finding.split(": ")[0] for finding in findings}
    if deep:
        for row, shard in _shards(corpus):
            if not {str(shard.path), str(shard.docs_path)} & damaged:
                findings += _deep_findings(corpus, row, shard)
    return findings


def vocabulary_hash(vocabulary: dict[str, int]) -> str:
    """The sha256 of which id means which token, to compare two tokenizers whatever files they came from.

    Control tokens ([CLS], [unused7], <mask>) are left out: not every kind of file names them.
    """
    plain = sorted((number, token) for token, number in vocabulary.items() if not _CONTROL_TOKEN.fullmatch(token))
    return hashlib.sha256(encode_json({"tokens": plain})).hexdigest()


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id of the vocabulary."""
    return np.dtype("uint16" if vocab_size <= 65536 else "uint32")


def shard_folder(data: Path, source: str, side: str) -> Path:
    """The folder of the shards of one source; ``side`` is "train" or "heldout"."""
    return data / source if side == "train" else data / HELDOUT / source


def receipt_path(tokens_path: Path) -> Path:
    """``00000-00000.tokens.npy`` -> ``00000-00000.json``."""
    return tokens_path.with_name(tokens_path.name.replace(".tokens.npy", ".json"))


class ShardWriter:
    """A shard being written, in bounded memory: two files grow aside and take their names in ``finish``."""

    def __init__(self, folder: Path, stem: str, dtype: np.dtype):
        self._folder, self._stem = folder, stem
        folder.mkdir(parents=True, exist_ok=True)
        self._tokens = GrowingArray(folder / f"{stem}.tokens.npy", dtype)
        self._docs = GrowingArray(folder / f"{stem}.docs.npy", ENDS_DTYPE)

    def extend(self, tokens: np.ndarray, ends: np.ndarray) -> None:
        """Append documents: tokens [n], separators included, and their ends [documents] within these."""
        ends = np.asarray(ends, ENDS_DTYPE) + np.uint64(self._tokens.length)
        self._tokens.extend(tokens)
        self._docs.extend(ends)

    def finish(self, receipt: dict[str, Any]) -> dict[str, Any]:
        """Put the files in place, and last the receipt; returns the shard's row of the manifest, which it holds too."""
        receipt_file = self._folder / f"{self._stem}.json"
        receipt_file.unlink(missing_ok=True)  # a previous shard's must not stay with the new arrays
        row = {
            "file": f"{self._stem}.tokens.npy",
            "tokens": self._tokens.length,
            "documents": self._docs.length,
            "sha256": {"tokens": self._tokens.finish(), "docs": self._docs.finish()},
        }
        write_json(receipt_file, sealed(receipt | {"shard": row}))
        return row

    def discard(self) -> None:
        """Remove what was not finished; to be called at the end in any case."""
        self._tokens.discard()
        self._docs.discard()


def write_shard(
    folder: Path, stem: str, tokens: np.ndarray, ends: np.ndarray, receipt: dict[str, Any]
) -> dict[str, Any]:
    """Write a shard at once: tokens [tokens], document ends [documents]. Returns its row of the manifest."""
    writer = ShardWriter(folder, stem, tokens.dtype)
    try:
        writer.extend(tokens, ends)
        return writer.finish(receipt)
    finally:
        writer.discard()


def write_manifest(data: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write DATA/manifest.json from its content, adding the format version and the corpus id. Returns the manifest."""
    manifest = sealed({"version": VERSION} | content)
    write_json(data / MANIFEST, manifest)
    return manifest


def _read_corpus(path: Path) -> Corpus:
    """Read the manifest. Raises UserError if there is none, saying what is there instead."""
    try:
        manifest = read_json(path / MANIFEST)
    except FileNotFoundError:
        raise UserError(f"{path}: {_what_else(path)}") from None
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path / MANIFEST}: format version {manifest.get('version')!r}, but this program reads {VERSION}; "
            "prepare the corpus again from its text"
        )
    try:
        train, heldout = (_sources(path, manifest, side) for side in SIDES)
        return Corpus(path, manifest["id"], manifest["tokenizer"], train, heldout, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path / MANIFEST}: not a manifest ({error!r}); {REMEDY}") from None


def _open_mirrored(remote: Remote, cache: Cache) -> Corpus:
    """Open the corpus at a URL. Raises UserError if what is there is no manifest, or names files that are not its own."""
    content = remote.read(MANIFEST)
    try:
        manifest = json.loads(content)
        names = [name for key in SIDES.values() for name in manifest[key]]
        names += [row["file"] for key in SIDES.values() for entry in manifest[key].values() for row in entry["shards"]]
        if odd := [name for name in names if not _PLAIN_NAME.fullmatch(name)]:
            raise ValueError(f"{odd[0]!r} is no name of a source or a shard")
        if sealed(manifest)["id"] != manifest["id"]:
            raise ValueError("its id is not that of its content")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{remote.url}/{MANIFEST}: not a manifest ({error}); copy the corpus there again") from None
    folder = cache.folder / manifest["id"][:16]
    mirror = Mirror(remote, cache, folder, {})
    mirror.keep(MANIFEST, content)
    corpus = _read_corpus(folder)
    mirror.files |= dict(_files(corpus))
    sides = [{name: _mirrored(one, mirror) for name, one in side.items()} for side in (corpus.sources, corpus.heldout)]
    return replace(corpus, sources=sides[0], heldout=sides[1], mirror=mirror)


def _mirrored(source: Source, mirror: Mirror) -> Source:
    return replace(source, shards=tuple(replace(shard, mirror=mirror) for shard in source.shards))


def _files(corpus: Corpus) -> Iterator[tuple[str, File]]:
    """By its name below the corpus, what the manifest says of each array's file."""
    dtype = token_dtype(corpus.tokenizer["vocab_size"])
    for row, shard in _shards(corpus):
        arrays = (shard.path, dtype, shard.tokens, "tokens"), (shard.docs_path, ENDS_DTYPE, shard.documents, "docs")
        for path, kind, length, key in arrays:
            head = header(kind, length)
            size = len(head) + length * kind.itemsize
            yield path.relative_to(corpus.path).as_posix(), File(size, head, row["sha256"][key])


def _what_else(path: Path) -> str:
    prepare = f"`python -m data_prep prepare --out {path} ...`"
    if not path.is_dir():
        return f"no such folder; make a corpus with {prepare}"
    if (path / PLAN).exists():
        return f"unfinished (there is no {MANIFEST}); run the same {prepare} again: it continues where it stopped"
    suffixes = {file.suffix for file in path.iterdir()}
    if {".bin", ".idx"} <= suffixes:
        return "a Megatron dataset (.bin and .idx), which is not read here; prepare the corpus again from its text"
    if ".ds" in suffixes:
        return "a datatrove dataset (.ds), which is not read here; prepare the corpus again from its text"
    return f"no {MANIFEST}, so not a prepared corpus; make one with {prepare}"


def _sources(data: Path, manifest: dict[str, Any], side: str) -> dict[str, Source]:
    """The sources of one side, by name."""
    sources = {}
    for name, entry in manifest[SIDES[side]].items():
        folder = shard_folder(data, name, side)
        shards = tuple(_shard(folder, row) for row in entry["shards"] if row["tokens"])
        sources[name] = Source(name, entry["documents"], entry["tokens"], entry["size"], shards)
    return sources


def _shard(folder: Path, row: dict[str, Any]) -> Shard:
    tokens_path = folder / row["file"]
    docs_path = tokens_path.with_name(row["file"].replace(".tokens.npy", ".docs.npy"))
    return Shard(tokens_path, row["tokens"], row["documents"], docs_path)


def _shards(corpus: Corpus) -> Iterator[tuple[dict[str, Any], Shard]]:
    """Every shard, empty ones too, after its row in the manifest."""
    for side, key in SIDES.items():
        for name, entry in corpus.manifest[key].items():
            for row in entry["shards"]:
                yield row, _shard(shard_folder(corpus.path, name, side), row)


def _manifest_findings(corpus: Corpus) -> list[str]:
    found = sealed(corpus.manifest)["id"]
    if found == corpus.id:
        return []
    return [f"{corpus.path / MANIFEST}: id {corpus.id[:12]} is not that of its content ({found[:12]}): it was edited"]


def _array_findings(corpus: Corpus) -> list[str]:
    dtype = token_dtype(corpus.tokenizer["vocab_size"])
    findings = []
    for _, shard in _shards(corpus):
        checks = (shard.path, dtype, shard.tokens), (shard.docs_path, ENDS_DTYPE, shard.documents)
        for path, kind, length in checks:
            if problem := array_problem(path, kind, length):
                findings.append(f"{path}: {problem}")
    return findings


def _deep_findings(corpus: Corpus, row: dict[str, Any], shard: Shard) -> list[str]:
    """Findings in the bytes of one shard whose headers are right."""
    findings = []
    for path, key in ((shard.path, "tokens"), (shard.docs_path, "docs")):
        if file_sha256(path) != row["sha256"][key]:
            findings.append(f"{path}: sha256 is not the manifest's: its bytes have changed")
    receipt = receipt_path(shard.path)
    try:
        content = read_json(receipt)
        if content.get("shard") != row or sealed(content) != content:
            findings.append(f"{receipt}: does not agree with the manifest, or with itself")
    except FileNotFoundError:
        findings.append(f"{receipt}: is missing")
    except UserError as error:
        findings.append(str(error))
    return findings + _content_findings(shard, corpus.tokenizer["vocab_size"], corpus.tokenizer["special"]["sep"])


def _content_findings(shard: Shard, vocab_size: int, separator: int) -> list[str]:
    """Findings in the ids and ends themselves, whatever the hashes."""
    tokens, ends = shard.open(), shard.ends()
    findings = []
    if len(tokens) and tokens.max() >= vocab_size:
        findings.append(f"{shard.path}: id {tokens.max()} is outside the vocabulary of {vocab_size}")
    last = int(ends[-1]) if len(ends) else 0
    if last != len(tokens):
        return [*findings, f"{shard.docs_path}: the last document ends at {last}, the tokens at {len(tokens)}"]
    if len(ends) and (ends[0] == 0 or (ends[1:] <= ends[:-1]).any()):
        return [*findings, f"{shard.docs_path}: document ends are not ascending"]
    if (tokens[ends - np.uint64(1)] != separator).any() or np.count_nonzero(tokens == separator) != len(ends):
        findings.append(f"{shard.path}: separators do not stand exactly where documents end")
    return findings
