"""An interrupted run continues as if nothing had happened, bit for bit; what would make it another run is refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel

from data_prep.cli import UserError
from data_prep.shards import open_corpus
from pipeline.artifacts import checkpoints
from pipeline.distill import distill
from pipeline.engines.ranks import Ranks
from pipeline.settings.reading import load_recipe, load_recipes
from pipeline.training.resuming import check_same_teacher, newest_checkpoint
from tests.parts import launching
from tests.parts.hub import COMMIT, hub
from tests.parts.runs import STAGES, TOLERANCE, engine_options, final_state, job, losses, untimed
from tests.parts.tiny import make_corpus, make_recipe

pytestmark = pytest.mark.slow

RESUMED = (("fp32", 1), *(("bf16", stage) for stage in STAGES))
STAGE_CHANGES = ((2, 1), (4, 3), (5, 0), (6, 2))  # the stage up to each step


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs on two ranks: whole ones, those that were interrupted after step 3, and one that changes its ZeRO stage."""
    folder = make_recipe(tmp_path_factory.mktemp("resume")).parent
    jobs = []
    for precision, stage in RESUMED:
        options = engine_options("zero3", stage, precision)
        jobs.append(job(folder, f"whole-{stage}-{precision}", *options))
        jobs.append(job(folder, f"halves-{stage}-{precision}", *options, stop_at=3))
        jobs.append(job(folder, f"halves-{stage}-{precision}", *options))
    jobs.append(job(folder, "one-stage", *engine_options("replicate", 1, "bf16"), "student.dropout=0.0"))
    for stop_at, stage in STAGE_CHANGES:
        options = [*engine_options("replicate", stage, "bf16"), "student.dropout=0.0"]
        jobs.append(job(folder, "stages", *options, stop_at=stop_at))
    launching.finish_jobs(folder, 2, jobs)
    return folder


@pytest.mark.parametrize("precision, stage", RESUMED)
def test_an_interrupted_run_gives_the_same_student_bit_for_bit(folder, stage, precision):
    whole, halves = (final_state(folder / f"{name}-{stage}-{precision}") for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    for name in whole:
        assert torch.equal(whole[name], halves[name]), name


def test_an_interrupted_run_has_the_same_metrics(folder):
    assert untimed(folder / "whole-1-bf16") == untimed(folder / "halves-1-bf16")


def test_a_run_continues_at_another_stage(folder):
    run = folder / "stages"
    np.testing.assert_allclose(losses(run), losses(folder / "one-stage"), rtol=TOLERANCE["bf16"])
    log = (run / "log.txt").read_text()
    assert [f"Resuming from {run}/checkpoints/step-{step:08}" in log for step in (2, 4, 5)] == [True] * 3
    last = json.loads((run / "ds_config.student.json").read_text())
    assert last["zero_optimization"]["stage"] == STAGE_CHANGES[-1][1]


def test_a_finished_run_has_nothing_to_do(folder, capsys):
    before = (folder / "whole-1-fp32" / "metrics.jsonl").read_bytes()
    options = [str(folder / "tiny.toml"), f"out={folder / 'whole-1-fp32'}", "teacher.hosting=zero3"]
    assert distill(load_recipes(options[0], options[1:])) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (folder / "whole-1-fp32" / "metrics.jsonl").read_bytes() == before


def test_a_changed_recipe_corpus_or_teacher_is_not_continued(folder, tmp_path):
    run, alone = folder / "whole-1-fp32", Ranks(0, 1, 1, torch.device("cpu"))
    corpus = open_corpus(folder / "data")

    def recipe(*overrides):
        return load_recipe(
            folder / "tiny.toml", [f"out={run}", *engine_options("zero3", 1, "fp32"), "segments=pairs", *overrides]
        )

    assert newest_checkpoint(run, recipe("log_every=7", "micro_batch=4", "teacher.hosting=auto"), corpus).step == 6
    with pytest.raises(UserError, match=r"tiny.toml: learning_rate = 0.5, but .*step-00000006 was made with 0.01"):
        newest_checkpoint(run, recipe("learning_rate=0.5"), corpus)
    with pytest.raises(UserError, match=r"student.dropout = 0.2"):
        newest_checkpoint(run, recipe("student.dropout=0.2"), corpus)
    with pytest.raises(UserError, match=r"layout = 'doc', but .* was made with 'full'"):
        newest_checkpoint(run, recipe("layout=doc"), corpus)
    with pytest.raises(UserError, match=r"segments = 'single', but .* was made with 'pairs'"):
        newest_checkpoint(run, recipe("segments=single"), corpus)
    other = open_corpus(make_corpus(tmp_path / "other", seed=9))
    with pytest.raises(UserError, match="not the corpus that"):
        newest_checkpoint(run, recipe(), other)
    checkpoint = checkpoints.latest(run)
    with pytest.raises(UserError, match=r"not the teacher that .* was trained on \(weights 1234"):
        check_same_teacher(checkpoint, "1234", recipe())
    assert alone.first


def test_a_teacher_by_its_id_and_by_its_folder_is_one_run_and_one_of_another_config_is_not(tmp_path):
    recipe = make_recipe(tmp_path)
    teacher = tmp_path / "teacher"
    with hub({path.name: path.read_bytes() for path in teacher.iterdir()}, tmp_path / "home") as (client, _):
        command = [sys.executable, "-m", "pipeline.distill", str(recipe), "teacher.model=org/name", "--stop-at", "3"]
        places = {key: client[key] for key in client if key.startswith("HF_")}
        begun = subprocess.run(command, env=launching.environment() | places, cwd=launching.ROOT, capture_output=True)
    assert begun.returncode == 0, begun.stderr.decode()[-2000:]
    assert checkpoints.latest(tmp_path / "run").info["teacher"]["model"] == "org/name"

    other = shutil.copytree(teacher, tmp_path / "other")
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(values | {"layer_norm_eps": 1e-3}))
    with pytest.raises(
        UserError, match=r"other: config.json: layer_norm_eps = 0.001, but .* on a teacher with 1e-12; use"
    ):
        distill(load_recipes(recipe, [f"teacher.model={other}"]))
    named = values | {"transformers_version": "4.0.0", "id2label": {"0": "a"}, "label2id": {"a": 0}}
    (other / "config.json").write_text(json.dumps(named))
    AutoModel.from_pretrained(other, num_hidden_layers=3).save_pretrained(other)  # without the layer that nobody uses
    assert distill(load_recipes(recipe, [f"teacher.model={other}", f"teacher.revision={COMMIT}"])) == 0
