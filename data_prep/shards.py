"""Token shards on disk: the writer, the reader and the checks. The only form in which data reach ``pipeline``.

    DATA/manifest.json             what is here; written last, so no manifest means no data
    DATA/SOURCE/00000-00000.tokens.npy   token ids [tokens], uint16 if the vocabulary fits, else uint32
    DATA/SOURCE/00000-00000.docs.npy     document ends [documents], uint64: the index one past each document's separator
    DATA/SOURCE/00000-00000.json         the unit's receipt
    DATA/heldout/SOURCE/...              the same, for the documents that were set aside

A document is stored as its token ids followed by one separator. A shard is named by its unit: the number of the file in
its source, and of the unit in the file. It may be empty.
"""

import hashlib
import io
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import UserError

VERSION = 2
MANIFEST = "manifest.json"
PLAN = "plan.json"
HELDOUT = "heldout"
SIDES = {"train": "sources", "heldout": HELDOUT}  # side: its key in the manifest
ENDS_DTYPE = np.dtype("uint64")
REMEDY = (
    "delete that file if it is there, and run the same `python -m data_prep prepare` again: it makes what is missing"
)


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
    """``00000-00000.tokens.npy`` -> ``00000-00000.json``."""
    return tokens_path.with_name(tokens_path.name.replace(".tokens.npy", ".json"))


class ShardWriter:
    """One shard being written, in bounded memory: two files grow aside and take their names in ``finish``."""

    def __init__(self, folder: Path, stem: str, dtype: np.dtype):
        self._folder, self._stem = folder, stem
        folder.mkdir(parents=True, exist_ok=True)
        self._tokens = _GrowingArray(folder / f"{stem}.tokens.npy", dtype)
        self._docs = _GrowingArray(folder / f"{stem}.docs.npy", ENDS_DTYPE)

    def extend(self, tokens: np.ndarray, ends: np.ndarray) -> None:
        """Append documents: tokens [n], separators included, and their ends [documents] within these."""
        ends = np.asarray(ends, ENDS_DTYPE) + np.uint64(self._tokens.length)
        self._tokens.extend(tokens)
        self._docs.extend(ends)

    def finish(self, receipt: dict) -> dict:
        """Put the files in place, and last the receipt; returns the shard's row of the manifest, which it holds too."""
        receipt_file = self._folder / f"{self._stem}.json"
        receipt_file.unlink(missing_ok=True)  # one of an earlier shard must not stand beside the new arrays
        hashes = {"tokens": self._tokens.finish(), "docs": self._docs.finish()}
        row = {"file": f"{self._stem}.tokens.npy", "tokens": self._tokens.length, "documents": self._docs.length}
        row["sha256"] = hashes
        write_json(receipt_file, sealed(receipt | {"shard": row}))
        return row

    def discard(self) -> None:
        """Remove what was not finished; to be called at the end in any case."""
        self._tokens.discard()
        self._docs.discard()


def write_shard(folder: Path, stem: str, tokens: np.ndarray, ends: np.ndarray, receipt: dict) -> dict:
    """Write a shard at once: tokens [tokens], document ends [documents]. Returns its row of the manifest."""
    writer = ShardWriter(folder, stem, tokens.dtype)
    try:
        writer.extend(tokens, ends)
        return writer.finish(receipt)
    finally:
        writer.discard()


def write_manifest(data: Path, content: dict) -> dict:
    """Write DATA/manifest.json from its content, adding the format version and the corpus id. Returns the manifest."""
    manifest = sealed({"version": VERSION} | content)
    write_json(data / MANIFEST, manifest)
    return manifest


def sealed(content: dict) -> dict:
    """The content with its "id", the sha256 of all the rest."""
    rest = {key: value for key, value in content.items() if key != "id"}
    return rest | {"id": hashlib.sha256(_encode_json(rest)).hexdigest()}


def write_json(path: Path, value: dict) -> None:
    """Write ``value`` atomically, in a form whose bytes depend on the value alone."""
    _write_atomic(path, _encode_json(value))


def read_json(path: Path) -> dict:
    """A JSON object. Raises UserError if the file holds anything else, FileNotFoundError if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {REMEDY}") from None
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from None
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; {REMEDY}")
    return value


def array_problem(path: Path, dtype: np.dtype, length: int) -> str | None:
    """Why the .npy file is not a whole one-dimensional array of that dtype and length; None if it is."""
    header = _header(dtype, length)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = file.read(len(header))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    expected = len(header) + length * dtype.itemsize
    if size != expected:
        return f"has {size} bytes instead of {expected}"
    return None if found == header else f"has another .npy header than that of {dtype}[{length}]"


def _header(dtype: np.dtype, length: int) -> bytes:
    """The header of a .npy file. NumPy leaves room in it for a length of 21 digits, so it can be written anew in place."""
    content = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()


def _read_corpus(path: Path) -> Corpus:
    """Raises UserError if there is no manifest to be read, saying what is there instead."""
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
        sides = [
            {name: _source(shard_folder(path, name, side), name, entry) for name, entry in manifest[key].items()}
            for side, key in SIDES.items()
        ]
        return Corpus(path, manifest["id"], manifest["tokenizer"], *sides, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
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
    return Source(name, entry["documents"], entry["tokens"], entry["size"], shards)


def _shard(folder: Path, row: dict) -> Shard:
    tokens_path = folder / row["file"]
    docs_path = tokens_path.with_name(row["file"].replace(".tokens.npy", ".docs.npy"))
    return Shard(tokens_path, row["tokens"], row["documents"], docs_path)


def _shards(corpus: Corpus) -> Iterator[tuple[dict, Shard]]:
    """Every shard, empty ones too, with its row in the manifest."""
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


def _deep_findings(corpus: Corpus, row: dict, shard: Shard) -> list[str]:
    """Findings in the bytes of one shard whose headers are right."""
    findings = []
    for path, key in ((shard.path, "tokens"), (shard.docs_path, "docs")):
        if _file_sha256(path) != row["sha256"][key]:
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


def _encode_json(value: dict) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


class _GrowingArray:
    """A one-dimensional .npy file that grows aside. Its header has a fixed length and is written anew at the end."""

    def __init__(self, path: Path, dtype: np.dtype):
        self._path, self._aside, self._dtype = path, aside(path), dtype
        self.length = 0
        self._file = self._aside.open("w+b")
        self._file.write(_header(dtype, 0))

    def extend(self, values: np.ndarray) -> None:
        with _naming(self._path):
            self._file.write(memoryview(np.ascontiguousarray(values, self._dtype)))  # tofile loses a full disk's errno
        self.length += len(values)

    def finish(self) -> str:
        """The file's sha256, once it is whole and has its name."""
        with _naming(self._path):
            self._file.seek(0)
            self._file.write(_header(self._dtype, self.length))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.seek(0)
            digest = hashlib.file_digest(self._file, "sha256").hexdigest()
            self._file.close()
            _put_in_place(self._aside, self._path)
        return digest

    def discard(self) -> None:
        with suppress(OSError):  # a full disk is told by what met it first
            self._file.close()
        self._aside.unlink(missing_ok=True)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def aside(path: Path) -> Path:
    """Where this process writes what will be ``path``. A killed process leaves it behind."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def _write_atomic(path: Path, content: bytes) -> None:
    """Write aside, fsync, rename."""
    with _naming(path):
        try:
            with aside(path).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _put_in_place(aside(path), path)
        except BaseException:
            aside(path).unlink(missing_ok=True)
            raise


def _put_in_place(written: Path, path: Path) -> None:
    written.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make an OSError name ``path``, whatever the file was called while it grew."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
