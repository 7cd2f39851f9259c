"""A word embedding that travels as rows: the bits of one that travels whole, and where it is not sent so."""

import json

import pytest
import torch

from pipeline.engines.ranks import Ranks
from pipeline.engines.rows import word_rows
from pipeline.engines.traffic import Table, dense_bytes, received_bytes, rows_bytes, sends_rows
from pipeline.models.cut import split
from pipeline.models.fit import student_config_of, teacher_config_of
from pipeline.models.students import build_student
from pipeline.settings.reading import load_recipe
from pipeline.training.introduction import about_words
from pipeline.training.start import Built
from tests.parts import launching, row_ranks
from tests.parts.tiny import make_recipe, make_teacher

VOCABULARY = 1000


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A recipe whose teacher has a vocabulary far larger than what a step reads."""
    folder = tmp_path_factory.mktemp("rows")
    make_teacher(folder / "teacher", vocab_size=VOCABULARY)
    return make_recipe(folder)


@pytest.mark.slow
def test_rows_give_the_bits_of_the_whole_table(path):
    """At each stage and precision: weights, moments and decay of all rows, clipped, evaluated and resumed on the way."""
    processes = launching.start_ranks(2, "tests.parts.row_ranks", str(path))
    output = [process.communicate(timeout=launching.PATIENCE) for process in processes]
    for process, (_, error) in zip(processes, output, strict=True):
        assert process.returncode == 0, error[-2000:]
    differ = json.loads(output[0][0].splitlines()[-1])
    assert len(differ) == len(row_ranks.CASES) and not any(differ.values()), differ


@pytest.mark.parametrize(("stage", "sizes"), [(0, 2), (1, 2 + 2), (2, 2 + 2)])
def test_a_row_for_each_token_is_received_from_each_other_rank(path, stage, sizes):
    recipe = load_recipe(path, ["precision=bf16", f"student.ds_config=student_zero{stage}.json", "batch=24"])
    table = Table(VOCABULARY, 32)
    tokens = 24 // 4 * 16
    rows = 3 * tokens * (4 + 32 * sizes)  # an id, and numbers of a gradient and of a weight
    assert rows_bytes(recipe, table, 4) == rows
    others = 500
    whole = dense_bytes(recipe, 32 * VOCABULARY + others, 4)
    assert rows < whole and sends_rows(recipe, table, 4)
    assert received_bytes(recipe, 32 * VOCABULARY + others, table, 4) == dense_bytes(recipe, others, 4) + rows
    assert not sends_rows(recipe, table, 1)


def test_a_small_vocabulary_travels_whole(path):
    recipe = load_recipe(path, ["precision=bf16"])
    sent = [rows for rows in range(1, VOCABULARY) if sends_rows(recipe, Table(rows, 32), 2)]
    least = (2 - 1) * 64 * (4 + 32 * 4) / (32 * 6 / 2)  # rows of 6 bytes a number of which half are received
    assert sent == list(range(int(least) + 1, VOCABULARY))
    assert received_bytes(recipe, 9999, Table(10, 32), 2) == dense_bytes(recipe, 9999, 2)


@pytest.mark.parametrize(
    "content",
    [
        {"zero_optimization": {"stage": 3}},
        {"zero_optimization": {"stage": 1, "overlap_comm": True}},
        {"zero_optimization": {"stage": 1}, "prescale_gradients": True},
        {"zero_optimization": {"stage": 1}, "gradient_predivide_factor": 2.0},
    ],
)
def test_what_deepspeed_does_in_another_way_is_left_to_it(path, tmp_path, content):
    (tmp_path / "own.json").write_text(json.dumps(content))
    recipe = load_recipe(path, [f"student.ds_config={tmp_path}/own.json"])
    assert not sends_rows(recipe, Table(10**6, 32), 2)


def test_the_choice_is_said_at_the_start(path):
    recipe = load_recipe(path, ["precision=bf16"])
    model = build_student(student_config_of(recipe, teacher_config_of(recipe)), 1)
    built = Built(recipe, None, model, "", False, "", [])
    two, one = (Ranks(0, world, world, torch.device("cpu")) for world in (2, 1))
    (line,) = about_words(built, two)
    assert line.endswith("0.0 MB a step into each rank instead of 0.0 MB.") and "as rows" in line
    assert about_words(built, one) == []
    cut = split(model)[0]
    assert word_rows(recipe, one, cut) is None
    assert word_rows(recipe, two, cut).weight is model.embeddings.word_embeddings.weight
