"""Figures called published come from the published scorers: SQuAD 2.0's evaluate-v2.0.py, as kept in transformers 4.57's
squad_metrics.py, and MLQA's mlqa_evaluation_v1.py, run on the same examples."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from data_prep.cli import UserError
from pipeline.evaluate import finetune, qa
from pipeline.evaluate.task_files import read_squad
from tests.parts import task_files as files
from tests.parts.tiny import make_teacher


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_teacher(tmp_path_factory.mktemp("model"), layers=1, hidden=8))


def encode(tmp_path, tokenizer, paragraphs, length=40, stride=10, unanswerable=False):
    rows = read_squad(
        files.write_squad(tmp_path / "q.json", paragraphs, "v2.0" if unanswerable else "1.1"), unanswerable, []
    )
    return rows, qa.encode_questions(rows, tokenizer, length, stride, finetune.IN_MEMORY)


def own_answers(features, cls=0.0):
    """Logits that name the answer of each window that has one, and elsewhere nothing."""
    shape = (len(features), max(features["length"]))
    start, end = np.full(shape, -5.0), np.full(shape, -5.0)
    start[:, 0] = end[:, 0] = cls
    for window, feature in enumerate(features):
        if feature["start_positions"]:
            start[window, feature["start_positions"]] = end[window, feature["end_positions"]] = 5.0
    return start, end


def test_windows_cover_the_whole_context_and_step_by_the_stride(tmp_path, tokenizer):
    rows, features = encode(tmp_path, tokenizer, files.questions(3, 1, length=90))
    for number, row in enumerate(rows):
        windows = [[s for s in f["starts"] if s >= 0] for f in features if f["row"] == number]
        words = [len(row["context"][: starts[0]].split()) for starts in windows]
        assert words[:-1] == list(range(0, 10 * len(words) - 10, 10)) and len(words) > 5
        assert sorted({s for starts in windows for s in starts})[-1] == row["context"].rindex(" ") + 1
    assert max(features["length"]) == 40


def test_a_windows_answer_is_its_tokens_text_or_cls_where_it_is_not_whole(tmp_path, tokenizer):
    rows, features = encode(tmp_path, tokenizer, files.questions(8, 2, length=90))
    for feature in features:
        row = rows[feature["row"]]
        text, begin = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        real = [index for index, start in enumerate(feature["starts"]) if start >= 0]
        whole = feature["starts"][real[0]] <= begin and begin + len(text) <= feature["ends"][real[-1]]
        first, last = feature["start_positions"], feature["end_positions"]
        if whole:
            assert row["context"][feature["starts"][first] : feature["ends"][last]] == text
        else:
            assert (first, last) == (0, 0)


def test_a_long_question_is_cut_and_leaves_room_for_its_context(tmp_path, tokenizer):
    paragraphs = files.questions(2, 3)
    paragraphs[0]["qas"][0]["question"] = "w1 " * 200
    _, features = encode(tmp_path, tokenizer, paragraphs, length=100)
    lengths = {f["row"]: sum(start < 0 for start in f["starts"]) for f in features}
    assert lengths == {0: 64 + 3, 1: 2 + 3}
    with pytest.raises(UserError, match="--length 98: too short for a question and its context; 99 at least"):
        qa.check_length(tokenizer, 98)


def test_the_best_window_of_several_gives_the_answer(tmp_path, tokenizer):
    rows, features = encode(tmp_path, tokenizer, files.questions(6, 4, length=90))
    features = features.shuffle(seed=1)  # the order of windows does not matter
    score = qa.scorer(rows, features, None, False)
    assert score(own_answers(features)) == {"f1": 100.0, "exact_match": 100.0}


def test_the_best_span_is_the_one_an_exhaustive_search_finds():
    rng = np.random.default_rng(5)
    for size in (1, 7, 60):
        start, end = rng.normal(size=(2, size))
        pairs = [(i, j) for i in range(size) for j in range(i, min(size, i + qa.LONGEST_ANSWER))]
        first, last = max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]])
        assert qa._best_span(start, end) == (pytest.approx(start[first] + end[last]), first, last)


def test_no_answer_is_given_where_cls_scores_above_every_span_in_all_windows(tmp_path, tokenizer):
    paragraphs = files.questions(6, 4, unanswerable=True, length=60)
    rows, features = encode(tmp_path, tokenizer, paragraphs, unanswerable=True)
    score = qa.scorer(rows, features, None, True)
    start, end = own_answers(features, cls=0.0)  # a found answer has 10, nothing has 0, other spans -10
    assert score((start, end))["f1"] == 100.0
    start[:, 0] = 11.0  # now nothing beats every span: two of six questions have no answer
    found = score((start, end))
    assert found["f1"] == found["exact_match"] == pytest.approx(100 * 2 / 6)
    assert found["best_f1"] == 100.0  # another threshold would have separated them
    window = list(features["row"]).index(1)
    start[window, 0] = -50.0  # one window that is sure of its text is enough
    assert score((start, end))["f1"] == pytest.approx(100 * 3 / 6)


# (prediction, answers, published SQuAD 2.0 F1, exact match)
SQUAD = [
    ("The Normans", ["normans", "Norse"], 1.0, 1),
    ("Denmark, Iceland and Norway", ["Denmark", "Iceland", "Denmark, Iceland, Norway"], 0.8571428571428571, 0),
    ("in 911", ["911 AD"], 0.5, 0),
    ("U.S.", ["US"], 1.0, 1),
    ("10th—11th", ["10th 11th"], 0.0, 0),  # a dash that is not ASCII stays
    ("", [], 1.0, 1),
    ("the", [], 1.0, 1),
    ("France", [], 0.0, 0),
    ("", ["France"], 0.0, 0),
    ("anything", ["the", "a"], 0.0, 0),
]


NOTHING_LEFT = ("the", ["the", "France"], 0.0, 0)  # an answer of which nothing is left does not count next to others


@pytest.mark.parametrize(("prediction", "answers", "f1", "exact"), [*SQUAD, NOTHING_LEFT])
def test_squad_2_is_scored_as_published(prediction, answers, f1, exact):
    assert qa.question_scores(prediction, answers, unanswerable=True) == (f1, exact)


# (language, prediction, answer, published MLQA F1, exact match)
MLQA = [
    ("en", "the — United States", "United States", 1.0, True),  # every Unicode punctuation goes
    ("de", "in dem Jahr des Königs", "Jahr Königs", 0.8, False),
    ("es", "las casas", "casas", 1.0, True),
    ("es", "¿the casas?", "casas", 0.6666666666666666, False),
    ("vi", "cái nhà của tôi", "nhà tôi", 1.0, True),
    ("ar", "البيت", "بيت", 1.0, True),
    ("hi", "a घर", "घर", 0.6666666666666666, False),
    ("zh", "中国北京2008年", "北京 2008 年", 0.8, False),
    ("zh", "，北京", "北京", 1.0, True),
    ("en", "the", "a", 0.0, True),  # nothing is left of either: no word in common, and yet the same
]


@pytest.mark.parametrize(("language", "prediction", "answer", "f1", "exact"), MLQA)
def test_mlqa_is_scored_as_published(language, prediction, answer, f1, exact):
    assert qa.question_scores(prediction, [answer], language) == (f1, exact)


def test_whole_sets_are_scored_as_published():
    spans = [(text, odds) for (text, *_), odds in zip(SQUAD, (-1, 2, -3, 0.5, -2, 1, -1, -0.5, 3, -2.5), strict=True)]
    answers = [answers for _, answers, *_ in SQUAD]
    published = {"f1": 35.0, "exact_match": 30.0, "best_f1": 45.0, "best_exact_match": 40.0}
    assert qa.set_scores(spans, answers, None, True) == published
