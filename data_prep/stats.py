"""``stats``: what a prepared corpus holds, as lines of text."""

from pathlib import Path

import numpy as np

from data_prep.shards import HELDOUT, Source, open_corpus

_BINS = (0, 32, 128, 512, 2048, 8192)  # tokens


def stats_lines(data: Path, alpha: float = 1.0) -> list[str]:
    """A table row for each source and side, then document lengths, drops and repairs. Raises UserError as open_corpus.

    ``read`` is the share of a training run's samples at ``alpha``, in proportion to (tokens of the whole source) ** alpha.
    """
    corpus = open_corpus(data)
    sides = (("train", "sources", corpus.sources), ("heldout", HELDOUT, corpus.heldout))
    lines = [
        f"{data}: corpus {corpus.id[:12]}, {corpus.tokenizer['backend']} vocabulary of {corpus.tokenizer['vocab_size']:,}"
    ]
    read = f"read at {alpha:g}"
    lines.append(
        f"{'source':16} {'side':8} {'documents':>12} {'tokens':>15} {'share':>7} {read:>12} {'of source':>10} {'unknown':>8}"
    )
    for side, key, sources in sides:
        total = sum(source.tokens for source in sources.values())
        weights = {name: float(source.size) ** alpha if source.size else 0.0 for name, source in sources.items()}
        for name, source in sources.items():
            share = source.tokens / max(total, 1)
            read = weights[name] / (sum(weights.values()) or 1)
            prepared = source.tokens / max(source.size, 1)
            unknown = corpus.manifest[key][name]["unknown"] / max(source.tokens - source.documents, 1)
            counts = f"{source.documents:12,} {source.tokens:15,} {share:7.2%}"
            lines.append(f"{name:16} {side:8} {counts} {read:12.2%} {prepared:10.1%} {unknown:8.3%}")
    for name, source in corpus.sources.items():
        lines += ["", f"{name}, train:", *_length_lines(source)]
        for what in ("dropped", "repairs"):
            counts = corpus.manifest["sources"][name][what]
            lines.append(f"  {what}: {', '.join(f'{count:,} {reason}' for reason, count in counts.items()) or 'none'}")
    return lines


def _length_lines(source: Source) -> list[str]:
    """Quantiles and a histogram of tokens per document, separators left out."""
    lengths = np.concatenate([np.diff(shard.ends(), prepend=np.uint64(0)) for shard in source.shards]).astype(int) - 1
    quantiles = np.quantile(lengths, (0.05, 0.25, 0.5, 0.75, 0.95, 1), method="nearest")
    named = zip(("5%", "25%", "50%", "75%", "95%", "max"), quantiles, strict=True)
    lines = [f"  tokens per document: mean {lengths.mean():,.0f}, " + ", ".join(f"{q} {n:,}" for q, n in named)]
    counts = np.histogram(lengths, (*_BINS, np.inf))[0]
    for low, high, count in zip(_BINS, (*_BINS[1:], None), counts, strict=True):
        label = f"{low:,} to {high - 1:,}" if high else f"{low:,} and more"
        lines.append(f"  {label:>16} {count:10,} {'#' * round(40 * count / len(lengths))}")
    return lines
