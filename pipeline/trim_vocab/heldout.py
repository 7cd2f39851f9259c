"""Figures of held-out text: how the tokenizers before and after cut it."""

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from data_prep.shards import Corpus, Source

# The documents of each language, and the tokens of each document.
TEXTS, TEXT_TOKENS = 2000, 512


def heldout(corpus: Corpus, name: str, before: Tokenizer, after: Tokenizer, new: np.ndarray) -> dict | None:
    """Figures of a language's held-out text, decoded and cut again by the tokenizers before and after; None without text.

    ``unknown``: the share of tokens that are unknown. ``cut_otherwise``: the share of tokens before that are not tokens
    after. The text is the first TEXT_TOKENS tokens of the first TEXTS documents.
    """
    source = corpus.heldout.get(name)
    if source is None or not source.tokens:
        return None
    unknown = corpus.tokenizer["special"]["unk"]
    tokens, unknowns = [0, 0], [0, 0]  # before and after
    texts = other = 0
    for document in _documents(source):
        text = before.decode(document.tolist(), skip_special_tokens=False)
        old, cut = (tokenizer.encode(text, add_special_tokens=False) for tokenizer in (before, after))
        texts += 1
        for side, (encoding, number) in enumerate(((old, unknown), (cut, int(new[unknown])))):
            tokens[side] += len(encoding.ids)
            unknowns[side] += encoding.ids.count(number)
        same = set(zip(cut.offsets, cut.ids, strict=True))
        other += sum((place, int(new[i])) not in same for place, i in zip(old.offsets, old.ids, strict=True))
    shares = [count / max(of, 1) for count, of in zip(unknowns, tokens, strict=True)]
    return {
        "texts": texts,
        "tokens": {"before": tokens[0], "after": tokens[1]},
        "unknown": {"before": shares[0], "after": shares[1]},
        "cut_otherwise": other / max(tokens[0], 1),
    }


def _documents(source: Source) -> Iterator[np.ndarray]:
    """The beginnings of a source's first documents, without separators."""
    left = TEXTS
    for shard in source.shards:
        tokens, begin = shard.open(), 0
        for end in shard.ends()[:left].tolist():
            yield tokens[begin : min(end - 1, begin + TEXT_TOKENS)]
            begin = end
        left -= min(left, shard.documents)
