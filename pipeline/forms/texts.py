"""Real texts on which a form is compared with the model: of the run's corpus, from a few words to more than a model reads."""

import itertools
from collections.abc import Iterable, Iterator

from data_prep.cli import UserError
from data_prep.shards import Source, open_corpus
from pipeline.models.loading import load_tokenizer

COUNT = 16
_LENGTHS = (3, 12, 40, 128, 600)  # tokens of one text, the next one, …; not all of it may fit a model
_BUILT_IN = (
    "Small.",
    "The student is small, and it reads as fast as it can.",
    "Water: 1,234.5 litres a day (2019), naïve ÉLAN; 日本語 한국어 عربي Ελληνικά.",
    " ".join(["A long text has many sentences, and each of them is read in the context of the others."] * 40),
)


def sample_texts(data: str, tokenizer: str, revision: str) -> tuple[list[str], str]:
    """Texts, and where they are from in words: held-out documents of the corpus ``data``, then those of training.

    ``tokenizer``: the model folder or hub id of the corpus's. Where the corpus or the tokenizer is gone, some built-in
    sentences, and a printed note.
    """
    try:
        corpus = open_corpus(data)
        known = load_tokenizer(tokenizer, revision)
    except (UserError, OSError) as error:
        print(f"note: compared on built-in sentences only: {error}", flush=True)
        return list(_BUILT_IN), "built-in sentences"
    rounds = itertools.chain(*(_rounds(side.values()) for side in (corpus.heldout, corpus.sources)))
    documents = itertools.islice((ids for each in rounds for ids in each if ids), max(COUNT, len(corpus.sources)))
    texts = [
        known.decode(ids[: _LENGTHS[number % len(_LENGTHS)]], skip_special_tokens=True)
        for number, ids in enumerate(documents)
    ]
    return [text for text in texts if text.strip()], "texts of the corpus"


def _rounds(sources: Iterable[Source]) -> Iterator[tuple[list[int] | None, ...]]:
    """The first document of each source, then the second of each, …"""
    return itertools.zip_longest(*map(_documents, sources))


def _documents(source: Source) -> Iterator[list[int]]:
    """The ids of a source's documents, without their separators."""
    for shard in source.shards:
        tokens, start = shard.open(), 0
        for end in shard.ends():
            yield tokens[start : int(end) - 1].tolist()
            start = int(end)
