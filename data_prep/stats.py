"""``stats``: the content of a prepared corpus, as lines of text."""

from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cli import aligned
from data_prep.plan import shares_of
from data_prep.shards import SIDES, Corpus, Source, open_corpus

_TEMPLATES = 20  # shown of each source
_BINS = (0, 32, 128, 512, 2048, 8192)  # tokens


def stats_lines(data: Path | str, alpha: float = 1.0) -> list[str]:
    """A table row for each source and side, then document lengths, drops, repairs, templates. Raises UserError as open_corpus.

    "read at" is the share of a training run's samples at ``alpha``, in proportion to (tokens of the whole source) ** alpha.
    """
    corpus = open_corpus(data)
    vocabulary = f"{corpus.tokenizer['backend']} vocabulary of {corpus.tokenizer['vocab_size']:,}"
    lines = [f"{data}: corpus {corpus.id[:12]}, {vocabulary}", *_table(corpus, alpha)]
    for name, source in corpus.sources.items():
        lines += ["", f"{name}, train:", *_length_lines(source)]
        entry = corpus.manifest["sources"][name]
        for key in ("dropped", "repairs"):
            counts = ", ".join(f"{count:,} {reason}" for reason, count in entry[key].items())
            lines.append(f"  {key}: {counts or 'none'}")
        lines += _template_lines(entry)
    return lines


def _template_lines(entry: dict[str, Any]) -> list[str]:
    """Which templates without a text stood next to words; nothing for a source whose words are not counted."""
    if not (words := entry.get("words")):  # an earlier version's manifest has none
        return []
    names, others = entry["beside"], entry["beside_others"]
    total = sum(count for _, count in names) + others
    if not total:
        return [f"  templates: none of {words:,} words stood next to one without a text"]
    shown = [f"{{{{{name}}}}} {count:,}" for name, count in names[:_TEMPLATES]]
    if rest := total - sum(count for _, count in names[:_TEMPLATES]):
        shown.append(f"others {rest:,}")
    rate = total / words * 1000
    lines = [f"  templates: {rate:.2f} of 1,000 words stood next to a template without a text: {', '.join(shown)}"]
    if entry["dropped"].get("template") and "templates" not in entry:
        lines.append(
            "  its dumps define templates: `prep templates DUMP …` makes a table of them for `prep prepare --templates`"
        )
    return lines


def _table(corpus: Corpus, alpha: float) -> list[str]:
    """Documents, tokens, shares, prepared part and rate of unknown tokens, for each source and side."""
    rows = [["source", "side", "documents", "tokens", "share", f"read at {alpha:g}", "of source", "unknown"]]
    for (side, key), sources in zip(SIDES.items(), (corpus.sources, corpus.heldout), strict=True):
        total = sum(source.tokens for source in sources.values())
        shares = shares_of({name: source.size for name, source in sources.items()}, alpha)
        for name, source in sources.items():
            share = source.tokens / max(total, 1)
            read = f"{shares[name]:.2%}" if side == "train" else ""
            prepared = source.tokens / max(source.size, 1)
            unknown = corpus.manifest[key][name]["unknown"] / max(source.tokens - source.documents, 1)
            counts = [f"{source.documents:,}", f"{source.tokens:,}", f"{share:.2%}"]
            rows.append([name, side, *counts, read, f"{prepared:.1%}", f"{unknown:.3%}"])
    return aligned(rows, left=2)


def _length_lines(source: Source) -> list[str]:
    """Quantiles and a histogram of tokens per document, separators left out."""
    # Counts by length: memory is bounded by the longest document, not by their number.
    counts = np.zeros(1, int)
    for shard in source.shards:
        more = np.bincount(np.diff(shard.ends(), prepend=np.uint64(0)).astype(int) - 1, minlength=len(counts))
        more[: len(counts)] += counts
        counts = more

    up_to = np.cumsum(counts)
    total, mean = int(up_to[-1]), counts @ np.arange(len(counts)) / up_to[-1]
    quantiles = [int(np.searchsorted(up_to, np.rint(q * (total - 1)) + 1)) for q in (0.05, 0.25, 0.5, 0.75, 0.95, 1)]
    named = zip(("5%", "25%", "50%", "75%", "95%", "max"), quantiles, strict=True)
    lines = [f"  tokens per document: mean {mean:,.0f}, " + ", ".join(f"{q} {n:,}" for q, n in named)]

    for low, high in zip(_BINS, (*_BINS[1:], None), strict=True):
        count = int(counts[low:high].sum())
        label = f"{low:,} to {high - 1:,}" if high else f"{low:,} and more"
        lines.append(f"  {label:>16} {count:10,} {'#' * round(40 * count / total)}")
    return lines
