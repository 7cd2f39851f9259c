"""How fast an index of packed rows is made and opened, for document ends made up here; tokens are holes in a file.

    python -m tests.parts.pack_speed MEDIAN SPREAD DOCUMENTS SHARDS LENGTH

Documents have lognormal numbers of tokens with this median and, of their logarithms, this standard deviation.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from data_prep import packing
from data_prep.npy import GrowingArray
from data_prep.shards import ENDS_DTYPE, open_corpus, write_manifest


def make_up(folder: Path, median: float, spread: float, documents: int, shards: int) -> None:
    """Write a corpus of one source whose document ends are there, and whose tokens are not."""
    from tests.parts.tiny import fingerprint  # with torch, whose memory is not to be counted

    random, rows = np.random.default_rng(0), []
    (folder / "a").mkdir()
    for number in range(shards):
        sizes = random.lognormal(np.log(median), spread, documents // shards).astype(np.int64)
        ends = np.cumsum(np.maximum(1, sizes) + 1)
        stem, tokens = f"00000-{number:05d}", int(ends[-1])
        files = GrowingArray(folder / "a" / f"{stem}.docs.npy", ENDS_DTYPE)
        files.extend(ends)
        empty = np.lib.format.open_memmap(
            folder / "a" / f"{stem}.tokens.npy", "w+", np.uint16, (tokens,), version=(1, 0)
        )
        hashes = {"tokens": "", "docs": files.finish()}
        rows.append({"file": f"{stem}.tokens.npy", "tokens": len(empty), "documents": len(ends), "sha256": hashes})
    tokens = sum(row["tokens"] for row in rows)
    entry = {"documents": documents // shards * shards, "tokens": tokens, "size": tokens, "shards": rows}
    write_manifest(folder, {"tokenizer": fingerprint(), "sources": {"a": entry}, "heldout": {}})


def main(median: str, spread: str, documents: str, shards: str, length: str) -> None:
    with tempfile.TemporaryDirectory(prefix="pack-speed-") as folder:
        sizes = Path(folder), float(median), float(spread), int(documents), int(shards)
        making = multiprocessing.get_context("spawn").Process(target=make_up, args=sizes)  # whose memory is its own
        making.start()
        making.join()
        corpus = open_corpus(folder)
        source, wide = corpus.sources["a"], int(length)
        begin = time.perf_counter()
        packing.packing_of(corpus, "train", wide, 2, say=lambda _: None)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        begin = time.perf_counter()
        packed = packing.packing_of(corpus, "train", wide, 2)
        opened = time.perf_counter() - begin
        packing._REHASHED = -1  # as of an index above 1 GiB
        begin = time.perf_counter()
        packing.packing_of(corpus, "train", wide, 2)
        large = time.perf_counter() - begin
        pieces, rows = len(packed.size), len(packed.first) - 1
        filled = (source.tokens - source.documents + 2 * pieces) / (rows * wide)
        print(
            f"{source.documents:,} documents, {source.tokens:,} tokens: {pieces:,} pieces in {rows:,} rows, {filled:.2%}"
        )
        print(f"made in {seconds:.1f} s, opened in {opened * 1e3:.1f} ms, without hashes {large * 1e3:.1f} ms")
        print(f"peak of memory {peak:.0f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
