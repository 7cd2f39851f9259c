"""A finished run continues with more steps, and a run starts from any student of its shape; what does not fit is refused."""

import dataclasses
import json
import re
import shutil
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, BertForMaskedLM, BertTokenizerFast

from data_prep.cli import UserError
from pipeline.artifacts import checkpoints
from pipeline.artifacts.metrics import read_metrics
from pipeline.artifacts.run_folder import COMPLETE
from pipeline.distill import distill, distill_stages
from pipeline.export import export
from pipeline.settings.reading import load_recipe, load_recipes, load_stages
from tests.parts import launching
from tests.parts.runs import assert_same_state, job
from tests.parts.tiny import make_recipe, make_teacher

pytestmark = pytest.mark.slow

SHAPE = {"layers": 2, "hidden": 16}  # the tiny recipe's student


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 6 steps; extended to 9 in one go, and with an interruption; and runs from its exported student."""
    folder = make_recipe(tmp_path_factory.mktemp("extending")).parent
    jobs = [job(folder, "done")]
    more = {"copy_of": str(folder / "done"), "without": []}
    jobs.append(job(folder, "whole", "steps=9", **more))
    jobs.append(job(folder, "halves", "steps=9", stop_at=7, **more))
    jobs.append(job(folder, "halves", "steps=9"))
    launching.finish_jobs(folder, 1, jobs)
    export(folder / "done", folder / "student")
    start = f"student.init={folder / 'student'}"
    launching.finish_jobs(
        folder,
        1,
        [
            job(folder, "from-student", start),
            job(folder, "from-halves", start, stop_at=3),
            job(folder, "from-halves", start),
        ],
    )
    return folder


def rates(run):
    return {row["step"]: row["learning_rate"] for row in read_metrics(run) if row["kind"] == "train"}


def test_an_extended_run_goes_on_at_the_rate_of_a_run_of_so_many_steps(folder):
    run, recipe = folder / "whole", load_recipe(folder / "tiny.toml")
    longer = dataclasses.replace(recipe, steps=9)
    expected = [recipe.learning_rate_at(step) for step in range(6)] + [
        longer.learning_rate_at(step) for step in (6, 7, 8)
    ]
    assert list(rates(run).values()) == pytest.approx(expected) and list(rates(run)) == list(range(1, 10))
    note = "note: steps = 9, before 6: from here on the learning rate is that of a run of 9 steps (0.0025 in step 6, 0.00429"
    assert note in (run / "log.txt").read_text()
    assert checkpoints.latest(run).info["earlier_steps"] == [[6, 6]] and (run / COMPLETE).read_text() == "9 steps\n"
    export(run, folder / "extended")
    assert "linear decay, until step 6 as for 6 steps |" in (folder / "extended" / "README.md").read_text()


def test_an_extended_run_that_is_interrupted_gives_the_same_student_bit_for_bit(folder):
    assert_same_state(folder / "whole", folder / "halves")
    assert checkpoints.latest(folder / "halves").info["earlier_steps"] == [[6, 6]]


def test_a_run_is_not_complete_while_it_is_extended(folder, tmp_path):
    run = shutil.copytree(folder / "done", tmp_path / "run")
    recipes = load_recipes(folder / "tiny.toml", [f"out={run}", "steps=9"])
    assert distill(recipes, stop_at=7) == 0
    assert not (run / COMPLETE).exists() and json.loads((run / "recipe.json").read_text())["steps"] == 9


def test_fewer_steps_than_are_done_are_refused_and_as_many_are_nothing_to_do(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "done", tmp_path / "run")
    with pytest.raises(UserError, match=r"tiny.toml: steps = 5: .*step-00000006 has 6 of them; use as many or more to"):
        distill(load_recipes(folder / "tiny.toml", [f"out={run}", "steps=5", "warmup_steps=2"]))
    with pytest.raises(UserError, match=r"learning_rate = 0.5, but"):
        distill(load_recipes(folder / "tiny.toml", [f"out={run}", "steps=9", "learning_rate=0.5"]))
    assert (run / COMPLETE).exists()
    assert distill(load_recipes(folder / "tiny.toml", [f"out={run}"])) == 0
    assert "nothing to do; more steps extend it" in capsys.readouterr().out


def test_a_stage_whose_student_teaches_is_not_extended(folder, tmp_path):
    text = f'base = "{folder}/tiny.toml"\nout = "{tmp_path}/chain"\n[[stage]]\nname = "assistant"\n'
    (tmp_path / "chain.toml").write_text(text + '[stage.student]\nlayers = 3\n[[stage]]\nname = "student"\n')
    options = Namespace(stop_at=None, max_hours=None, timeout=120, launch=None)
    path = tmp_path / "chain.toml"
    assert distill_stages(load_stages(path, ["steps=2", "stage.student.steps=3"]), options) == 0
    with pytest.raises(
        UserError, match=r"steps = 4: this stage is complete, and .*chain/student learns from its student as"
    ):
        distill_stages(load_stages(path, ["steps=4"]), options)
    assert distill_stages(load_stages(path, ["steps=2", "stage.student.steps=4"]), options) == 0
    assert checkpoints.latest(tmp_path / "chain" / "student").step == 4


def test_a_run_from_an_exported_student_starts_with_all_of_its_weights(folder):
    begin, end = (
        [row for row in read_metrics(folder / run) if row["kind"] == "heldout"] for run in ("from-student", "done")
    )
    assert begin[0] == end[-1] | {"step": 0}
    assert_same_state(folder / "from-student", folder / "from-halves")
    export(folder / "from-student", folder / "second")
    assert "| initialisation | student |" in (folder / "second" / "README.md").read_text()


def test_a_run_whose_start_is_gone_resumes(folder, tmp_path):
    start = shutil.copytree(folder / "student", tmp_path / "start")
    options = [f"out={tmp_path / 'run'}", f"student.init={start}"]
    assert distill(load_recipes(folder / "tiny.toml", options), stop_at=3) == 0
    shutil.rmtree(start)
    assert distill(load_recipes(folder / "tiny.toml", options)) == 0
    with pytest.raises(UserError, match=r"student.init = .*start': no such folder"):
        distill(load_recipes(folder / "tiny.toml", [*options, f"out={tmp_path / 'other'}"]))


def test_any_encoder_of_the_shape_is_a_start(folder, tmp_path):
    config = AutoModel.from_pretrained(folder / "student").config
    model = BertForMaskedLM(config).half()  # names with a prefix, half precision, no pooler, no tokenizer
    model.save_pretrained(tmp_path / "masked")
    options = [
        f"out={tmp_path / 'run'}",
        f"student.init={tmp_path / 'masked'}",
        "learning_rate=1e-30",
        "weight_decay=0",
    ]
    assert distill(load_recipes(folder / "tiny.toml", options), stop_at=1) == 0
    weights = load_file(tmp_path / "run" / "checkpoints" / "step-00000001" / "state.safetensors")
    name = "encoder.layer.1.attention.self.query.weight"
    assert torch.equal(weights[name], model.state_dict()[f"bert.{name}"].float())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"layers": 3}, r"student.layers = 2: student.init = '.*' has 3; use 3, or another"),
        ({"hidden": 32}, r"student.hidden = 16: student.init = '.*' has 32; use 32"),
        ({"num_attention_heads": 8}, r"student.heads = 4: student.init = '.*' has 8; use 8"),
        ({"vocab_size": 60}, r"student.init = '.*': has a vocabulary of 60, the student's has 50; use a model with"),
        ({"hidden_act": "relu"}, r"its config.json has hidden_act = 'relu', the student 'gelu'; use another"),
        ({"positions": 32}, r"has max_position_embeddings = 32, the student 64"),
        ({"model_type": "electra"}, r"student.init = '.*': a electra, the student is a bert"),
    ],
)
def test_a_start_of_another_shape_is_refused_by_the_key(folder, tmp_path, shape, message):
    sizes = SHAPE | {key: value for key, value in shape.items() if key != "vocab_size"}
    other = make_teacher(tmp_path / "other", **sizes)
    if "vocab_size" in shape:
        model = AutoModel.from_pretrained(other)
        model.resize_token_embeddings(60)
        model.save_pretrained(other)
    with pytest.raises(UserError, match=f"tiny.toml: .*{message}"):
        distill(load_recipes(folder / "tiny.toml", [f"out={tmp_path / 'run'}", f"student.init={other}"]))


def test_a_start_with_another_vocabulary_of_the_same_size_is_refused(folder, tmp_path):
    other = make_teacher(tmp_path / "other", **SHAPE)
    words = (other / "vocab.txt").read_text().split()
    words[20], words[21] = words[21], words[20]
    (other / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab=str(other / "vocab.txt")).save_pretrained(other)
    with pytest.raises(
        UserError, match=r"its piece 20 is 'w16', the student's 'w15'; use a model with the same vocabulary"
    ):
        distill(load_recipes(folder / "tiny.toml", [f"out={tmp_path / 'run'}", f"student.init={other}"]))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("pcaa", "student.init = 'pcaa': no such folder; did you mean 'pca'?"),
        (
            "mine",
            "student.init = 'mine': no such folder; use one of 'random', 'teacher', 'pca', a student's folder or a hub id",
        ),
        ("./none", "student.init = './none': no such folder (from"),
        ("", "student.init = '': must be a name"),
        ("FOLDER/done", "the folder of a run; export its student: ./run.sh export "),
        ("FOLDER/data", "student.init = 'FOLDER/data': no config.json; not a Hugging Face model folder"),
    ],
)
def test_what_is_no_start_is_refused(folder, tmp_path, start, message):
    start, message = (text.replace("FOLDER", str(folder)) for text in (start, message))
    with pytest.raises(UserError, match=re.escape(message)):
        distill(load_recipes(folder / "tiny.toml", [f"out={tmp_path / 'run'}", f"student.init={start}"]))
