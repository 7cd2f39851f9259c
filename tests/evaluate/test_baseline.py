"""What one answer for all rows scores, in each kind of task."""

import pytest
from datasets import Dataset

from pipeline.evaluate.baseline import baseline
from pipeline.evaluate.rows import TaskData


def labelled(*labels) -> Dataset:
    return Dataset.from_dict({"first": [str(i) for i in range(len(labels))], "label": list(labels)})


def questions(*texts) -> Dataset:
    return Dataset.from_dict({"answers": [{"text": own, "answer_start": [0] * len(own)} for own in texts]})


def of(task, test=None, **dev):
    return baseline(
        task, TaskData("made here", labelled(0), {key.strip("_"): rows for key, rows in dev.items()}, test or {})
    )


def test_of_labels_it_is_the_share_of_the_largest_class():
    assert of("rte", _=labelled(0, 1, 1, 1)) == {"accuracy": 75.0}
    assert of("mnli", _=labelled(0, 1, 2, 2), mm=labelled(0, 0, 0, 1)) == {"accuracy": 50.0, "accuracy_mm": 75.0}


def test_each_score_has_its_own_best_answer():
    """Accuracy by saying no to all; F1, which is of the yes, by saying yes."""
    assert of("mrpc", _=labelled(0, 0, 0, 1)) == {"accuracy": 75.0, "f1": pytest.approx(40.0)}


def test_one_answer_for_all_has_no_correlation():
    assert of("cola", _=labelled(0, 1, 1)) == {"matthews": 0.0}
    assert of("stsb", _=labelled(0.5, 4.0, 2.0)) == {"spearman": 0.0, "pearson": 0.0}


def test_of_questions_it_is_the_share_without_an_answer():
    assert of("squad2", _=questions([], [], ["a word"])) == {
        name: pytest.approx(200 / 3) for name in ("f1", "exact_match")
    }
    assert of("squad1", _=questions(["a word"], ["another"])) == {"f1": 0.0, "exact_match": 0.0}


def test_it_is_of_the_sets_that_are_scored_language_by_language():
    dev = {"en": labelled(0, 0, 0, 0), "de": labelled(0, 0, 0, 0)}
    test = {"en": labelled(0, 1, 1, 1), "de": labelled(0, 1, 2, 2)}
    assert of("xnli", test, **dev) == {"accuracy": 62.5, "accuracy/en": 75.0, "accuracy/de": 50.0}
