"""settings: what may be written in a recipe, and what is said when it is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import UserError
from pipeline.data.order import Order
from pipeline.engines.ds_config import DS_CONFIGS, load_ds_config
from pipeline.models.configs import planned_config
from pipeline.models.counting import count_parameters
from pipeline.models.fit import check_teacher, student_config_of, teacher_config_of
from pipeline.models.loading import load_config
from pipeline.models.students import build_student
from pipeline.recipe.describe import describe
from pipeline.settings.reading import SHIPPED, load_recipe, load_recipes, load_stages
from tests.parts.tiny import make_recipe, make_teacher


def refusal(path, *overrides):
    with pytest.raises(UserError) as error:
        recipe = load_recipe(path, overrides)
        check_teacher(recipe, load_config(recipe.teacher.model))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("minilm*.toml")))
def test_every_shipped_recipe_resolves_without_a_network(name):
    stages = load_stages(name)
    assert {recipe.root for recipes in stages for recipe in recipes} == {f"runs/{name}"}
    for recipe in (recipe for recipes in stages for recipe in recipes):
        check_teacher(recipe, teacher_config_of(recipe, planned_config))
        for ds_config in (recipe.teacher.ds_config, recipe.student.ds_config):
            load_ds_config(ds_config, recipe)
        assert recipe.accumulation(8) >= 1
    student = stages[-1][-1]
    if shape := re.findall(r"_(\d+x\d+)(?:_|$)", name) or re.findall(r"^\d+x\d+$", Path(student.out).name):
        assert shape == [f"{student.student.layers}x{student.student.hidden}"]
    assert name.removeprefix("minilm_") in recipe.out


# Parameters in millions, embeddings and Transformer, as in Table 1 and 3 of arXiv 2002.10957.
@pytest.mark.parametrize(
    "name, embeddings, transformer",
    [
        ("minilm_6x768", 23.4, 42.5),
        ("minilm_12x384", 11.7, 21.3),
        ("minilm_6x384", 11.7, 10.6),
        ("minilm_4x384", 11.7, 7.1),
        ("minilm_3x384", 11.7, 5.3),
    ],
)
def test_student_parameters_equal_the_papers_table(name, embeddings, transformer):
    recipe = load_recipe(name)
    teacher = planned_config(recipe.teacher.model)
    count = count_parameters(student_config_of(recipe, teacher))
    assert round(count["embeddings"] / 1e6, 1) == embeddings
    assert round(count["transformer"] / 1e6, 1) == transformer
    count = count_parameters(teacher)
    assert (round(count["embeddings"] / 1e6, 1), round(count["transformer"] / 1e6, 1)) == (23.4, 85.1)


def test_the_five_languages_recipe_resolves_with_a_trimmed_vocabulary(tmp_path):
    recipe = load_recipe("five_languages", [f"student.vocab={tmp_path}"])
    with pytest.raises(UserError, match="need a folder that python -m pipeline"):
        check_teacher(recipe, teacher_config_of(recipe, planned_config))
    kept = np.full(250002, -1, np.int32)
    kept[:4], kept[1000:2000] = range(4), range(4, 1004)
    np.save(tmp_path / "vocabulary.npy", kept)
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta", "vocab_size": 1004}')
    teacher = teacher_config_of(recipe, planned_config)
    check_teacher(recipe, teacher)
    student = student_config_of(recipe, teacher)
    assert (student.vocab_size, student.hidden_size, student.num_hidden_layers) == (1004, 384, 6)
    assert recipe.accumulation(8) == 1 and recipe.student.init == "pca"


@pytest.mark.parametrize(
    "name, batch, rate", [("6x768", 1024, 5e-4), ("12x384", 256, 3e-4), ("6x384", 256, 3e-4), ("3x384", 256, 3e-4)]
)
def test_the_papers_hyperparameters(name, batch, rate):
    recipe = load_recipe(f"minilm_{name}")
    assert (recipe.batch, recipe.learning_rate, recipe.steps, recipe.warmup_steps) == (batch, rate, 400_000, 4_000)
    assert (recipe.length, recipe.adam_betas, recipe.weight_decay) == (512, (0.9, 0.999), 0.01)
    assert (recipe.pairs, recipe.student.dropout, recipe.relation_heads) == (("qk", "vv"), 0.1, 12)


def test_the_description_gives_the_resolved_recipe_and_what_follows(tiny):
    recipe = load_recipe(tiny, ["steps=100"])
    text = describe(recipe, load_config(recipe.teacher.model))
    assert "steps = 100" in text
    assert "one step: 8 sequences × 16 = 128 tokens; all 100 steps: 12,800 tokens" in text
    assert "2 × 2 × 2" in text  # ranks × micro_batch × accumulation
    assert "teacher: 4 layers × 32" in text


def test_overrides_reach_tables_lists_and_strings(tiny):
    recipe = load_recipe(
        tiny, ["student.layers=3", 'pairs=["qq","kk"]', "out=runs/other", "learning_rate=1", "teacher.hosting=zero3"]
    )
    assert (recipe.student.layers, recipe.pairs, recipe.out) == (3, ("qq", "kk"), "runs/other")
    assert recipe.learning_rate == 1.0 and isinstance(recipe.learning_rate, float)
    assert recipe.teacher.hosting == "zero3"
    assert load_recipe(tiny, ["pairs=qq,kk,vv"]).pairs == ("qq", "kk", "vv")


@pytest.mark.parametrize(
    "override, message",
    [
        ("stepz=3", "tiny.toml: stepz = 3: unknown key; did you mean steps?"),
        ("student.layer=3", "tiny.toml: student.layer = 3: unknown key; did you mean student.layers or teacher.layer?"),
        ("zzz=3", "zzz = 3: unknown key; docs/reference/recipe-keys.md has all keys"),
        ("lr=0.1", "lr = 0.1: unknown key; did you mean learning_rate?"),
        ("student.lr=0.1", "student.lr = 0.1: unknown key; did you mean learning_rate?"),
        ("hidden=12", "hidden = 12: unknown key; did you mean student.hidden?"),
        ("student.num_layers=3", "student.num_layers = 3: unknown key; did you mean student.layers?"),
        ("teacher.batch=3", "teacher.batch = 3: unknown key; did you mean teacher.micro_batch or batch?"),
        ("learning_rate=5", "learning_rate = 5.0: must be at most 1: the papers' runs have 3e-4 to 6e-4"),
        ("steps=0.5", "steps = 0.5: must be a whole number"),
        ("steps=true", "steps = True: must be a whole number"),
        ("steps=0", "steps = 0: must be at least 1"),
        ("learning_rate=fast", "learning_rate = 'fast': must be a number"),
        ("layout=block", "layout = 'block': must be one of 'full', 'doc'"),
        ("precision=fp8", "precision = 'fp8': must be one of 'bf16', 'fp32'"),
        ("teacher.hosting=cloud", "teacher.hosting = 'cloud': must be one of 'auto', 'replicate', 'zero3'"),
        ("student=3", "student = 3: must be a table [student]"),
        ("pairs=qx", "pairs = ('qx',): must be different pairs"),
        ("pairs=3", "pairs = 3: must be a list of strings"),
        ("student.hidden=18", "student.hidden = 18: it is not divisible by 4 attention heads; use 16 or 20"),
        (
            "relation_heads=5",
            "relation_heads = 5: the student's width 16 is not divisible by 5 relation heads; use 4 or 8",
        ),
        (
            "student.heads=5",
            "student.heads = 5: the student's width 16 is not divisible by 5 attention heads; use 4 or 8",
        ),
        ("adam_betas=[0.9]", "adam_betas = (0.9,): must be two in [0, 1)"),
        ("learning_rate=inf", "learning_rate = inf: must be above 0 and finite"),
        ("weight_decay=nan", "weight_decay = nan: must be at least 0 and finite"),
        ('out=""', "out = '': must be a name"),
        ("batch=7", "batch = 7: not a multiple of micro_batch = 2"),
        ("length=2", "length = 2: must be at least 3"),
        ("length=65", "length = 65: must be at most the teacher's 64 positions"),
        ("teacher.layer=5", "teacher.layer = 5: must be one of the teacher's layers 1 to 4"),
        ("teacher.layer=0", "teacher.layer = 0: must be one of the teacher's layers 1 to 4"),
        ("student.init=teacher", "student.init = 'teacher': student.hidden is 16, the teacher's is 32"),
        (
            "student={layers = 2, hidden = 48, heads = 4, init = 'pca'}",
            "student.init = 'pca': student.hidden is 48, the teacher's embeddings have 32 components; use as many or fewer",
        ),
        ("teacher.model=/nowhere/at/all", "/nowhere/at/all: no such folder"),
        ("teacher.model=models/none", "models/none: no such folder, and not to be had from the hub ("),
        ("compile=always", "compile = 'always': must be one of 'none', 'loss', 'all'"),
        ("teacher.micro_batch=3", "teacher.micro_batch = 3: must be a multiple of micro_batch = 2, or 0 for the same"),
        ("steps", "overrides are written key=value"),
        ("steps.x=3", "steps is a value, not a table"),
        ("steps=10#0", "steps = '10#0': must be a whole number"),
        (
            "steps=1\nlearning_rate=5",
            r"command line: 'steps=1\nlearning_rate=5': holds a line break; give each key=value",
        ),
        ("steps=1\r", "holds a line break"),
        (f"seed={2**64}", f"seed = {2**64}: must be at least 0 and below 2**64"),
        ("seed=-1", "seed = -1: must be at least 0 and below 2**64"),
        (f"steps={2**61}", f"steps = {2**61}: must be below 2**63 / batch"),
        ("sampling_alpha=200", "sampling_alpha = 200.0: must be from 0 (sources alike) to 10"),
        ("out=~nobody-of-this-name/x", "out = '~nobody-of-this-name/x': no such user's home"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_value(tiny, override, message):
    assert message in refusal(tiny, override)


def test_the_largest_seed_is_one_that_everything_takes(tiny):
    recipe = load_recipe(tiny, [f"seed={2**64 - 1}"])
    order = Order([5], [1.0], recipe.seed)
    assert sorted(order(0, 5).window.tolist()) == [0, 1, 2, 3, 4]
    config = load_config(recipe.teacher.model)
    build_student(student_config_of(recipe, config), recipe.seed)


def test_names_are_taken_as_they_are_typed(tiny, tmp_path):
    typed = ["teacher.revision=0012345", "out=2024", "data=1e5", 'student.vocab="7"', "teacher.model=true"]
    recipe = load_recipe(tiny, typed)
    assert (recipe.teacher.revision, recipe.out, recipe.data) == ("0012345", "2024", "1e5")
    assert (recipe.student.vocab, recipe.teacher.model) == ("7", "true")
    path = tmp_path / "digits.toml"
    path.write_text(tiny.read_text().replace("[teacher]\n", "[teacher]\nrevision = 1234567\n"))
    assert load_recipe(path).teacher.revision == "1234567"


def test_the_home_folder_is_found_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "below.toml").write_text(make_recipe(tmp_path, out="~/out", data="~/data").read_text())
    path = tmp_path / "over.toml"
    path.write_text('base = "~/below.toml"\n')
    typed = ["teacher.model=~/t", "teacher.ds_config=~/t.json", "student.vocab=~/v", "student.ds_config=~/s.json"]
    for recipe in (load_recipe(path, typed), load_recipe("~/below.toml", ["data=~/data", *typed])):
        student, teacher, home = recipe.student, recipe.teacher, str(tmp_path)
        found = [
            recipe.out,
            recipe.root,
            recipe.data,
            teacher.model,
            teacher.ds_config,
            student.vocab,
            student.ds_config,
        ]
        names = ["out", "out", "data", "t", "t.json", "v", "s.json"]
        assert found == [f"{home}/{name}" for name in names]
    (first,), (second,) = load_stages(over(tmp_path, STAGED.format(out="~/chain")))
    assert (
        first.root == f"{home}/chain"
        and second.teacher.model == f"{first.out}-student" == f"{home}/chain/assistant-student"
    )


def test_a_missing_key_is_named(tiny, tmp_path):
    path = tmp_path / "short.toml"
    path.write_text(tiny.read_text().replace("steps = 6\n", "").replace("layer = 3\n", "layer = 3\n"))
    assert refusal(path) == "short.toml: steps is missing; it must be set to a whole number"


def test_broken_toml_and_missing_files_are_named(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("steps = \n")
    assert "broken.toml: not valid TOML" in refusal(path)
    assert (
        "shipped recipes are demo, demo_multilingual, embedding_en, embedding_five, five_languages, layer_search"
        in refusal(tmp_path / "none.toml")
    )


def test_a_batch_that_does_not_split_over_the_ranks_is_named(tiny):
    recipe = load_recipe(tiny)
    assert recipe.accumulation(2) == 2
    with pytest.raises(UserError, match=r"batch = 8: not a multiple of 3 ranks × micro_batch = 2; use a multiple of 6"):
        recipe.accumulation(3)
    with pytest.raises(UserError, match=r"batch = 8: fewer sequences than the 9 ranks"):
        recipe.accumulation(9)


def test_the_learning_rate_warms_up_and_decays_linearly(tiny):
    recipe = load_recipe(tiny, ["steps=10", "warmup_steps=4", "learning_rate=1"])
    rates = [recipe.learning_rate_at(step) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([6 / 6, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_a_run_shorter_than_its_warm_up_is_allowed(tiny):
    recipe = load_recipe(tiny, ["steps=2", "warmup_steps=100", "learning_rate=1"])
    assert [recipe.learning_rate_at(step) for step in range(2)] == [0.01, 0.02]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"train_batch_size": 8}, "train_batch_size: belongs to the recipe (tiny.toml: batch)"),
        ({"optimizer": {}}, "optimizer: belongs to the recipe"),
        ({"bf16": {"enabled": True}}, "bf16: belongs to the recipe (tiny.toml: precision)"),
        (
            {"zero_optimisation": {}},
            "zero_optimisation: unknown or removed DeepSpeed key; did you mean zero_optimization?",
        ),
        ({"elasticity": {}}, "elasticity: unknown or removed"),
        (
            {"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}},
            'zero_optimization.reduce_bucket_size = "auto"',
        ),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage = 4: must be 0, 1, 2 or 3"),
        ({"zero_optimization": 3}, "must be a JSON object whose zero_optimization, if any, is an object too"),
        ([], "must be a JSON object"),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer: not supported",
        ),
        ({"zero_optimization": {"stage": 3, "cpu_offload": True}}, "cpu_offload: an old key, which DeepSpeed drops"),
        ({"zero_optimization": {"stage": 3, "memory_efficient_linear": True}}, "would replace torch's linear layer"),
        (
            {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
            "return other weights than those that are",
        ),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}, "use the recipe's teacher.shard_group"),
        ({"zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}}}, "does nothing at stage 1"),
        ({"zero_optimization": {"stage": 1, "reduce_buket_size": 5}}, "DeepSpeed refuses reduce_buket_size = 5"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, "DeepSpeed refuses mics_shard_size = 2"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "gpu"}}},
            "DeepSpeed refuses offload_param.device = 'gpu'",
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "device = 'nvme': not supported"),
        (
            {"zero_optimization": {"stage": 1, "stage3_max_live_parameters": 5}},
            "stage3_max_live_parameters: does nothing",
        ),
        ({"zero_optimization": {"stage": 3, "elastic_checkpoint": True}}, "elastic_checkpoint: an old key"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage = True: must be 0, 1, 2 or 3"),
        ({"aio": {"block_size": 3}}, "aio: unknown or removed DeepSpeed key"),
        (
            {"flops_profiler": {"enbled": True}},
            "flops_profiler.enbled: unknown or removed DeepSpeed key; did you mean flops_profiler.enabled?",
        ),
        ({"comms_logger": {"verbos": True}}, "comms_logger.verbos: unknown or removed DeepSpeed key; did you mean"),
        ({"comms_logger": 5}, "comms_logger = 5: must be an object with enabled"),
        ({"communication_data_type": "fp99"}, "communication_data_type = 'fp99': must be one of bf16, fp32"),
        ({"communication_data_type": "fp16"}, "communication_data_type = 'fp16': must be one of bf16, fp32"),
        ({"prescale_gradients": "yes"}, "prescale_gradients = 'yes': must be true or false"),
        ({"gradient_predivide_factor": "x"}, "gradient_predivide_factor = 'x': must be a number"),
        ({"gradient_predivide_factor": 0}, "gradient_predivide_factor = 0: must be above 0"),
        (
            {"gradient_predivide_factor": 2.0, "zero_optimization": {"stage": 2}},
            "gradient_predivide_factor = 2.0: DeepSpeed has it at stage 2 without reduce_scatter only; remove it, or use",
        ),
        (
            {"prescale_gradients": True, "zero_optimization": {"stage": 3}},
            "prescale_gradients = true: DeepSpeed has it at stage 3 without reduce_scatter only",
        ),
        ({"zero_optimization": {"stage": 1, "legacy_stage1": True}}, "legacy_stage1: an old form of stage 1"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "compute_grad_norm = false: the norm is"),
    ],
)
def test_a_ds_config_that_clashes_is_named(tiny, tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load_ds_config(str(path), load_recipe(tiny))
    assert str(path) in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    "stage, precision, taken", [(2, "bf16", True), (1, "fp32", True), (1, "bf16", False), (0, "fp32", False)]
)
def test_without_clipping_the_norm_need_not_be_computed_where_deepspeed_allows_it(
    tiny, tmp_path, stage, precision, taken
):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage, "compute_grad_norm": False}}))
    recipe = load_recipe(tiny, ["gradient_clipping=0", f"precision={precision}"])
    if taken:
        assert load_ds_config(str(path), recipe)["zero_optimization"]["stage"] == stage
    else:
        with pytest.raises(
            UserError, match=r"mine.json: .*compute_grad_norm = false: DeepSpeed has it at stage 2, and"
        ):
            load_ds_config(str(path), recipe)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            '{"zero_optimization": {"stage": 1}, "zero_optimization": {"stage": 2}}',
            "'zero_optimization' is there twice",
        ),
        ('{"zero_optimization": {"stage": 1, "stage": 2}}', "not valid JSON: 'stage' is there twice"),
        ('{"zero_optimization": {"stage": 1,}}', "not valid JSON: "),
        (None, "cannot be read as a ds_config (Is a directory)"),
    ],
)
def test_a_ds_config_that_cannot_be_read_is_named(tiny, tmp_path, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text) if text else path.mkdir()
    with pytest.raises(UserError) as error:
        load_ds_config(str(path), load_recipe(tiny))
    assert str(path) in str(error.value) and message in str(error.value)


def test_what_else_a_ds_config_may_hold_is_accepted(tiny, tmp_path):
    path = tmp_path / "mine.json"
    content = {
        "zero_optimization": {"stage": 3, "stage3_max_live_parameters": 5, "offload_param": {"device": "cpu"}},
        "communication_data_type": "fp32", "prescale_gradients": False, "gradient_predivide_factor": 1,
        "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]}, "flops_profiler": {"profile_step": 3},
    }  # fmt: skip
    path.write_text(json.dumps(content))
    assert load_ds_config(str(path), load_recipe(tiny)) == content


def test_a_teacher_is_hosted_at_stage_3(tiny):
    recipe = load_recipe(tiny, ["teacher.ds_config=student_zero1.json"])
    with pytest.raises(UserError, match=r"stage = 1: a teacher is hosted at stage 3, or hosting = 'replicate'"):
        load_ds_config(recipe.teacher.ds_config, recipe)


@pytest.mark.slow
def test_options_may_stand_before_overrides(tiny, tmp_path):
    """So that `distill RECIPE --stop-at 3 steps=9` reads as one would expect."""
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.distill", str(tiny), "--stop-at", "3", "steps=0"],
        capture_output=True,
        text=True,
    )
    assert result.stderr.strip().splitlines()[-1] == "error: tiny.toml: steps = 0: must be at least 1"


# --- several students -------------------------------------------------------------------------------------------------


def test_table_3_is_the_papers_four_students_in_one_run():
    recipes = load_recipes("minilm_table3")
    for recipe in recipes:
        alone = load_recipe(f"minilm_{Path(recipe.out).name}")
        own, others = recipe.to_dict(), alone.to_dict()
        assert own.pop("out") == f"runs/minilm_table3/{Path(recipe.out).name}" and others.pop("out")
        assert own == others
    assert [recipe.student.layers for recipe in recipes] == [12, 6, 4, 3]


# Batch, peak rate and steps; relations and heads; the teacher's layer: facts of arXiv 2002.10957 and 2012.15828.
@pytest.mark.parametrize(
    "name, expected",
    [
        ("minilm_no_value_relation", (256, 3e-4, 400_000, ("qk",), 12, 12, [6, 4, 3])),
        ("minilm_value_mse", (256, 3e-4, 400_000, ("qk", "v_mse"), 12, 12, [6, 4, 3])),
        ("minilm_layer_to_layer", (256, 3e-4, 400_000, ("qk", "vv"), 12, 12, [6, 4, 3])),
        ("minilm_multilingual_12x384", (256, 3e-4, 1_000_000, ("qk", "vv"), 12, 12, [12])),
        ("minilmv2_bert_base", (256, 6e-4, 400_000, ("qq", "kk", "vv"), 48, 12, [6, 6])),
        ("minilmv2_bert_large", (256, 6e-4, 400_000, ("qq", "kk", "vv"), 64, 21, [6, 6])),
        ("minilmv2_roberta_large", (256, 6e-4, 400_000, ("qq", "kk", "vv"), 64, 19, [12, 6, 6])),
        ("minilmv2_xlmr_large", (256, 6e-4, 400_000, ("qq", "kk", "vv"), 64, 19, [12, 6])),
    ],
)
def test_the_other_tables_recipes(name, expected):
    recipes = load_recipes(name)
    for one in recipes:
        found = one.batch, one.learning_rate, one.steps, one.pairs, one.relation_heads, one.teacher.layer
        assert found == expected[:-1]
        assert one.transfer == ("layer-to-layer" if name == "minilm_layer_to_layer" else "last")
    assert [one.student.layers for one in recipes] == expected[-1]


@pytest.mark.parametrize("key, value", [("pairs", "v_mse"), ("pairs", "qk,v_mse,v_mse"), ("transfer", "all")])
def test_what_a_loss_cannot_be_made_of_is_named(tiny, key, value):
    assert f"tiny.toml: {key} = " in refusal(tiny, f"{key}={value}")


def test_layer_to_layer_needs_as_many_layers_of_the_teacher(tiny):
    assert load_recipe(tiny, ["transfer=layer-to-layer", "student.layers=3"]).layers == {1: 1, 2: 2, 3: 3}
    message = refusal(tiny, "transfer=layer-to-layer", "student.layers=4")
    assert "student.layers = 4: must be at most teacher.layer to learn from" in message


# --- modern teachers --------------------------------------------------------------------------------------------------


def modern(tmp_path, *overrides: str):
    """A recipe and its teacher's config, ModernBERT in four layers of which the first and the last are global."""
    make_teacher(tmp_path / "teacher", "modernbert", local_attention=8, intermediate_size=48)
    recipe = load_recipe(make_recipe(tmp_path), overrides)
    return recipe, teacher_config_of(recipe)


@pytest.mark.parametrize("transfer, layer, named", [("last", 3, 3), ("last", 2, 2), ("layer-to-layer", 4, 2)])
def test_a_layer_that_attends_to_a_window_is_refused_with_the_global_ones(tmp_path, transfer, layer, named):
    recipe, config = modern(tmp_path, f"teacher.layer={layer}", f"transfer={transfer}")
    with pytest.raises(UserError) as error:
        check_teacher(recipe, config)
    assert str(error.value) == (
        f"tiny.toml: teacher.layer = {layer}: the teacher's layer {named} has local attention, whose maps are not "
        "what it attends to; its global layers are 1, 4"
    )


def test_a_modern_student_has_the_teachers_proportions_and_a_global_last_layer(tmp_path):
    recipe, config = modern(tmp_path, "teacher.layer=4")
    check_teacher(recipe, config)
    student = student_config_of(recipe, config)
    assert (student.model_type, student.intermediate_size, student.layer_types[-1]) == (
        "modernbert",
        24,
        "full_attention",
    )


def test_heads_of_odd_width_cannot_be_rotated(tmp_path):
    recipe, config = modern(tmp_path, "teacher.layer=4", "student.hidden=36")
    with pytest.raises(UserError, match=r"student.heads = 4: heads of width 9 cannot be rotated; use an even width"):
        check_teacher(recipe, config)
    recipe, config = modern(tmp_path, "teacher.layer=4", "student.hidden=36", "student.model_type=bert")
    check_teacher(recipe, config)


def test_a_modern_teacher_may_have_a_bert_student(tmp_path):
    recipe, config = modern(tmp_path, "teacher.layer=4", "student.model_type=bert")
    check_teacher(recipe, config)
    student = student_config_of(recipe, config)
    assert (student.model_type, student.intermediate_size, student.vocab_size) == ("bert", 64, 50)
    describe(recipe, config)


def test_a_student_of_another_family_has_no_layers_to_start_from(tmp_path):
    start = "student.hidden=32", "student.init=teacher", "teacher.layer=4"
    recipe, config = modern(tmp_path, *start, "student.model_type=bert")
    with pytest.raises(
        UserError, match=r"init = 'teacher': the student is a bert, the teacher a modernbert; use 'random' or 'pca'"
    ):
        check_teacher(recipe, config)
    recipe, config = modern(tmp_path, *start)
    check_teacher(recipe, config)


# --- recipes over others, and stages ----------------------------------------------------------------------------------


def over(folder, text, name="over.toml"):
    make_recipe(folder)
    (folder / name).write_text(text)
    return folder / name


def test_a_recipe_goes_over_its_base_table_by_table(tmp_path):
    path = over(tmp_path, 'base = "tiny.toml"\nsteps = 9\n[student]\ndropout = 0.0')
    own, base = (load_recipe(one).to_dict() for one in (path, tmp_path / "tiny.toml"))
    assert own == base | {"steps": 9, "student": base["student"] | {"dropout": 0.0}}
    assert load_recipe(over(tmp_path, 'base = "minilm_6x384"\nout = "o"')).student.layers == 6


@pytest.mark.parametrize(
    "text, message",
    [
        ('base = "over.toml"', "base = 'over.toml': goes around in a circle"),
        ('base = "nope"', "nope: no such recipe file; shipped recipes are demo,"),
        ("base = 3", "over.toml: base = 3: must be a recipe's file or the name of a shipped one"),
        ("stage = 3", "over.toml: stage = 3: write each as a table [[stage]] with a name"),
        ('[[stage]]\nbase = "tiny.toml"', "over.toml: [[stage]] name = None: each of several needs a name"),
        ('out = "o"\n' + 2 * '[[stage]]\nname = "a"\nbase = "tiny.toml"\n', "[[stage]] name = 'a': is given twice"),
        (
            'out = "o"\n[[stage]]\nname = "a"\nbase = "tiny.toml"\nout = "b"',
            "over.toml, stage a: out is given; its run folder is",
        ),
        (
            'out = "o"\n[[stage]]\nname = "a"\nbase = "tiny.toml"\n[[stage]]\nname = "b"\nbase = "tiny.toml"\n'
            "[stage.teacher]\nlayer = 2",
            "over.toml, stage b: teacher.layer is given; its teacher is the student of the stage before",
        ),
        (
            'base = "tiny.toml"\n[[stage]]\nname = "a"\n[[stage.student]]\nname = "x"\nlayers = 2\nhidden = 16\n'
            'heads = 4\n[[stage.student]]\nname = "y"\nlayers = 1\nhidden = 16\nheads = 4\n[[stage]]\nname = "b"',
            "over.toml, stage b: the stage before has 2 students; a teacher is one",
        ),
        ('base = "tiny.toml"\n[[stage]]\nname = "a"\nstepz = 3', "over.toml, stage a: stepz = 3: unknown key"),
        ('[[stage]]\nname = "a"\nbase = "tiny.toml"', "over.toml: out is missing; stages need one"),
        (
            'base = "tiny.toml"\n[[stage]]\nname = "a"\n[[stage]]\nname = "b"\nteacher = "c"',
            "over.toml, stage b: teacher = 'c': must be a table [teacher]",
        ),
        (
            'base = "tiny.toml"\n[[stage]]\nname = "a"\n[[stage]]\nname = "a-student"',
            "over.toml: [[stage]] name = 'a-student': a's student is exported to that folder",
        ),
    ],
)
def test_a_mistake_in_bases_and_stages_is_named(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        load_stages(over(tmp_path, text))
    assert message in str(error.value) and "\n" not in str(error.value)


STAGED = """
base = "tiny.toml"
out = "{out}"
steps = 7
[[stage]]
name = "assistant"
[stage.student]
layers = 3
[[stage]]
name = "student"
steps = 8
"""


def test_each_stage_learns_from_the_student_of_the_one_before(tmp_path):
    path = over(tmp_path, STAGED.format(out="runs/chain"))
    (first,), (second,) = load_stages(path)
    assert (first.out, second.out, first.root) == ("runs/chain/assistant", "runs/chain/student", "runs/chain")
    assert (second.teacher.model, second.teacher.layer) == ("runs/chain/assistant-student", 3)
    assert (first.steps, second.steps, first.student.layers, second.student.layers) == (7, 8, 3, 2)
    config = teacher_config_of(second)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (3, 16, 50)
    assert {"former", "root", "stage", "source"}.isdisjoint(second.to_dict())


def test_overrides_reach_all_stages_or_one_by_its_name(tmp_path):
    path = over(tmp_path, STAGED.format(out="o"))
    (first,), (second,) = load_stages(
        path, ["seed=3", "stage.student.steps=5", "teacher.layer=2", "out=elsewhere", "teacher.hosting=zero3"]
    )
    assert (first.seed, second.seed, first.steps, second.steps) == (3, 3, 7, 5)
    assert (first.teacher.layer, second.teacher.layer, second.teacher.model) == (2, 3, "elsewhere/assistant-student")
    assert {first.teacher.hosting, second.teacher.hosting} == {"zero3"} and first.root == "elsewhere"
    assert [[one] for one in load_recipes(path, ["stage=student"])] == [load_stages(path)[1]]
    for overrides, message in (
        (["stage.nope.steps=5"], "stage.nope.steps=5: write stage.NAME.key=value; over.toml has assistant, student"),
        (["stage=nope"], "stage=nope: over.toml has the stages assistant, student"),
        (["stage.student.out=x"], "stage.student.out=x: its run folder is OUT/NAME"),
        (
            ["stage.student.teacher.layer=1"],
            "stage.student.teacher.layer=1: its teacher is the student of the stage before",
        ),
        (["stage.student.teacher=1"], "over.toml, stage student: teacher = 1: must be a table [teacher]"),
        ([], "has the stages assistant, student; this takes one: pick it by stage=NAME"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            load_recipes(path, overrides)
    with pytest.raises(UserError, match=r"stage=a: tiny.toml has no stages"):
        load_recipes(tmp_path / "tiny.toml", ["stage=a"])


def test_the_papers_assistant_is_the_12_layer_student():
    (assistant,), (student,) = load_stages("minilm_6x384_ta")
    for recipe, alone in ((assistant, "minilm_12x384"), (student, "minilm_6x384")):
        own, other = recipe.to_dict(), load_recipe(alone).to_dict()
        assert [key for key in own if own[key] != other[key]] == ["out", *(["teacher"] if recipe is student else [])]
    (assistant,), (student,) = load_stages("minilm_multilingual_6x384_ta")
    assert (student.batch, student.learning_rate, student.steps) == (512, 6e-4, 400_000)
    assert (student.student.layers, student.student.hidden, student.sampling_alpha) == (6, 384, 0.3)
    (assistant,), students = load_stages("minilm_table3_ta")
    assert [one.student.layers for one in students] == [6, 4, 3] and {one.previous for one in students} == {assistant}


def several(folder, *students):
    path = folder / "several.toml"
    head = make_recipe(folder).read_text().split("[student]")[0]
    path.write_text(
        head + "".join(f"[[student]]\nlayers = 2\nhidden = 16\nheads = 4\n{student}\n" for student in students)
    )
    return path


def test_overrides_reach_all_students_or_one_by_its_name(tmp_path):
    path = several(tmp_path, 'name = "a"', 'name = "b.2"')
    a, b = load_recipes(path, ["student.dropout=0.3", "student.b.2.layers=3", "steps=9"])
    assert (a.student.dropout, a.student.layers, b.student.dropout, b.student.layers) == (0.3, 2, 0.3, 3)
    assert a.steps == b.steps == 9 and b.out == f"{a.out.removesuffix('/a')}/b.2"


@pytest.mark.parametrize(
    "students, overrides, message",
    [
        (["", ""], (), "several.toml: [[student]] name = None: each of several needs a name"),
        (['name = "../up"'], (), "name = '../up': each of several needs a name of letters"),
        (['name = "a"', 'name = "a"'], (), "name = 'a': is given twice"),
        (['name = "a"', 'name = "b"\nlayerz = 3'], (), "several.toml, student b: student.layerz = 3: unknown key"),
        (
            ['name = "a"', 'name = "b"'],
            ("student.b.hidden=18",),
            "several.toml, student b: student.hidden = 18: it is not",
        ),
        (['name = "a"'], ("student.c.hidden=18",), "student.c.hidden: no student 'c'; the recipe has a"),
    ],
)
def test_a_mistake_in_one_of_several_students_is_named(tmp_path, students, overrides, message):
    with pytest.raises(UserError) as error:
        load_recipes(several(tmp_path, *students), overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_student_at_stage_3_is_not_compiled(tiny):
    recipe = load_recipe(tiny, ["compile=all", "student.ds_config=student_zero3.json"])
    with pytest.raises(UserError, match=r"tiny.toml: compile = 'all': a student at stage 3 .* use compile = 'loss'"):
        load_ds_config(recipe.student.ds_config, recipe)


def test_a_missing_ds_config_names_the_shipped_ones(tiny):
    with pytest.raises(UserError, match=r"student_zero0.json, student_zero1.json.*teacher_zero3.json"):
        load_ds_config("nope.json", load_recipe(tiny))


def test_a_teacher_folder_without_weights_is_named(tmp_path):
    folder = make_teacher(tmp_path / "teacher")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no weights that are safe to load \(only pytorch_model.bin, a pickle"):
        load_config(str(folder))


@pytest.mark.slow
def test_the_command_tells_a_mistake_in_one_line_and_exits_with_2(tiny):
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.recipe", str(tiny), "stepz=1"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == "error: tiny.toml: stepz = 1: unknown key; did you mean steps?"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", sorted(path.name for path in DS_CONFIGS.glob("*.json")))
def test_every_shipped_ds_config_is_accepted(tiny, name):
    key = "teacher" if name.startswith("teacher") else "student"
    load_ds_config(name, load_recipe(tiny, [f"{key}.ds_config={name}"]))
