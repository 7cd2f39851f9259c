"""``push``: a whole corpus copied to a URL and compared there; the manifest comes last, so that a part is not taken for it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.cli import UserError
from data_prep.files import file_sha256
from data_prep.mirror import AT_ONCE
from data_prep.remote import Remote
from data_prep.shards import MANIFEST, SIDES, Corpus, open_corpus, receipt_path, shard_folder, verify


def push(data: Path, url: str, say: Callable[[str], object] = print) -> None:
    """Copy the corpus ``data`` to ``url`` and read all of it back. What is there, whole, is not copied again.

    Raises UserError if the corpus is not whole, if another one is at the URL, or if what is read back is not what was written.
    """
    for finding in verify(data, deep=True):
        raise UserError(f"{finding}; push copies a corpus that is whole")
    corpus, remote = open_corpus(data), Remote(url)
    _refuse_another(corpus, remote)
    files = list(_files(corpus))
    with ThreadPoolExecutor(AT_ONCE, "push") as pool:
        copied = sum(pool.map(lambda name: _copy(remote, name, data / name), files))
    _copy(remote, MANIFEST, data / MANIFEST)
    size = sum((data / name).stat().st_size for name in files)
    say(
        f"{remote.url}: {len(files):,} files, {size / 1e6:,.1f} MB, all read back and whole; {copied:,} of them copied now"
    )


def _refuse_another(corpus: Corpus, remote: Remote) -> None:
    if remote.size(MANIFEST) is None:
        return
    try:
        there = json.loads(remote.read(MANIFEST))["id"]
    except (ValueError, KeyError, TypeError):
        there = "an unknown one"
    if there != corpus.id:
        raise UserError(
            f"{remote.url}: holds another corpus ({there[:12]} is not {corpus.id[:12]}); name another URL, or remove that one"
        )


def _files(corpus: Corpus) -> Iterator[str]:
    """The names of a corpus's files below its folder, the manifest's left out."""
    for side, key in SIDES.items():
        for source, entry in corpus.manifest[key].items():
            for row in entry["shards"]:
                tokens = shard_folder(corpus.path, source, side) / row["file"]
                docs = tokens.with_name(row["file"].replace(".tokens.npy", ".docs.npy"))
                for path in (tokens, docs, receipt_path(tokens)):
                    yield path.relative_to(corpus.path).as_posix()


def _copy(remote: Remote, name: str, path: Path) -> bool:
    """Have ``name`` be the same as the file at ``path``; whether it had to be copied."""
    wanted = file_sha256(path)
    if remote.size(name) == path.stat().st_size and _sha256(remote, name) == wanted:
        return False
    remote.write(name, path)
    if _sha256(remote, name) != wanted:
        raise UserError(f"{remote.url}/{name}: is read back with other bytes than {path} has; run the same push again")
    return True


def _sha256(remote: Remote, name: str) -> str:
    def read() -> str:
        digest = hashlib.sha256()
        for block in remote.blocks(name):
            digest.update(block)
        return digest.hexdigest()

    return remote.retried(name, read)
