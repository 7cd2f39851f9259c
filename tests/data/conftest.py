"""A corpus of documents of telling lengths."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.shards import open_corpus, write_manifest, write_shard
from tests.parts.tiny import SPECIAL, WORDS, fingerprint

# Tokens of the documents of three shards: none, one, a window less one, exact, and one more; and several pieces of many.
LENGTHS = {"a": [[1, 13, 14, 15, 0, 28, 29, 200], [5] * 600 + [40]], "b": [[3] * 255 + [20, 20] + [1] * 255]}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A corpus of LENGTHS, and its documents: tuples of ids, by source."""
    folder, generator = tmp_path_factory.mktemp("documents"), np.random.default_rng(4)
    content, texts = {"tokenizer": fingerprint(), "sources": {}, "heldout": {}}, {}
    for name, sizes in LENGTHS.items():
        stored = [[tuple(generator.integers(5, len(WORDS), n).tolist()) for n in shard] for shard in sizes]
        rows = [write_documents(folder / name, number, shard) for number, shard in enumerate(stored)]
        texts[name] = [text for shard in stored for text in shard]
        tokens = sum(row["tokens"] for row in rows)
        content["sources"][name] = {"documents": len(texts[name]), "tokens": tokens, "size": tokens, "shards": rows}
    write_manifest(folder, content)
    return open_corpus(folder), texts


def write_documents(folder: Path, number: int, texts: list[tuple[int, ...]]) -> dict:
    tokens = np.array([token for text in texts for token in (*text, SPECIAL["sep"])], np.uint16)
    return write_shard(folder, f"00000-{number:05d}", tokens, np.cumsum([len(text) + 1 for text in texts]), {})
