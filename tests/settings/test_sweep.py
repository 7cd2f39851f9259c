"""Students of one run that differ in what they learn: their recipes, and what is refused."""

import dataclasses
from pathlib import Path

import pytest

from data_prep.cli import UserError
from pipeline.settings.reading import load_recipe, load_recipes, load_stages
from pipeline.settings.recipe import teacher_layers
from tests.parts.tiny import make_recipe

SHAPE = "layers = 2\nhidden = 16\nheads = 4\n"


def sweep(folder: Path, *students: str, stages: str = "") -> Path:
    """sweep.toml: the tiny recipe with a student a, b, … of one shape for each of these further keys."""
    text = make_recipe(folder).read_text().split("[student]")[0]
    tables = (f'[[student]]\nname = "{name}"\n{SHAPE}{keys}\n' for name, keys in zip("abcd", students, strict=False))
    path = folder / "sweep.toml"
    path.write_text(text + "".join(tables) + stages)
    return path


def test_a_student_of_a_sweep_has_the_recipe_that_it_would_have_alone(tmp_path):
    keys = 'teacher_layer = 2\npairs = ["qq"]\nrelation_heads = 2\ntransfer = "layer-to-layer"\nlearning_rate = 1e-3\nseed = 7'
    plain, own = load_recipes(sweep(tmp_path, "", keys), ["student.b.init=pca", "relation_heads=8"])
    options = ["teacher.layer=2", "pairs=qq", "relation_heads=2", "transfer=layer-to-layer", "learning_rate=1e-3"]
    alone = load_recipe(tmp_path / "tiny.toml", [*options, "student.seed=7", "student.init=pca"])
    assert dataclasses.replace(own, out=alone.out) == alone and own.student_seed == 7 != own.seed
    other = load_recipe(tmp_path / "tiny.toml", ["relation_heads=8"])
    assert dataclasses.replace(plain, out=other.out) == other and plain.student_seed == plain.seed
    assert teacher_layers([plain, own]) == (1, 2, 3)


def test_an_override_reaches_one_student_all_or_those_without_a_key_of_their_own(tmp_path):
    path = sweep(tmp_path, "relation_heads = 2", "")
    for override, expected in (
        ("student.b.relation_heads=1", [2, 1]),
        ("relation_heads=8", [2, 8]),
        ("student.relation_heads=1", [1, 1]),
    ):
        recipes = load_recipes(path, [override, "student.a.seed=1"])
        assert [recipe.relation_heads for recipe in recipes] == expected


_OF_ALL = "the students of a run share the teacher's pass, samples and steps, and so this"


@pytest.mark.parametrize(
    "keys, overrides, message",
    [
        ("batch = 4", (), f"sweep.toml, student b: batch = 4: {_OF_ALL}; set it for all of them, or train this one by"),
        ("weight_decay = 0.1", (), f"student b: weight_decay = 0.1: {_OF_ALL}; set it"),
        ("teacher.layer = 2", (), f"student b: teacher = {{'layer': 2}}: {_OF_ALL} (which of its layers teaches is a"),
        ("", (), "sweep.toml, student b: becomes what student a becomes, bit for bit; give it a key of its own, as"),
        ("seed = 42\ninit = ''", (), "student b: student.init = '': must be a name"),
        (
            'transfer = "embedding"',
            (),
            "student b: transfer = 'embedding': of the students of a run all learn vectors or",
        ),
        (
            'transfer = "last"',
            ("transfer=embedding",),
            "student b: transfer = 'last': of the students of a run all learn",
        ),
        (
            "seed = -2",
            (),
            "student b: student.seed = -2: must be at least 0 and below 2**64, or -1 for the recipe's seed",
        ),
        ("relation_heads = 3", (), "student b: relation_heads = 3: the student's width 16 is not divisible by 3"),
        ('teacher_layer = "x"', (), "student b: teacher.layer = 'x': must be a whole number"),
        ("teacher_layer = 2", ("student.pairs=xy",), "student a: pairs = ('xy',): must be different pairs from"),
        (
            "seed = 1",
            ("student.teacher_layer=2", "teacher.layer=1"),
            "command line: teacher.layer=1: each student has its own teacher_layer; write student.teacher_layer=1 for all, or "
            "student.NAME.teacher_layer=1 for one",
        ),
    ],
)
def test_students_of_a_sweep_that_clash_are_one_line_with_the_way_out(tmp_path, keys, overrides, message):
    with pytest.raises(UserError) as error:
        load_recipes(sweep(tmp_path, "", keys), overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_key_of_a_sweep_in_a_single_student_names_the_recipes_own(tmp_path):
    with pytest.raises(UserError, match=r"student.teacher_layer = 2: unknown key; did you mean teacher.layer\?"):
        load_recipe(make_recipe(tmp_path), ["student.teacher_layer=2"])


def test_a_stage_of_vectors_goes_on_with_a_sweep_without_its_relations(tmp_path):
    stages = '[[stage]]\nname = "relations"\n[[stage]]\nname = "vectors"\ntransfer = "embedding"\nlayout = "doc"\n'
    stages += "[stage.teacher]\nlayer = 4\n"
    text = sweep(tmp_path, "seed = 3\nlearning_rate = 1e-3", 'pairs = ["qq"]\nteacher_layer = 2', stages=stages)
    first, second = load_stages(text, ["pairs=qk,vv", "student.a.pairs=kk", "student.b.teacher_layer=1"])
    assert [(recipe.pairs, recipe.teacher.layer) for recipe in first] == [(("kk",), 3), (("qq",), 1)]
    assert all(recipe.parts == ("cosine", "similarities") and recipe.teacher.layer == 4 for recipe in second)
    assert [(recipe.student.seed, recipe.learning_rate) for recipe in second] == [(3, 1e-3), (-1, 1e-2)]
    with pytest.raises(UserError, match=r"stage vectors: student.pairs is given; it learns vectors, not relations"):
        own = f'[[stage.student]]\nname = "a"\npairs = ["qq"]\n{SHAPE}'
        load_stages(sweep(tmp_path, "", "seed = 1", stages=stages + own))


def test_the_shipped_sweeps_are_of_one_shape_and_differ_in_what_they_are_about():
    ablation = load_recipes("minilmv2_ablation")
    found = {Path(recipe.out).name: (recipe.pairs, recipe.relation_heads) for recipe in ablation}
    full = ("qq", "kk", "vv")
    assert found == {
        "full": (full, 48), "without-qq": (full[1:], 48), "without-kk": (("qq", "vv"), 48), "without-vv": (full[:2], 48),
        "qk-vv": (("qk", "vv"), 48), "24-heads": (full, 24), "12-heads": (full, 12),
    }  # fmt: skip
    search = load_recipes("layer_search")
    assert [recipe.teacher.layer for recipe in search] == [12, 11, 10, 9]
    assert {(recipe.student, recipe.batch, recipe.learning_rate) for recipe in ablation + search} == {
        (load_recipes("minilmv2_bert_base")[1].student, 256, 6e-4)
    }
