"""Whether a corpus fits a tokenizer and a run, and what a person should know about how it will be read."""

from collections.abc import Iterable, Iterator
from typing import Any

from data_prep.cli import UserError
from data_prep.shards import Corpus, verify, vocabulary_hash
from pipeline.data.following import bytes_at_once
from pipeline.data.order import BLOCK, Order
from pipeline.data.reading import filled, read_of, sequences_a_row
from pipeline.data.windows import Windows

MANY_EPOCHS = 20


def notes(corpus: Corpus, windows: Windows, order: Order, batch: int, steps: int) -> Iterator[str]:
    """Notes for a person on how this corpus will be read in ``steps`` steps."""
    if len(windows) < batch:
        yield f"{corpus.place} has {len(windows)} windows of {windows.length} tokens, less than a batch: they repeat in a step"
    for name in sorted(corpus.sources.keys() - windows.names):
        why = f"fills a window of {windows.length} tokens" if windows.padding is None else "has a document with a token"
        yield f"source {name} is left out: no shard of it {why}"
    for name, quota in zip(windows.names, order.quotas, strict=True):
        if not quota:
            yield f"source {name} is never read: its share of {BLOCK} samples rounds to none; lower sampling_alpha"
    often = {name: reading.epochs for name, reading in read_of(windows, order, steps * batch).items()}
    if often := {name: times for name, times in often.items() if times > MANY_EPOCHS}:
        worst = ", ".join(
            f"{name} {often[name]:,.0f}" for name in sorted(often, key=often.__getitem__, reverse=True)[:5]
        )
        yield (
            f"{len(often)} of {len(windows.names)} sources are read more than {MANY_EPOCHS} times (the most: {worst}); "
            "more of their text, a higher sampling_alpha or fewer steps would help"
        )
    if windows.padding is None:
        tokens = sum(source.tokens for source in corpus.sources.values())
        left = tokens - len(windows) * windows.inner
        yield f"{left:,} of {tokens:,} tokens lie in shard tails that fill no window"
    else:
        shared = (
            "" if windows.a_row is None else f"a row has {sequences_a_row(windows, order):.1f} pieces in the mean; "
        )
        yield f"{shared}{1 - filled(windows, order):.1%} of the positions that are read are padding"


def about_cache(corpus: Corpus, windows: Windows, shuffle_shards: int) -> str:
    """Why the cache of a corpus at a URL is too small for how it will be read; empty if it is not."""
    if corpus.mirror is None:
        return ""
    needed, size = bytes_at_once(windows, shuffle_shards), corpus.mirror.cache.size
    if needed <= size:
        return ""
    if shuffle_shards:
        way = (
            f"two turns of shuffle_shards = {shuffle_shards} take {needed / 1e9:.3g} GB; use as much, or a smaller one"
        )
    else:
        way = (
            f"samples are drawn from all shards, {needed / 1e9:.3g} GB; use as much, or shuffle_shards = 8, 8 at a time"
        )
    return way


_REHASHED = 2**30  # bytes; a larger corpus is not read whole at each start


def check_tokenizer(corpus: Corpus, tokenizer: Any, model: str, roles: Iterable[str]) -> None:
    """The corpus must hold the ids of ``model``'s tokenizer: its vocabulary, its ids of a probe text and of these ``roles``.

    ``roles``: special tokens, as "cls". Raises UserError, with the remedy.
    """
    own, remedy = corpus.tokenizer, f"prepare the data with --tokenizer {model}"
    if own["vocabulary"] != vocabulary_hash(tokenizer.get_vocab()):
        raise UserError(
            f"{corpus.place}: made with another vocabulary ({own['vocab_size']} ids) than that of {model} ({len(tokenizer)}): "
            f"some ids mean other pieces; {remedy}"
        )
    probe = own["probe"]
    if (ids := tokenizer(probe["text"], add_special_tokens=False)["input_ids"]) != probe["ids"]:
        raise UserError(
            f"{corpus.place}: made with another tokenizer than that of {model}: a probe text comes out as "
            f"{probe['ids'][:4]}… there and {ids[:4]}… here; {remedy}"
        )
    for role in roles:
        if (number := getattr(tokenizer, f"{role}_token_id")) != own["special"][role]:
            raise UserError(
                f"{corpus.place}: has {role} = {own['special'][role]}, the tokenizer of {model} has {number}; {remedy}"
            )


def check_corpus(corpus: Corpus, tokenizer: Any, model: str, layout: str, embeddings: int) -> None:
    """Raise UserError unless ``corpus`` is of ``model``'s tokenizer, as far as a layout needs it, and within its embeddings."""
    check_tokenizer(corpus, tokenizer, model, ("cls", "sep") if layout == "full" else ("cls", "sep", "pad"))
    if corpus.tokenizer["vocab_size"] > embeddings:
        raise UserError(
            f"{corpus.place}: {corpus.tokenizer['vocab_size']} token ids, the teacher has {embeddings} embeddings; prepare the "
            "data with the teacher's own tokenizer"
        )


def times_read(tokens: float, of: int) -> str:
    """How often ``of`` tokens are read by a run of so many ``tokens``, in words: "1.50 times that number"."""
    ratio = tokens / max(of, 1)
    return f"{ratio:.2f} times that number" if ratio >= 0.1 else f"{100 * ratio:.2g} % of that number"


def about_heldout(place: str, windows: int, length: int, asked: int) -> str:
    """A note on too few held-out windows for ``asked`` samples of an evaluation; empty if there are enough."""
    if not asked:
        return "eval_samples = 0: no held-out losses"
    if not windows:
        remedy = "prepare the data with a larger --heldout"
        return f"{place} has no held-out window of {length} tokens: no held-out losses; {remedy}"
    if windows < asked:
        return f"eval_samples = {asked}, but {windows} windows are held out: held-out losses are means over {windows}"
    return ""


def check_bytes(corpus: Corpus) -> None:
    """Re-hash a corpus of up to 1 GiB, so that an altered shard is refused. Larger ones: `data_prep verify --deep`."""
    if corpus.mirror:
        return  # each file was compared when it was fetched
    everything = [*corpus.sources.values(), *corpus.heldout.values()]
    if sum(shard.path.stat().st_size for source in everything for shard in source.shards) <= _REHASHED:
        for finding in verify(corpus.path, deep=True):
            raise UserError(
                f"{finding}; delete that shard's files and run the same `python -m data_prep prepare` again"
            )
