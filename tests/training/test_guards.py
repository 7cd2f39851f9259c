"""training.guards: what stops a run before anything wrong is kept."""

from argparse import Namespace

import pytest
import torch
import torch.distributed as dist

from data_prep.cli import UserError
from data_prep.shards import open_corpus
from pipeline import distill
from pipeline.engines.ranks import Ranks
from pipeline.settings.reading import load_recipe, load_stages
from pipeline.training.guards import stop_if_ranks_differ
from tests.parts.tiny import make_recipe


@pytest.mark.parametrize(
    "changed", ["{source}, for {out}", "{data}", "student_zero2.json", "{teacher.model}: config.json"]
)
def test_hosts_with_other_files_are_named(tmp_path, monkeypatch, changed):
    recipe = load_recipe(make_recipe(tmp_path), ["student.ds_config=student_zero2.json"])
    changed = changed.format(**vars(recipe))
    there = {}

    def gather(found, mine):
        assert changed in mine[1]
        found[:] = [mine, ("b", mine[1] | there)]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    arguments = Ranks(0, 2, 1, torch.device("cpu")), [recipe], open_corpus(recipe.data)
    stop_if_ranks_differ(*arguments)
    there[changed] = "another"
    with pytest.raises(UserError, match=r"rank 1 on host b reads another one than rank 0 on host .*") as error:
        stop_if_ranks_differ(*arguments)
    assert str(error.value).startswith(f"{changed}: ")


@pytest.mark.parametrize("key, missing", [("ds_config", "nope.json"), ("vocab", "nope")])
def test_what_a_later_stage_names_is_read_before_the_first_one_trains(tmp_path, monkeypatch, key, missing):
    text = f'base = "{make_recipe(tmp_path)}"\nout = "{tmp_path}/chain"\n'
    text += '[[stage]]\nname = "first"\n[[stage]]\nname = "second"\n'
    (tmp_path / "chain.toml").write_text(f"{text}[stage.student]\n{key} = '{tmp_path}/{missing}'\n")
    monkeypatch.setattr(distill, "distill", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match=f"{tmp_path}/{missing}"):
        distill.distill_stages(load_stages(tmp_path / "chain.toml"), Namespace(stop_at=None))
