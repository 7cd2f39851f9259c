"""Recipes of students that learn vectors: what goes with them, and stages that go on with the students before."""

import numpy as np
import pytest
from transformers import BertConfig

from data_prep.cli import UserError
from pipeline.models.fit import check_teacher, student_config_of, with_segments
from pipeline.models.loading import load_config, load_tokenizer
from pipeline.recipe.describe import describe
from pipeline.settings.reading import load_recipe, load_stages
from pipeline.settings.recipe import Recipe
from tests.parts.tiny import make_recipe, make_teacher

VECTORS = ("transfer=embedding", "layout=packed", "relation_heads=12", "teacher.layer=4")
CHAIN = """
[[stage]]
name = "relations"

[[stage]]
name = "vectors"
transfer = "embedding"
layout = "doc"
[stage.teacher]
layer = 4
"""


@pytest.fixture
def tiny(tmp_path):
    return make_recipe(tmp_path)


def chain(tiny, *changes: tuple[str, str], stages: str = CHAIN, student: str = "") -> str:
    """A recipe file of stages over the tiny one's keys."""
    common = tiny.read_text()
    if student:
        common = common.split("[student]")[0] + student
    for old, new in changes:
        assert old in stages
        stages = stages.replace(old, new)
    path = tiny.parent / "chain.toml"
    path.write_text(common + stages)
    return str(path)


def test_vectors_have_parts_of_their_own_and_no_relations(tiny):
    recipe = load_recipe(tiny, VECTORS)
    assert recipe.parts == ("cosine", "similarities") and recipe.relations == () and recipe.layers == {2: 4}
    assert load_recipe(tiny).parts == ("qk", "vv")
    assert load_recipe(tiny, [*VECTORS, "student.hidden=8", "student.heads=4"]).student.hidden == 8  # of no 12 heads
    described = describe(recipe, load_config(recipe.teacher.model))
    assert 'transfer = "embedding"' in described and "relation_heads" not in described and "pairs =" not in described


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "layout=full",
            "layout = 'full': a window across documents is no text to embed; use layout = 'doc' or 'packed'",
        ),
        ("segments=pairs", "segments = 'pairs': a pair is no text to embed; use 'single' or 'auto'"),
        ("pairs=qq,kk,vv", "pairs = .*: is for relations, and transfer = 'embedding' learns vectors; leave it out, or"),
        ("relation_heads=4", "relation_heads = 4: is for relations, .*as it is by default: 12"),
        ("loss_kernel=triton", "loss_kernel = 'triton': is for relations"),
        ("transfer=embeddings", "transfer = 'embeddings': must be one of 'last', 'layer-to-layer', 'embedding'"),
    ],
)
def test_what_does_not_go_with_vectors_is_refused_with_the_way_out(tiny, override, message):
    with pytest.raises(UserError, match=message) as refused:
        load_recipe(tiny, [*VECTORS, override])
    assert "\n" not in str(refused.value)


def test_a_text_alone_in_its_micro_batch_is_refused(tiny):
    with pytest.raises(
        UserError, match="micro_batch = 1: a text is compared with the others of its micro-batch; use 2"
    ):
        load_recipe(tiny, [*VECTORS, "layout=doc", "micro_batch=1"])
    assert load_recipe(tiny, [*VECTORS, "micro_batch=1"]).micro_batch == 1  # several in a row


def test_the_whole_teacher_is_learnt_and_single_texts_are_read(tiny):
    config = load_config(str(tiny.parent / "teacher"))
    with pytest.raises(UserError, match=r"teacher.layer = 3: must be 4, the teacher's last layer"):
        check_teacher(load_recipe(tiny, [*VECTORS, "teacher.layer=3"]), config)
    recipe = load_recipe(tiny, VECTORS)
    check_teacher(recipe, config)
    tokenizer = load_tokenizer(str(tiny.parent / "teacher"))
    assert with_segments(load_recipe(tiny), config, tokenizer).segments == "pairs"
    assert with_segments(recipe, config, tokenizer).segments == "single"


def test_a_teacher_whose_pooling_is_not_read_is_refused_before_anything_starts(tiny):
    folder = tiny.parent / "teacher"
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.LSTM", "path": "1_LSTM"}]')
    with pytest.raises(UserError, match="a module 'LSTM', which is not read here"):
        check_teacher(load_recipe(tiny, VECTORS), load_config(str(folder)))
    check_teacher(load_recipe(tiny), load_config(str(folder)))


def test_a_stage_of_vectors_has_the_first_teacher_and_goes_on_with_the_student(tiny):
    (first,), (second,) = load_stages(chain(tiny))
    assert (second.teacher.model, second.teacher.layer) == (first.teacher.model, 4)
    assert second.student.init == str(first.exported) == f"{first.out}-student" and second.start == first
    assert second.previous is None and second.relation_heads == 12 and first.relation_heads == 4
    assert second.student.layers == 2 and "start" not in second.to_dict()
    config = load_config(second.teacher.model)
    check_teacher(second, config)  # before that student is there
    assert student_config_of(second, config).to_dict() == student_config_of(first, config).to_dict()


def test_after_an_assistant_the_first_teacher_is_still_the_one_that_is_learnt(tiny):
    assistant = '[[stage]]\nname = "assistant"\n[stage.student]\nlayers = 3\n'
    stages = load_stages(chain(tiny, stages=assistant + CHAIN))
    assert [recipes[0].teacher.model for recipes in stages] == [
        str(tiny.parent / "teacher"),
        f"{tiny.parent}/run/assistant-student",
        str(tiny.parent / "teacher"),
    ]
    assert stages[2][0].student.init == f"{tiny.parent}/run/relations-student"


def test_a_teacher_that_the_first_stage_alone_names_is_learnt_by_the_last(tiny):
    text = tiny.read_text()
    common, teacher = text.split("[teacher]")[0], text.split("[teacher]")[1].split("[student]")[0]
    student = "\n[stage.student]\nlayers = 2\nhidden = 16\nheads = 4\n"
    stages = f'[[stage]]\nname = "assistant"\n[stage.teacher]{teacher}{student}[[stage]]\nname = "relations"{student}'
    stages += '[[stage]]\nname = "vectors"\ntransfer = "embedding"\nlayout = "doc"\n'
    tiny.write_text(common + stages)
    first, second, third = (recipes[0] for recipes in load_stages(tiny))
    assert (third.teacher.model, third.teacher.layer) == (first.teacher.model, first.teacher.layer)
    assert second.teacher.model != first.teacher.model and third.student.heads == 4


def test_a_student_keeps_its_layers_attention_where_the_relations_were_of_an_earlier_layer(tmp_path):
    make_teacher(tmp_path / "teacher", "modernbert", layers=7)
    tiny = make_recipe(tmp_path)
    tiny.write_text(tiny.read_text().replace("layer = 3", "layer = 4").replace("layers = 2", "layers = 3"))
    (first,), (second,) = load_stages(chain(tiny, ("layer = 4", "layer = 7")))
    assert (first.teacher.layer, second.teacher.layer) == (4, 7)
    config = load_config(first.teacher.model)
    kinds = [student_config_of(recipe, config).layer_types for recipe in (first, second)]
    assert kinds[0] == kinds[1] == ["full_attention", "sliding_attention", "full_attention"]


STUDENTS = """
[[student]]
name = "a"
layers = 2
hidden = 16
heads = 4

[[student]]
name = "b"
layers = 1
hidden = 8
heads = 4
"""


def test_several_students_go_on_each_from_its_own(tiny):
    first, second = load_stages(chain(tiny, student=STUDENTS))
    assert [recipe.student.init for recipe in second] == [f"{recipe.out}-student" for recipe in first]
    assert [recipe.student.layers for recipe in second] == [2, 1] and [recipe.start for recipe in second] == first
    own = '\n[[stage.student]]\nname = "b"\ndropout = 0.0\n'
    (only,) = load_stages(chain(tiny, student=STUDENTS, stages=CHAIN + own))[1]
    assert only.student.init.endswith("/relations/b-student") and (only.student.layers, only.student.dropout) == (
        1,
        0.0,
    )
    with pytest.raises(UserError, match="leave it out, or name each as there: a, b"):
        load_stages(chain(tiny, student=STUDENTS, stages=CHAIN + own.replace('"b"', '"c"')))


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "layer = 4",
            "layer = 4\n[stage.student]\nlayers = 3",
            "student.layers = 3: it goes on with the stage before's",
        ),
        (
            "layer = 4",
            'layer = 4\n[stage.student]\ninit = "pca"',
            "student.init is given; it goes on with the student of",
        ),
        ('layout = "doc"', 'layout = "doc"\npairs = ["qq"]', "pairs is given; it learns vectors, not relations"),
        ('layout = "doc"\n', "", "stage vectors: layout = 'full': a window across documents"),
    ],
)
def test_what_a_stage_of_vectors_cannot_have_is_refused(tiny, old, new, message):
    with pytest.raises(UserError, match=message):
        load_stages(chain(tiny, (old, new)))


def test_overrides_reach_the_stages_that_can_have_them(tiny):
    file = chain(tiny)
    (first,), (second,) = load_stages(
        file, ["relation_heads=8", "student.init=random", "steps=9", "stage.vectors.batch=16"]
    )
    assert (first.relation_heads, first.steps, second.steps, second.batch) == (8, 9, 9, 16)
    with pytest.raises(UserError, match=r"stage.vectors.pairs=qq: it learns vectors, not relations"):
        load_stages(file, ["stage.vectors.pairs=qq"])


def test_relations_after_vectors_have_that_student_as_their_teacher(tiny):
    last = '\n[[stage]]\nname = "small"\nlayout = "full"\n[stage.student]\nlayers = 1\n'
    stages = load_stages(chain(tiny, stages=CHAIN + last))
    small = stages[2][0]
    assert isinstance(small, Recipe) and small.previous == stages[1][0]
    assert (small.teacher.model, small.teacher.layer) == (f"{tiny.parent}/run/vectors-student", 2)


@pytest.mark.parametrize("name, layers, vocabulary", [("embedding_en", 6, 30522), ("embedding_five", 12, 250037)])
def test_the_shipped_recipes_go_from_relations_to_vectors(tmp_path, name, layers, vocabulary):
    teacher, trimmed = tmp_path / "teacher", tmp_path / "trimmed"
    sizes = {"num_hidden_layers": layers, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    BertConfig(vocab_size=vocabulary, **sizes).save_pretrained(teacher)
    (teacher / "model.safetensors").touch()  # which nothing here reads
    kept = np.full(vocabulary, -1, np.int32)
    kept[:500] = range(500)
    BertConfig(vocab_size=500).save_pretrained(trimmed)
    np.save(trimmed / "vocabulary.npy", kept)
    own = load_stages(name)[0][0].student.vocab and [f"student.vocab={trimmed}"]
    (relations,), (vectors,) = load_stages(name, [f"teacher.model={teacher}", *own])
    assert (relations.transfer, vectors.transfer) == ("last", "embedding")
    assert vectors.student.init == f"runs/{name}/relations-student" and vectors.root == f"runs/{name}"
    for recipe in (relations, vectors):
        assert recipe.teacher.layer == layers and recipe.steps * recipe.tokens_per_step < 10e6
        check_teacher(recipe, load_config(recipe.teacher.model))
        assert student_config_of(recipe, load_config(str(teacher))).vocab_size == (500 if own else vocabulary)


def test_another_student_than_the_teachers_family_is_fine(tmp_path):
    make_teacher(tmp_path / "teacher", "xlm-roberta", pad_token_id=1)
    recipe = load_recipe(make_recipe(tmp_path), [*VECTORS, "student.model_type=bert"])
    check_teacher(recipe, load_config(str(tmp_path / "teacher")))
