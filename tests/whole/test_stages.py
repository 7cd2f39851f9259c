"""A chain of stages, each one's student the teacher of the next: what its parts make one by one, and nothing stays of them."""

import gc
import json
import shutil
from argparse import Namespace

import pytest
from deepspeed.runtime.engine import DeepSpeedEngine

from data_prep.cli import UserError
from pipeline import distill as distill_module
from pipeline.artifacts import checkpoints
from pipeline.artifacts.run_folder import EARLY, ENDED, STOP
from pipeline.distill import distill, distill_stages
from pipeline.engines.both import release
from pipeline.export import export
from pipeline.settings.reading import load_recipes, load_stages
from tests.parts.runs import assert_recomputed, assert_same_state, engine_options
from tests.parts.tiny import make_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("stages")).parent


def test_a_chain_of_stages_is_what_its_parts_make_one_by_one(folder, tmp_path, capsys, monkeypatch):
    text = f'base = "{folder}/tiny.toml"\nout = "{tmp_path}/chain"\n[[stage]]\nname = "assistant"\n'
    (tmp_path / "chain.toml").write_text(text + '[stage.student]\nlayers = 3\n[[stage]]\nname = "student"\n')
    stages = load_stages(tmp_path / "chain.toml")
    options = {"max_hours": None, "timeout": 120, "launch": "mine"}
    record = tmp_path / "chain" / ENDED

    assert distill_stages(stages, Namespace(stop_at=3, **options)) == 0  # in the middle of the first
    assert not (tmp_path / "chain" / "student").exists() and json.loads(record.read_text())["code"] == 0
    assert distill_stages(stages, Namespace(stop_at=None, **options | {"max_hours": 1e-9})) == EARLY
    assert not (tmp_path / "chain" / "assistant-student").exists() and json.loads(record.read_text())["code"] == 75
    record.unlink()
    with pytest.raises(UserError, match="nope"):  # in the second: the first is complete all the same
        distill_stages(
            [stages[0], load_recipes(tmp_path / "chain.toml", ["stage=student", "data=nope"])],
            Namespace(stop_at=None, **options),
        )
    assert not record.exists()
    assert_recomputed(tmp_path / "chain" / "assistant-student")

    with monkeypatch.context() as patch:  # asked to stop between the stages
        patch.setattr(distill_module, "finish", lambda *_: (tmp_path / "chain" / STOP).touch())
        assert distill_stages(stages, Namespace(stop_at=None, **options)) == EARLY
    assert json.loads(record.read_text())["code"] == 75 and not (tmp_path / "chain" / "student").exists()
    assert "Stopped after stage assistant" in capsys.readouterr().out
    assert distill_stages(stages, Namespace(stop_at=3, **options)) == 0  # of the second, since the first is complete
    assert checkpoints.latest(tmp_path / "chain" / "student").step == 3
    assert distill_stages(stages, Namespace(stop_at=None, **options)) == 0
    assert f"{tmp_path}/chain/assistant already has its checkpoint of step 6" in capsys.readouterr().out
    assert (tmp_path / "chain" / "student" / "COMPLETE").exists() and json.loads(record.read_text())["code"] == 0

    made = (tmp_path / "chain" / "assistant-student" / "model.safetensors").stat().st_mtime_ns
    assert distill_stages(stages, Namespace(stop_at=None, **options)) == 0  # nothing is made again
    assert (tmp_path / "chain" / "assistant-student" / "model.safetensors").stat().st_mtime_ns == made

    assert distill(load_recipes(folder / "tiny.toml", [f"out={tmp_path}/one", "student.layers=3"])) == 0
    export(tmp_path / "one", tmp_path / "one-student")
    own = [f"teacher.model={tmp_path}/one-student", "teacher.layer=3", f"out={tmp_path}/two"]
    assert distill(load_recipes(folder / "tiny.toml", own)) == 0
    assert_same_state(tmp_path / "chain" / "student", tmp_path / "two")
    (tmp_path / "chain" / "assistant-student").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "chain" / "student-student")
    # The run itself knows where its teacher came from.
    export(tmp_path / "chain" / "student", tmp_path / "chain" / "student-student")
    chain = json.loads((tmp_path / "chain" / "student-student" / "distillation.json").read_text())
    assert [link["recipe"]["student"]["layers"] for link in chain] == [3, 2]
    card = (tmp_path / "chain" / "student-student" / "README.md").read_text()
    assert f"| chain | {folder}/teacher → 3 × 16 → 2 × 16 (by a teacher assistant) |" in card


def test_nothing_of_a_finished_stage_stays_in_memory(folder, tmp_path):
    release()
    before = sum(type(thing) is DeepSpeedEngine for thing in gc.get_objects())
    options = engine_options("replicate", 2, "bf16")
    for out in ("one", "two"):
        assert distill(load_recipes(folder / "tiny.toml", [f"out={tmp_path / out}", "steps=2", *options])) == 0
        release()
        assert sum(type(thing) is DeepSpeedEngine for thing in gc.get_objects()) == before
    assert_same_state(tmp_path / "one", tmp_path / "two")
