"""The tasks, their settings, and the scores of labels and numbers."""

import numpy as np
import pytest

from data_prep.cli import UserError
from pipeline.evaluate.scores import label_scores, named_scores
from pipeline.evaluate.tasks import TASKS, check_task, settings


def test_a_mistyped_task_gets_the_one_that_was_meant():
    for typed, meant in (("rt", "rte"), ("SST-2", "sst2"), ("MNLI", "mnli"), ("squad_2", "squad2")):
        with pytest.raises(UserError, match=f"did you mean {meant}"):
            check_task(typed)
    with pytest.raises(UserError, match="unknown task; tasks are mnli"):
        check_task("translation")


def test_the_grid_is_the_papers_and_the_default_lies_in_it():
    assert len(settings(TASKS["mnli"], True, (), ())) == 4 * 3
    assert {epochs for _, epochs in settings(TASKS["rte"], True, (), ())} == {3, 4, 5, 10}
    assert settings(TASKS["squad2"], True, (), ()) == [(6e-5, 3)]
    assert [rate for rate, _ in settings(TASKS["xnli"], True, (), ())] == [3e-5, 4e-5, 5e-5, 6e-5]
    for task in TASKS.values():
        assert settings(task, False, (), ())[0] in settings(task, True, (), ())


def test_options_take_the_place_of_the_papers_settings():
    assert settings(TASKS["rte"], True, (1e-4,), ()) == [(1e-4, epochs) for epochs in (3, 4, 5, 10)]
    assert settings(TASKS["rte"], False, (), (1, 2)) == [(3e-5, 1), (3e-5, 2)]
    assert settings(TASKS["rte"], False, (3e-5, 3e-5), (1, 1)) == [(3e-5, 1)]


def test_scores_are_percent_by_their_definitions():
    labels, predictions = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    # of the true: 2 hit, 1 missed; of the false: 1 hit, 1 missed
    assert label_scores(TASKS["mrpc"], predictions, labels) == pytest.approx({"accuracy": 60, "f1": 200 / 3})
    expected = 100 * (2 * 1 - 1 * 1) / (3 * 2 * 3 * 2) ** 0.5
    assert label_scores(TASKS["cola"], predictions, labels) == pytest.approx({"matthews": expected})
    found = label_scores(TASKS["stsb"], np.array([1.0, 2.0, 30.0]), np.array([0.0, 1.0, 2.0]))
    assert found["spearman"] == pytest.approx(100) and 80 < found["pearson"] < 95


def test_a_correlation_of_constant_predictions_is_not_a_score():
    with pytest.raises(ValueError, match="all predictions are the same"):
        label_scores(TASKS["stsb"], np.ones(3), np.array([0.0, 1.0, 2.0]))


def test_scores_of_several_sets_have_the_names_that_results_have():
    assert named_scores(TASKS["mnli"], {"": {"accuracy": 80.0}, "mm": {"accuracy": 81.0}}) == {
        "accuracy": 80.0,
        "accuracy_mm": 81.0,
    }
    assert named_scores(TASKS["xnli"], {"en": {"accuracy": 80.0}, "de": {"accuracy": 70.0}}) == {
        "accuracy": 75.0,
        "accuracy/en": 80.0,
        "accuracy/de": 70.0,
    }
