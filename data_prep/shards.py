"""Token shards on disk: the writer, the reader and the checks. The only bridge from ``data_prep`` to ``pipeline``.

    DATA/manifest.json             what is here; written last, so no manifest means no data
    DATA/SOURCE/00000.tokens.npy   token ids [tokens], uint16 if the vocabulary fits, else uint32
    DATA/SOURCE/00000.docs.npy     document ends [documents], uint64: the index one past each document's separator
    DATA/SOURCE/00000.json         the unit's receipt
    DATA/heldout/SOURCE/...        the same, for the documents that were set aside

A document is stored as its token ids followed by one separator. A shard may be empty.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_prep.errors import UserError

VERSION = 1
MANIFEST = "manifest.json"
PLAN = "plan.json"
HELDOUT = "heldout"
ENDS_DTYPE = np.dtype("uint64")
REMEDY = "delete that file and run the same `python -m data_prep prepare` again: it makes what is missing"


@dataclass(frozen=True)
class Shard:
    """One stretch of documents of one input file. ``path`` is the tokens file."""

    path: Path
    tokens: int
    documents: int
    docs_path: Path

    def open(self) -> np.ndarray:
        """Token ids [tokens], read-only and memory-mapped."""
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def ends(self) -> np.ndarray:
        """Document ends [documents]: document i is ``tokens[ends[i-1]:ends[i]]``, its separator included."""
        return np.load(self.docs_path, mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True)
class Source:
    """One named part of a corpus. ``tokens`` counts the separators; empty shards are left out of ``shards``."""

    name: str
    documents: int
    tokens: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. ``heldout`` has the same names as ``sources``, or is empty if nothing was to be set aside."""

    path: Path
    id: str
    tokenizer: dict
    sources: dict[str, Source]
    heldout: dict[str, Source]
    manifest: dict


def open_corpus(path: str | Path) -> Corpus:
    """Open DATA after a quick check: manifest id, and every file's size, dtype and length.

    Raises UserError naming the first file that is not as the manifest says, and the way out.
    """
    corpus = _read_corpus(Path(path))
    for finding in _manifest_findings(corpus) or _array_findings(corpus):
        raise UserError(f"{finding}; {REMEDY}")
    return corpus


def verify(path: str | Path, deep: bool) -> list[str]:
    """What is wrong with DATA, one line each; ``deep`` reads every byte.

    Raises UserError if DATA is not data at all.
    """
    corpus = _read_corpus(Path(path))
    findings = _manifest_findings(corpus) or _array_findings(corpus)
    damaged = {finding.split(": ")[0] for finding in findings}
    if deep:
        for row, shard in _shards(corpus):
            if not {str(shard.path), str(shard.docs_path)} & damaged:
                findings += _deep_findings(corpus, row, shard)
    return findings


def vocabulary_hash(vocabulary: dict[str, int]) -> str:
    """sha256 of which id means which token, so that two tokenizers can be compared whatever files they came from.

    Control tokens ([CLS], [unused7], <mask>) are left out: not every kind of file names them.
    """
    plain = sorted((number, token) for token, number in vocabulary.items() if not _CONTROL_TOKEN.fullmatch(token))
    return hashlib.sha256(_encode_json({"tokens": plain})).hexdigest()


_CONTROL_TOKEN = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id of the vocabulary."""
    return np.dtype("uint16" if vocab_size <= 65536 else "uint32")


def shard_folder(data: Path, source: str, side: str) -> Path:
    """Where the shards of one source lie; ``side`` is "train" or "heldout"."""
    return data / source if side == "train" else data / HELDOUT / source


def receipt_path(tokens_path: Path) -> Path:
    """``00000.tokens.npy`` -> ``00000.json``."""
    return tokens_path.with_name(tokens_path.name.replace(".tokens.npy", ".json"))


def write_shard(folder: Path, number: int, tokens: np.ndarray, ends: np.ndarray, receipt: dict) -> dict:
    """Write shard ``number``: tokens [tokens], document ends [documents], and last its receipt.

    Returns the shard's row of the manifest: file, tokens, documents, sha256. The receipt holds it as "shard".
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{number:05d}"
    hashes = {
        "tokens": _write_array(folder / f"{stem}.tokens.npy", tokens),
        "docs": _write_array(folder / f"{stem}.docs.npy", ends.astype(ENDS_DTYPE)),
    }
    row = {"file": f"{stem}.tokens.npy", "tokens": len(tokens), "documents": len(ends), "sha256": hashes}
    write_json(folder / f"{stem}.json", receipt | {"shard": row})
    return row


def write_manifest(data: Path, content: dict) -> dict:
    """Write DATA/manifest.json from its content, adding the format version and the corpus id. Returns the manifest."""
    manifest = {"version": VERSION} | content
    manifest["id"] = _corpus_id(manifest)
    write_json(data / MANIFEST, manifest)
    return manifest


def write_json(path: Path, value: dict) -> None:
    """Write ``value`` atomically, in a form whose bytes depend on the value alone."""
    _write_atomic(path, lambda file: file.write(_encode_json(value)))


def read_json(path: Path) -> dict:
    """A JSON object. Raises UserError if the file holds anything else, FileNotFoundError if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {REMEDY}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; {REMEDY}")
    return value


def array_problem(path: Path, dtype: np.dtype, length: int) -> str | None:
    """Why the .npy file is not a whole one-dimensional array of that dtype and length; None if it is."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                return f"is .npy version {version}, not (1, 0)"
            shape, _, found = np.lib.format.read_array_header_1_0(file)
            expected_size = file.tell() + length * dtype.itemsize
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError) as error:
        return f"has no readable .npy header ({error})"
    if (shape, found) != ((length,), dtype):
        return f"holds {found}{list(shape)} where the manifest says {dtype}[{length}]"
    return None if size == expected_size else f"has {size} bytes instead of {expected_size}"


def _read_corpus(path: Path) -> Corpus:
    """Raises UserError if there is no manifest to be read, saying what is there instead."""
    try:
        manifest = read_json(path / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: {_what_else(path)}") from None
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path / MANIFEST}: format version {manifest.get('version')!r}, but this program reads {VERSION}; "
            "prepare the corpus again from its text"
        )
    try:
        sides = [
            {name: _source(shard_folder(path, name, side), name, entry) for name, entry in manifest[key].items()}
            for side, key in (("train", "sources"), ("heldout", HELDOUT))
        ]
        return Corpus(path, manifest["id"], manifest["tokenizer"], *sides, manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / MANIFEST}: not a manifest ({error!r}); {REMEDY}") from None


def _what_else(path: Path) -> str:
    prepare = f"`python -m data_prep prepare --out {path} ...`"
    if not path.is_dir():
        return f"no such folder; make a corpus with {prepare}"
    if (path / PLAN).exists():
        return f"unfinished (there is no {MANIFEST}); run the same {prepare} again: it goes on where it stopped"
    suffixes = {file.suffix for file in path.iterdir()}
    if {".bin", ".idx"} <= suffixes:
        return "a Megatron dataset (.bin and .idx), which is not read here; prepare the corpus again from its text"
    if ".ds" in suffixes:
        return "a datatrove dataset (.ds), which is not read here; prepare the corpus again from its text"
    return f"no {MANIFEST}, so not a prepared corpus; make one with {prepare}"


def _source(folder: Path, name: str, entry: dict) -> Source:
    shards = tuple(_shard(folder, row) for row in entry["shards"] if row["tokens"])
    return Source(name, entry["documents"], entry["tokens"], shards)


def _shard(folder: Path, row: dict) -> Shard:
    tokens_path = folder / row["file"]
    docs_path = tokens_path.with_name(row["file"].replace(".tokens.npy", ".docs.npy"))
    return Shard(tokens_path, row["tokens"], row["documents"], docs_path)


def _shards(corpus: Corpus) -> Iterator[tuple[dict, Shard]]:
    """Every shard, empty ones too, with its row in the manifest."""
    for side, key in (("train", "sources"), ("heldout", HELDOUT)):
        for name, entry in corpus.manifest[key].items():
            for row in entry["shards"]:
                yield row, _shard(shard_folder(corpus.path, name, side), row)


def _manifest_findings(corpus: Corpus) -> list[str]:
    found = _corpus_id(corpus.manifest)
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


def _deep_findings(corpus: Corpus, row: dict, shard: Shard) -> list[str]:
    """Findings in the bytes of one shard whose headers are right."""
    findings = []
    for path, key in ((shard.path, "tokens"), (shard.docs_path, "docs")):
        if _file_sha256(path) != row["sha256"][key]:
            findings.append(f"{path}: sha256 is not the manifest's: its bytes have changed")
    receipt = receipt_path(shard.path)
    try:
        if read_json(receipt).get("shard") != row:
            findings.append(f"{receipt}: does not agree with the manifest")
    except FileNotFoundError:
        findings.append(f"{receipt}: is missing")
    except UserError as error:
        findings.append(str(error))
    return findings + _content_findings(shard, corpus.tokenizer["vocab_size"], corpus.tokenizer["special"]["sep"])


def _content_findings(shard: Shard, vocab_size: int, separator: int) -> list[str]:
    """What the ids and ends themselves say, whatever the hashes."""
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


def _corpus_id(manifest: dict) -> str:
    content = {key: value for key, value in manifest.items() if key != "id"}
    return hashlib.sha256(_encode_json(content)).hexdigest()


def _encode_json(value: dict) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def _write_array(path: Path, array: np.ndarray) -> str:
    """Write a .npy file; returns its sha256."""

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(memoryview(array))  # array.tofile loses the errno of a full disk

    _write_atomic(path, write)
    return _file_sha256(path)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write aside, fsync, rename. A killed process leaves at most ``.NAME.PID.tmp``."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
