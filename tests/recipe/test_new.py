"""recipe --new: a recipe that loads, and whose numbers follow from teacher, data and machine."""

import re

import pytest

from data_prep.cli import UserError
from pipeline.distill import check
from pipeline.models.configs import planned_config
from pipeline.models.fit import check_teacher, products_of, teacher_config_of
from pipeline.models.loading import load_config
from pipeline.plan import here
from pipeline.plan.hardware import GIB, GPUS, Cluster
from pipeline.plan.here import Machine, this_machine
from pipeline.plan.planning import models_of, plan_run
from pipeline.recipe import __main__ as door
from pipeline.recipe import machine, new
from pipeline.recipe.shape import shape_of
from pipeline.settings.reading import load_recipe
from pipeline.settings.recipe import Recipe
from tests.parts.tiny import make_corpus, make_teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("new")
    make_teacher(made / "teacher")
    make_corpus(made / "data")
    make_corpus(made / "larger", {"a": 60_000, "b": 60_000})
    (made / "text.txt").write_text("some text\n")
    return made


@pytest.fixture
def gpus(monkeypatch):
    """Eight GPUs as this machine's."""

    def eight(products) -> Machine:
        return Machine(Cluster(1, 8, GPUS["H100"], 80 * GIB, 12.5, 0.4), "by its data sheet", 1.0)

    monkeypatch.setattr(machine, "this_machine", eight)
    monkeypatch.setattr("pipeline.recipe.outlook.this_machine", eight)


def written(folder, name, data="data", **sizes) -> tuple[Recipe, str, list[str]]:
    file = folder / name
    file.unlink(missing_ok=True)
    sizes = {"layers": None, "hidden": None} | sizes
    said = list(new.write(file, str(folder / "teacher"), str(folder / data), **sizes))
    return load_recipe(file), file.read_text(), said


def test_a_new_recipe_loads_fits_its_teacher_and_memory_and_gives_a_reason_for_each_key(folder, monkeypatch):
    monkeypatch.chdir(folder)
    recipe, text, said = written(folder, "mine.toml")
    config = teacher_config_of(recipe)
    check_teacher(recipe, config)
    plan = plan_run([recipe], models_of([recipe]), this_machine(products_of([recipe], config)).cluster)
    (checked,), *_ = check([recipe])  # as a run does before it trains
    assert checked.segments == "pairs" and checked.layout == recipe.layout == "packed"
    assert plan.fits and plan.recipes[0].micro_batch == recipe.micro_batch == plan.asked
    assert recipe.out == "runs/mine" and (recipe.student.layers, recipe.student.hidden) == (2, 32)
    assert recipe.student.init == "teacher" and recipe.teacher.layer == 4
    lines = text.splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"\w+ = ", line)]
    assert len(keys) > 20 and all(lines[number - 1].startswith("# ") for number in keys)
    assert said[0].startswith(f"{folder / 'mine.toml'}: 2 layers × 32") and "Next: " in said[-1]


def test_short_documents_are_packed_and_steps_follow_from_the_data(folder):
    recipe, text, _ = written(folder, "packed.toml", "larger")
    assert (recipe.layout, recipe.length, recipe.batch) == ("packed", 64, 32)
    assert recipe.steps == 580 == 10 * 120_000 // (32 * 64) // 10 * 10 and "10 times through the data" in text
    assert (recipe.warmup_steps, recipe.eval_every, recipe.learning_rate) == (29, 58, 1e-3)
    assert "the 2 sources in proportion to their tokens" in text


def test_little_data_gives_small_batches_and_no_fewer_than_a_hundred_steps(folder):
    make_corpus(folder / "little", {"a": 400}, heldout=0)
    recipe, text, said = written(folder, "little.toml", "little")
    assert recipe.batch == 6 and "no more than the 6 windows there are" in " ".join(text.split("\n# "))
    assert recipe.steps == 100 and "fewer teach nothing" in text
    assert recipe.eval_samples == 0 and any("eval_samples = 0: no held-out losses" in line for line in said)


def test_on_gpus_a_step_is_the_papers_and_the_batch_is_shared(folder, gpus):
    recipe, _, said = written(folder, "gpus.toml", "larger", layers=1, hidden=16)
    assert recipe.batch == 256 and recipe.micro_batch == 32 and recipe.accumulation(8) == 1
    assert (recipe.student.layers, recipe.student.hidden, recipe.student.init) == (1, 16, "pca")
    assert recipe.learning_rate == 1e-3  # 256 × 64 tokens, 100 steps
    assert any(line.startswith("time on this machine (8 × H100): about ") for line in said)


def test_a_recipe_for_two_processes_is_started_as_two(folder, monkeypatch):
    monkeypatch.setenv("RANKS", "2")
    recipe, _, said = written(folder, "two.toml", "larger")
    assert recipe.batch == 32 and recipe.micro_batch == 16
    assert said[-1].endswith(f"Next: RANKS=2 ./run.sh distill {folder / 'two.toml'}")


def test_an_existing_run_folder_is_not_taken(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "runs/taken").mkdir(parents=True)
    assert written(folder, "taken.toml")[0].out == "runs/taken-2"


@pytest.mark.parametrize(
    ("teacher", "layers", "layer", "heads", "init"),
    [
        ("google-bert/bert-base-uncased", 6, 12, 48, "pca"),
        ("google-bert/bert-large-uncased", 12, 21, 64, "pca"),
        ("FacebookAI/roberta-large", 12, 19, 64, "pca"),
        ("FacebookAI/xlm-roberta-base", 6, 12, 48, "pca"),
    ],
)
def test_without_sizes_a_student_is_the_papers(teacher, layers, layer, heads, init):
    shape = shape_of(planned_config(teacher), None, None)
    found = (shape.layers, shape.hidden, shape.heads, shape.layer, shape.relation_heads, shape.init)
    assert found == (layers, 384, 12, layer, heads, init)


def test_a_student_as_wide_as_its_teacher_starts_from_its_layers():
    shape = shape_of(planned_config("google-bert/bert-base-uncased"), 6, 768)
    assert (shape.init, shape.heads, shape.relation_heads) == ("teacher", 12, 48)


@pytest.mark.parametrize(
    ("layers", "hidden", "message"),
    [
        (13, None, "--layers 13: the teacher has 12; give a student at most as many"),
        (None, 800, "--hidden 800: the teacher is 768 wide; give a student at most that"),
        (None, 350, "--hidden 350: shares no more than 2 relation heads with the teacher's width 768; use 336 or 384"),
        (None, 383, "--hidden 383: not divisible by a usual number of attention heads; use 336 or 384"),
    ],
)
def test_a_shape_that_cannot_be_taught_is_refused_with_one_that_can(layers, hidden, message):
    with pytest.raises(UserError) as error:
        shape_of(planned_config("google-bert/bert-base-uncased"), layers, hidden)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "text.txt"}, "text.txt: exists; name another file"),
        ({"file": "none/new.toml"}, "there is no folder"),
        (
            {"data": "nowhere"},
            "no prepared data there; prepare text with the teacher's tokenizer first: ./run.sh prep prepare",
        ),
        ({"data": "text.txt"}, "text.txt: a file, not prepared data; prepare text"),
        ({"data": "teacher"}, "no manifest.json, so not a prepared corpus"),
        ({"teacher": "data"}, "no config.json; not a Hugging Face model folder"),
        ({"teacher": "./missing"}, "no such folder"),
    ],
)
def test_what_a_recipe_cannot_be_made_of_is_refused_and_nothing_is_written(folder, changes, message):
    places = {"file": "refused.toml", "teacher": "teacher", "data": "data"} | changes
    file, teacher, data = (folder / places[key] for key in ("file", "teacher", "data"))
    with pytest.raises(UserError) as error:
        list(new.write(file, str(teacher), str(data), None, None))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "refused.toml").exists()


def test_data_of_another_tokenizer_is_refused(folder, tmp_path):
    other = make_teacher(tmp_path / "other")
    words = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(words.replace('"w44"', '"v44"'))
    with pytest.raises(UserError, match="made with another vocabulary"):
        list(new.write(tmp_path / "x.toml", str(other), str(folder / "data"), None, None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a recipe, or write one with --new FILE"),
        (["--new", "x.toml"], "--new x.toml: needs --teacher"),
        (["--new", "x.toml", "--teacher", "t"], "--new x.toml: needs --data"),
        (["--new", "x.toml", "demo"], "demo: --new writes a recipe of its own"),
        (["demo", "--layers", "3"], "--layers: goes with --new FILE"),
        (["--new", "x.toml", "--layers", "0"], "is not a whole number of at least 1"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(arguments, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["recipe", *arguments])
    with pytest.raises(UserError) as error:
        door.main()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_ranks_share_a_cpus_rates_and_memory(folder, monkeypatch):
    products = products_of([written(folder, "one.toml")[0]], load_config(str(folder / "teacher")))
    monkeypatch.delenv("RANKS", raising=False)
    alone = this_machine(products).cluster
    monkeypatch.setenv("RANKS", "2")
    two = this_machine(products).cluster
    assert two.world == 2 and two.memory == alone.memory / 2 and two.gpu.low == alone.gpu.low / 2
    monkeypatch.setenv("RANKS", "some")
    with pytest.raises(UserError, match="RANKS=some: must be a whole number"):
        this_machine(products)


def test_a_gpu_that_is_not_known_is_planned_as_the_slowest_of_its_memory():
    found = here._gpus(2, "NVIDIA GeForce GTX 9999", 80 * GIB)
    assert found.cluster.gpu.name == "A100-80" and "GTX 9999 is not known" in found.basis and found.cluster.world == 2


def test_an_estimate_has_two_digits():
    times = (0.0123, 0.72, 86, 174, 5000, 6000, 864_000, 69_189_120)
    expected = ["0.012 s", "0.72 s", "86 s", "2.9 min", "83 min", "1.7 h", "10 days", "800 days"]
    assert [here.in_words(seconds) for seconds in times] == expected
