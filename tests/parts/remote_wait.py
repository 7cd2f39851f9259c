"""The wait for data at a URL, as a share of the time of steps: ``python -m tests.parts.remote_wait``.

A corpus in moto's S3 server, in another process, is read through a link of so many MB/s by one reader, which is given STEP
seconds for each step. The cache holds a part of it. What waits is timed after the first step; the same corpus on the disk is
timed next to it.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data_prep.mirror import Cache
from data_prep.push import push
from data_prep.shards import Corpus, open_corpus, write_manifest, write_shard
from pipeline.data.following import bytes_at_once, followed
from pipeline.data.reading import ReadAhead, order_of, steps, training_windows
from tests.parts.bucket import BUCKET, bucket, proxy
from tests.parts.tiny import SPECIAL, WORDS, fingerprint


def make(folder: Path, shards: int, tokens: int) -> Path:
    """A corpus of one source of random documents of 500 tokens."""
    generator, rows = np.random.default_rng(0), []
    for number in range(shards):
        ids = generator.integers(5, len(WORDS), tokens).astype(np.uint16)
        ends = np.append(np.arange(500, tokens, 500), tokens)
        ids[ends - 1] = SPECIAL["sep"]
        rows.append(write_shard(folder / "a", f"00000-{number:05d}", ids, ends, {}))
    entry = {"documents": sum(row["documents"] for row in rows), "tokens": shards * tokens, "size": shards * tokens}
    write_manifest(folder, {"tokenizer": fingerprint(), "sources": {"a": entry | {"shards": rows}}, "heldout": {}})
    return folder


def waits(corpus: Corpus, options: argparse.Namespace) -> np.ndarray:
    """Seconds that each step waited for its samples."""
    windows = training_windows(corpus, options.length)
    order, own = (order_of(windows, 1.0, 1, options.shuffle_shards) for _ in range(2))
    count = min(options.steps, sum(windows.counts) // options.batch)
    read = steps(windows, order, 0, count, options.batch, 0, 1)
    ready = ReadAhead(followed(read, corpus, windows, own, options.batch, 0, count), torch.device("cpu"))
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        next(ready)
        taken.append(time.perf_counter() - begun)
        time.sleep(options.step)
    if corpus.mirror:
        kept = sum(path.stat().st_size for path in corpus.mirror.cache.folder.glob("**/[!.]*.tokens.npy"))
        print(f"kept in the cache: {kept / 1e6:.0f} of {bytes_at_once(windows, 0) / 1e6:.0f} MB")
    return np.array(taken)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    for name, default in (("shards", 12), ("tokens", 4_000_000), ("length", 128), ("batch", 1024), ("steps", 300)):
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--shuffle-shards", type=int, default=2)
    made.add_argument("--step", type=float, default=0.1, help="seconds of a step")
    made.add_argument("--rate", type=float, default=100, help="MB/s of the link")
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as place, bucket() as server, proxy(server.port, options.rate * 1e6) as link:
        data, url = make(Path(place, "data"), options.shards, options.tokens), f"s3://{BUCKET}/measured"
        os.environ |= server.environment
        push(data, url)
        os.environ |= link.environment
        room = int(2.5 * 2 * options.shuffle_shards * 2 * options.tokens / 2)
        for what, corpus in (
            ("disk", open_corpus(data)),
            ("link", open_corpus(url, Cache(Path(place, "cache"), room))),
        ):
            taken = waits(corpus, options)
            later = taken[1:]
            share = later.sum() / (later.sum() + options.step * len(later))
            print(
                f"{what}: {len(taken)} steps of {options.step} s; the first waits {taken[0]:.2f} s, the others {share:.2%} "
                f"of their time, {later.max():.3f} s at most"
            )


if __name__ == "__main__":
    main()
