"""The papers' tables: whole, consistent with themselves, and found again from a model's record."""

import statistics

import pytest

from pipeline.paper import (
    LAYERS,
    MLQA,
    PARAMETERS,
    TABLE_2,
    TABLE_3,
    TABLES,
    VALUE_MSE,
    VALUE_RELATION,
    XNLI,
    known_as,
    speedup,
)

GLUE = {row.name: row.values for row in TABLE_2.rows}


def stage(
    layers=6, hidden=384, teacher="google-bert/bert-base-uncased", pairs=("qk", "vv"), layer=12, heads=12, **others
):
    recipe = {
        "teacher": {"model": teacher, "layer": layer},
        "student": {"layers": layers, "hidden": hidden},
        "pairs": list(pairs),
        "relation_heads": heads,
    }
    return {"recipe": recipe | others}


def model(*stages, name="mine", path="runs/mine"):
    return {"name": name, "path": path, "distillation": list(stages) or None}


def rows_of(record):
    """(table's title, row's name) of every row that this model is."""
    known = known_as(record)
    return [(table.title, row.name) for table in TABLES for row in table.rows if known and row.model == known]


def test_every_row_has_a_value_or_a_gap_for_each_column():
    for table in TABLES:
        for row in table.rows:
            assert len(row.values) == len(table.columns), (table.title, row.name)
            assert all(value is None or 30 < value < 100 for value in row.values)


def test_averages_that_the_papers_print_are_those_of_their_scores():
    for row in TABLE_2.rows:
        assert statistics.fmean(row.values[:-1]) == pytest.approx(row.values[-1], abs=0.051)
    for row in XNLI.rows[:3]:
        assert statistics.fmean(row.values[1:]) == pytest.approx(row.values[0], abs=0.051)
    for row in MLQA.rows[:3]:
        assert statistics.fmean(row.values[2:]) == pytest.approx(row.values[0], abs=0.051)


def test_a_score_that_stands_in_two_tables_is_the_same():
    assert GLUE["MiniLM 6x768"][:3] == (76.4, 84.0, 92.0)
    for table in (VALUE_RELATION, VALUE_MSE, LAYERS):
        for row in table.rows[::2]:
            assert row.values == next(same.values for same in TABLE_3.rows if same.model == row.model)


def test_no_two_rows_of_a_table_are_one_model():
    for table in TABLES:
        known = [row.model for row in table.rows if row.model]
        assert len(set(known)) == len(known), table.title


def test_columns_name_tasks_and_metrics_that_scores_have():
    from pipeline.evaluate.tasks import TASKS

    for table in TABLES:
        for column in table.columns:
            if column.task:
                assert column.metric.partition("/")[0] in TASKS[column.task].scores, column


@pytest.mark.parametrize(
    "stages, title, row",
    [
        ([stage()], "Smaller students, and a teacher assistant", "6x384, MiniLM"),
        ([stage(12), stage(3, teacher="runs/ta")], "Smaller students, and a teacher assistant",
         "3x384, MiniLM with a 12x384 assistant"),
        ([stage(4, pairs=("qk",))], "What the value relation brings", "4x384, without value relation"),
        ([stage(pairs=("qk", "v_mse"))], "Value relation or mean squared error of values",
         "6x384, value-MSE instead"),
        ([stage(3, transfer="layer-to-layer")], "Last layer or layer to layer", "3x384, layer-to-layer"),
        ([stage(6, 768)], "Six layers of width 768", "MiniLM 6x768"),
        ([stage(12, teacher="FacebookAI/xlm-roberta-base")], "XNLI, trained on English", "MiniLM 12x384"),
        ([stage(6, 768, "models/roberta-large", ("qq", "kk", "vv"), 19, 64)], "MiniLMv2 from several teachers",
         "6x768 from RoBERTa-large"),
        ([stage(6, 384, "FacebookAI--xlm-roberta-large", ("vv", "kk", "qq"), 19, 64)], "MiniLMv2 from XLM-R-large",
         "6x384 from XLM-R-large"),
    ],
)  # fmt: skip
def test_a_student_is_found_by_teacher_shape_and_relations(stages, title, row):
    assert (title, row) in rows_of(model(*stages))


@pytest.mark.parametrize(
    "stages",
    [
        [stage(5)],
        [stage(layer=11)],
        [stage(heads=48)],
        [stage(pairs=("qq", "kk", "vv"), heads=12)],
        [stage(teacher="models/all-MiniLM-L6-v2")],
        [stage(12), stage(9), stage(3)],
        [stage(teacher="FacebookAI/roberta-large", pairs=("qq", "kk", "vv"), heads=64, layer=24)],
    ],
)
def test_a_student_that_differs_in_what_matters_is_no_row(stages):
    assert rows_of(model(*stages)) == []


def test_an_assistant_makes_another_row_than_none():
    direct, assisted = rows_of(model(stage(3))), rows_of(model(stage(12), stage(3)))
    assert direct and assisted and not set(direct) & set(assisted)


@pytest.mark.parametrize(
    "path", ["google-bert/bert-base-uncased", "models/bert-base-uncased/", "x/google-bert--bert-base-uncased"]
)
def test_a_public_model_is_known_by_the_end_of_its_id(path):
    assert known_as(model(path=path)) == "BERT-base"


def test_a_model_of_our_own_making_is_no_public_one():
    assert known_as(model(path="runs/undistilled")) is None


@pytest.mark.parametrize(
    "record", [[{}], ["text"], [{"recipe": {"teacher": "x"}}], [stage(layers=None)], [{"recipe": None}], 7]
)
def test_a_record_that_is_no_recipe_is_no_row(record):
    found = known_as({"name": "a", "path": "b", "distillation": record})
    assert not any(row.model == found for table in TABLES for row in table.rows if row.model)


def test_the_same_method_is_seen_whatever_teacher_and_shape():
    papers = known_as(model(stage(3)))
    ours = known_as(model(stage(2, 96, "models/tiny", layer=4, heads=4)))
    assert ours.is_like(papers) and ours != papers
    assert not ours.is_like(known_as(model(stage(12), stage(3))))
    assert not ours.is_like(known_as(model(stage(pairs=("qk",)))))


def test_the_papers_speed_of_one_shape_over_another_is_a_quotient():
    assert speedup("6x384", "12x768") == 5.3
    assert speedup("3x384", "6x384") == pytest.approx(10.1 / 5.3)
    assert speedup("5x384", "12x768") is None and speedup("6x384", "6x383") is None


@pytest.mark.slow
def test_the_papers_parameters_are_what_their_shapes_have():
    from transformers import BertConfig

    from pipeline.models.counting import count_parameters

    for size, (embeddings, transformer) in PARAMETERS.items():
        layers, hidden = map(int, size.split("x"))
        config = BertConfig(
            num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=12, intermediate_size=4 * hidden
        )
        count = count_parameters(config)
        assert count["embeddings"] / 1e6 == pytest.approx(embeddings, abs=0.06)
        assert count["transformer"] / 1e6 == pytest.approx(transformer, abs=0.06)
