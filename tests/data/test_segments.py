"""data.segments: pairs of segments by the sample's number, in both layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import RobertaProcessing

from data_prep.cli import UserError
from data_prep.shards import open_corpus
from pipeline.data.order import Order
from pipeline.data.reading import filled, heldout_of, order_of, read, training_windows
from pipeline.data.segments import another, cut
from pipeline.models.fit import with_segments
from pipeline.models.loading import load_config, load_tokenizer
from pipeline.settings.reading import load_recipe
from tests.parts.tiny import SPECIAL, make_corpus, make_recipe, make_teacher

CLS, SEP, PAD = (SPECIAL[role] for role in ("cls", "sep", "pad"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return open_corpus(make_corpus(tmp_path_factory.mktemp("data"), {"a": 6000, "b": 3001, "tiny": 14}))


def parts_of(ids: list[int], second: list[bool]) -> tuple[list[int], list[int]]:
    """A and B of [CLS] A [SEP] B [SEP] and padding, by the mask of the second segment."""
    begin, size = second.index(True), sum(second)
    assert second == [begin <= i < begin + size for i in range(len(second))]
    assert ids[0] == CLS and ids[begin - 1] == SEP and ids[begin + size - 1] == SEP
    assert ids[begin + size :] == [PAD] * (len(ids) - begin - size)
    return ids[1 : begin - 1], ids[begin : begin + size - 1]


@pytest.mark.parametrize("layout", ["full", "doc"])
def test_a_sample_is_the_beginning_of_its_window_and_the_end_of_it_or_of_another(corpus, layout):
    windows = training_windows(corpus, 16, layout, paired=True)
    assert windows.inner == 13
    order = order_of(windows, 1.0, 3)
    source, _, window = order(100, 400)
    samples = read(windows, order, 100, 400)
    pieces = [
        [text[:size].tolist() for text, size in zip(*windows.texts(*all_of(windows, i)), strict=True)] for i in (0, 1)
    ]
    assert samples.second is not None
    continued = 0
    for ids, second, name, number in zip(samples.ids.tolist(), samples.second.tolist(), source, window, strict=True):
        a, b = parts_of(ids, second)
        if name > 1:  # the one window of "tiny"
            continue
        own = pieces[name][number]
        assert a == own[: len(a)]
        continued += a + b == own
        assert any(b == piece[len(piece) - len(b) :] for piece in pieces[name])
    assert 110 < continued < 190


def all_of(windows, source: int) -> tuple[np.ndarray, np.ndarray]:
    count = windows.counts[source]
    return np.full(count, source), np.arange(count)


def test_bare_texts_are_the_windows_without_their_frame(corpus):
    for layout in ("full", "doc"):
        windows = training_windows(corpus, 16, layout)
        source, window = np.array([1, 0, 0, 1]), np.array([50, 3, 215, 0])
        texts, sizes = windows.texts(source, window)
        for ids, text, size in zip(windows.read(source, window).tolist(), texts.tolist(), sizes.tolist(), strict=True):
            assert ids == [CLS, *text[:size], SEP, *[PAD] * (14 - size)]


def test_half_continue_and_cuts_and_other_windows_are_uniform():
    bits = Order([1000], [1.0], 5).bits(0, 80_000)
    window, count = np.full(80_000, 7), np.full(80_000, 9)
    other = another(window, count, bits)
    assert np.bincount(other)[7] == pytest.approx(40_000, rel=0.02)
    assert np.delete(np.bincount(other, minlength=9), 7) == pytest.approx(np.full(8, 5000), rel=0.06)
    cuts = cut(np.full(80_000, 11), bits)
    assert np.bincount(cuts)[1:] == pytest.approx(np.full(10, 8000), rel=0.05)
    for chosen in (other == 7, other == 0):  # the cut does not depend on the choice
        assert cuts[chosen].mean() == pytest.approx(5.5, rel=0.03)
    assert not np.array_equal(bits, Order([1000], [1.0], 6).bits(0, 80_000))


@pytest.mark.parametrize("size", [1, 2, 13, 2**20])
def test_both_sides_of_a_cut_hold_a_token_and_a_single_token_stays_before_it(size):
    edges = np.array([0, 2**64 - 1, 2**63 - 1, 2**63], np.uint64)
    cuts = cut(np.full(4, size), edges)
    assert cuts.min() >= 1 and cuts.max() <= max(size - 1, 1)
    assert another(np.zeros(4, int), np.ones(4, int), edges).tolist() == [0] * 4  # of one window there is no other


def test_no_pair_is_longer_than_a_window_whatever_the_sizes():
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**64, 100_000, dtype=np.uint64)
    first, second = generator.integers(1, 14, (2, 100_000))
    assert (cut(first, bits) + second - cut(second, bits)).max() == 13


def test_the_share_of_padding_is_that_of_the_pairs_that_are_read(corpus):
    windows = training_windows(corpus, 16, "doc", paired=True)
    order = order_of(windows, 1.0, 3)
    samples = read(windows, order, 0, 8192)
    assert samples.lengths is not None
    assert float(samples.lengths.double().mean()) / 16 == pytest.approx(filled(windows, order), rel=0.01)
    assert torch.equal(samples.lengths, (samples.ids != PAD).sum(1))


def test_held_out_pairs_are_the_same_each_time(corpus):
    first, again = (heldout_of(corpus, 16, 20, 1.0, 3, "full", True) for _ in range(2))
    assert first and again and first.sources == again.sources
    assert first.inputs.second is not None and again.inputs.second is not None
    assert torch.equal(first.inputs.ids, again.inputs.ids) and torch.equal(first.inputs.second, again.inputs.second)


# --- who reads pairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model_type, changes, wanted",
    [
        ("bert", {}, "pairs"),
        ("electra", {}, "pairs"),
        ("bert", {"type_vocab_size": 1}, "single"),
        ("roberta", {"type_vocab_size": 1}, "single"),
        ("distilbert", {}, "single"),
    ],
)
def test_pairs_are_read_where_the_teacher_knows_segments(tmp_path, model_type, changes, wanted):
    recipe, teacher = load_recipe(make_recipe(tmp_path)), make_teacher(tmp_path / "other", model_type, **changes)
    decided = with_segments(recipe, load_config(str(teacher)), load_tokenizer(str(teacher)))
    assert recipe.segments == "auto" and decided.segments == wanted


def test_a_bert_whose_tokenizer_never_gives_a_second_segment_reads_single_texts(tmp_path):
    recipe = load_recipe(make_recipe(tmp_path))
    tokenizer = load_tokenizer(recipe.teacher.model)
    tokenizer.backend_tokenizer.post_processor = RobertaProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    assert 1 not in tokenizer("w1", "w2", return_token_type_ids=True)["token_type_ids"]
    assert with_segments(recipe, load_config(recipe.teacher.model), tokenizer).segments == "single"


def test_a_teacher_whose_tokenizer_gives_no_token_types_reads_single_texts(tmp_path):
    """As a student of ours does that has read single texts: its second segment was never trained."""
    recipe = load_recipe(make_recipe(tmp_path))
    settings = Path(recipe.teacher.model) / "tokenizer_config.json"
    for inputs, wanted in ((["input_ids", "attention_mask"], "single"), (None, "pairs")):
        named = {} if inputs is None else {"model_input_names": inputs}
        settings.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | named))
        config, tokenizer = load_config(recipe.teacher.model), load_tokenizer(recipe.teacher.model)
        assert with_segments(recipe, config, tokenizer).segments == wanted


def test_pairs_are_refused_where_the_teacher_has_no_segments(tmp_path):
    path = make_recipe(tmp_path)
    teacher = make_teacher(tmp_path / "roberta", "roberta", type_vocab_size=1)
    recipe = load_recipe(path, ["segments=pairs"])
    with pytest.raises(UserError, match=r"segments = 'pairs': the teacher, a roberta, has no second segment"):
        with_segments(recipe, load_config(str(teacher)), load_tokenizer(str(teacher)))
    assert load_recipe(path, ["segments=single"]).segments == "single"


def test_a_pair_needs_five_positions(tmp_path):
    path = make_recipe(tmp_path)
    with pytest.raises(UserError, match=r"length = 4: must be at least 5 with segments = 'pairs'"):
        load_recipe(path, ["segments=pairs", "length=4"])
    for length, wanted in ((4, "single"), (5, "pairs")):
        recipe = load_recipe(path, [f"length={length}"])
        decided = with_segments(recipe, load_config(recipe.teacher.model), load_tokenizer(recipe.teacher.model))
        assert decided.segments == wanted
