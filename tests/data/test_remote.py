"""Training data at a URL: the samples are those of the disk, bit for bit, and shards are fetched ahead of their order."""

import os
import time

import numpy as np
import pytest
import torch

from data_prep.mirror import Cache
from data_prep.push import push
from data_prep.shards import open_corpus, write_manifest
from pipeline.data import following
from pipeline.data.fits import about_cache
from pipeline.data.following import bytes_at_once, followed
from pipeline.data.reading import heldout_of, order_of, steps, training_windows
from tests.data.conftest import write_documents
from tests.parts import launching
from tests.parts.bucket import BUCKET, bucket, proxy
from tests.parts.runs import assert_same_state, job, untimed
from tests.parts.tiny import WORDS, fingerprint, make_recipe

pytestmark = pytest.mark.slow

SHARDS, TOKENS, ALL = 10, 1500, 10 * (128 + 2 * 1500)


def make_many(folder):
    """Ten shards of as many tokens each, and one held out."""
    generator = np.random.default_rng(4)
    content = {"tokenizer": fingerprint(), "sources": {}, "heldout": {}}
    for side, place, count in (("sources", folder / "a", SHARDS), ("heldout", folder / "heldout" / "a", 1)):
        texts = [
            [tuple(generator.integers(5, len(WORDS), 14).tolist()) for _ in range(TOKENS // 15)] for _ in range(count)
        ]
        rows = [write_documents(place, number, shard) for number, shard in enumerate(texts)]
        tokens, documents = (sum(row[key] for row in rows) for key in ("tokens", "documents"))
        content[side]["a"] = {"documents": documents, "tokens": tokens, "size": tokens, "shards": rows}
    write_manifest(folder, content)
    return folder


@pytest.fixture(scope="module")
def server():
    before = dict(os.environ)
    with bucket() as made:
        os.environ.update(made.environment)
        yield made
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    make_many(folder / "data")
    make_recipe(folder)
    return folder


@pytest.fixture(scope="module")
def url(server, folder):
    push(folder / "data", f"s3://{BUCKET}/many")
    return f"s3://{BUCKET}/many"


def batches(corpus, layout="full", paired=False, at_a_time=2, first=0, last=60, rank=0, ranks=1):
    windows = training_windows(corpus, 16, layout, paired)
    order, own = (order_of(windows, 1.0, 3, at_a_time) for _ in range(2))
    read = steps(windows, order, first, last, 32, rank, ranks)
    return followed(read, corpus, windows, own, 32, first, last)


def same(one, other):
    fields = ("ids", "second", "lengths")
    return all(
        (a is None and b is None) or torch.equal(a, b)
        for a, b in ((getattr(one, name), getattr(other, name)) for name in fields)
    )


@pytest.mark.parametrize("layout", ["full", "doc", "packed"])
@pytest.mark.parametrize("paired", [False, True])
def test_samples_are_those_of_the_disk(url, folder, tmp_path, layout, paired):
    here = open_corpus(folder / "data")
    for at_a_time, size in ((2, 5 * ALL // SHARDS), (0, 2 * ALL)):
        there = open_corpus(url, Cache(tmp_path / f"cache-{at_a_time}", size))
        both = (batches(corpus, layout, paired, at_a_time) for corpus in (here, there))
        assert all(same(a, b) for a, b in zip(*both, strict=True))
        kept = (tmp_path / f"cache-{at_a_time}").glob("**/[!.]*.tokens.npy")
        assert 0 < sum(path.stat().st_size for path in kept) <= size
        a, b = (heldout_of(corpus, 16, 20, 1.0, 3, layout, paired) for corpus in (here, there))
        assert same(a.inputs, b.inputs) and a.sources == b.sources


def test_two_ranks_that_share_a_cache_and_resume_read_the_same(url, folder, tmp_path, monkeypatch):
    whole = list(batches(open_corpus(folder / "data")))
    corpora = [open_corpus(url, Cache(tmp_path / "cache", 5 * ALL // SHARDS)) for _ in range(2)]
    monkeypatch.setenv("LOCAL_RANK", "0")
    first = batches(corpora[0], first=17, rank=0, ranks=2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    second = batches(corpora[1], first=17, rank=1, ranks=2)
    for expected, a, b in zip(whole[17:], first, second, strict=True):
        assert torch.equal(expected.ids, torch.cat([a.ids, b.ids]))


def test_shards_are_fetched_before_they_are_read(url, tmp_path):
    corpus = open_corpus(url, Cache(tmp_path / "cache", 5 * ALL // SHARDS))
    windows = training_windows(corpus, 16)
    order, read = order_of(windows, 1.0, 3, 2), set()
    reading = batches(corpus)
    for step in range(60):
        source, _, window = order(32 * step, 32 * (step + 1))
        needed = {windows.shards[shard].path for shard in windows.shard_of(source, window).tolist()}
        deadline = time.monotonic() + 30
        while not all(path.exists() for path in needed) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert all(path.exists() for path in needed), step  # and nobody has read that step
        read |= needed
        next(reading)
    assert len(read) == SHARDS


def test_following_ends_with_its_reading_and_holds_nothing_then(url, tmp_path):
    corpus = open_corpus(url, Cache(tmp_path / "cache", ALL))
    reading = batches(corpus)
    next(reading)
    (thread,) = (each for each in following.threading.enumerate() if each.name == "following")
    reading.close()
    thread.join(10)
    assert not thread.is_alive()
    corpus.mirror._make_room(ALL)  # which only what is held could refuse
    assert not list((tmp_path / "cache").glob("**/*.tokens.npy"))


def test_a_cache_that_is_too_small_is_told_with_what_it_needs(url, tmp_path):
    corpus = open_corpus(url, Cache(tmp_path / "cache", ALL // 2))
    windows = training_windows(corpus, 16)
    assert bytes_at_once(windows, 0) == ALL and bytes_at_once(windows, 2) == 4 * ALL // SHARDS
    assert "two turns of shuffle_shards = 3 take" in about_cache(corpus, windows, 3)
    assert "drawn from all shards" in about_cache(corpus, windows, 0)
    assert not about_cache(corpus, windows, 2)


def test_a_run_from_a_url_is_that_of_the_disk_bit_for_bit(url, folder, server, monkeypatch):
    """On two ranks, through a slow link, with a cache that does not hold the corpus; and the second half from the disk."""
    # A shard has a hundred windows: with steps of as many, turns change.
    own = [
        f"cache={folder / 'cache'}",
        f"cache_gb={5 * ALL / SHARDS / 1e9}",
        "shuffle_shards=1",
        "batch=100",
        "micro_batch=10",
    ]
    with proxy(server.port, 3e5) as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", link.environment["AWS_ENDPOINT_URL"])
        there, half, here = (job(folder, name, *own) for name in ("there", "half", "here"))
        for remote in (there, half):
            remote["overrides"].append(f"data={url}")
        launching.finish_jobs(folder, 2, [here, there, half | {"stop_at": 3}, job(folder, "half", *own)])
    for other in ("there", "half"):
        assert_same_state(folder / "here", folder / other)
        assert untimed(folder / "here") == untimed(folder / other)


def test_a_run_whose_cache_is_too_small_is_refused(url, folder):
    refused = job(folder, "refused", f"data={url}", f"cache={folder / 'cache'}", "cache_gb=1e-5", "shuffle_shards=4")
    (error, _) = launching.run_jobs(folder, 1, [refused])
    assert "tiny.toml: cache_gb = 1e-05: two turns of shuffle_shards = 4 take" in error
