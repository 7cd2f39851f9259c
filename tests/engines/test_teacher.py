"""A teacher hosted by five processes on two unequal nodes, in every way: exact, read once a group, a share on each rank."""

import json
import os

import pytest
import torch

from data_prep.cli import UserError
from pipeline.engines import memory as memory_of_ranks
from pipeline.engines.memory import choose_hosting
from pipeline.engines.ranks import Ranks
from pipeline.models.cut import empty_encoder
from pipeline.models.loading import load_config
from pipeline.settings.reading import load_recipe
from tests.parts import launching
from tests.parts.teacher_ranks import WAYS
from tests.parts.tiny import make_recipe, make_teacher

SLOTS = (2, 3)  # of the hosts: DeepSpeed's launcher gives the second one's ranks 2, 3, 4 the LOCAL_RANKs 2, 0, 1


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The answers of five ranks, by number; two launchers' worth of environment make them nodes of two and three."""
    folder = tmp_path_factory.mktemp("teacher")
    make_teacher(folder / "teacher", "xlm-roberta-xl", pad_token_id=1)
    recipe = make_recipe(folder)
    processes = launching.start_ranks(5, "tests.parts.teacher_ranks", str(recipe), str(folder / "out"), slots=SLOTS)
    errors = [process.communicate(timeout=launching.PATIENCE)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "".join(errors)[-3000:]
    return [json.loads((folder / f"out.{rank}.json").read_text()) for rank in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
def test_every_hosting_gives_the_same_output_on_every_rank(results, way, precision):
    assert {result[f"{way} {precision}"]["output"] for result in results} == {
        results[0][f"replicate {precision}"]["output"]
    }
    assert len({result[key]["weights"] for result in results for key in result}) == 1
    assert all(result[f"{way} {precision}"]["finite"] for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("way, readers", [("replicate", {0}), ("world", {0}), ("node", {0, 2}), ("offload", {0})])
def test_one_rank_of_those_that_share_a_teacher_reads_it(results, way, readers):
    assert {rank for rank, result in enumerate(results) if result[f"{way} fp32"]["read"]} == readers


@pytest.mark.slow
@pytest.mark.parametrize("way, shards", [("replicate", 1), ("world", 5), ("offload", 5), ("node", 2)])
def test_each_rank_keeps_its_share_of_the_layers(results, way, shards):
    whole = results[0]["replicate fp32"]["kept"]
    for rank, result in enumerate(results):
        own = 3 if way == "node" and rank >= 2 else shards  # of the smallest node's are as many as is planned with
        assert result[f"{way} fp32"]["shards"] == shards
        assert whole / own <= result[f"{way} fp32"]["kept"] <= whole / own * 1.05  # padded to whole shares


@pytest.mark.slow
def test_all_ranks_decide_by_the_memory_of_the_one_that_has_least(results):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert {result["replicate fp32"]["memory"] for result in results} == {whole // max(SLOTS)}


@pytest.mark.parametrize("nodes", [((0,), (1,)), ((0, 1), (2,)), ((0,), (1, 2, 3))])
def test_where_a_node_has_one_rank_a_shard_within_the_node_is_refused(tmp_path, monkeypatch, nodes):
    monkeypatch.setattr(memory_of_ranks, "memory_per_rank", lambda ranks: 2**30)
    recipe = load_recipe(make_recipe(tmp_path), ["teacher.hosting=zero3", "teacher.shard_group=node"])
    cut, _ = empty_encoder(load_config(recipe.teacher.model), 3)
    for node in nodes:
        ranks = Ranks(node[0], sum(map(len, nodes)), len(node), torch.device("cpu"), nodes)
        with pytest.raises(UserError, match=r"teacher.shard_group = 'node': a node has one rank only"):
            choose_hosting(recipe, ranks, cut)


def test_auto_shards_what_would_fill_more_than_a_quarter_of_a_rank(tmp_path, monkeypatch):
    recipe = load_recipe(make_recipe(tmp_path), ["teacher.hosting=auto"])
    cut, _ = empty_encoder(load_config(recipe.teacher.model), 3)
    weights = 4 * sum(p.numel() for p in cut.parameters())
    body = sum(p.numel() for p in cut.body.parameters())
    for memory, kind in ((4 * weights, "replicate"), (4 * weights - 1, "zero3")):
        monkeypatch.setattr(memory_of_ranks, "memory_per_rank", lambda ranks, memory=memory: memory)
        hosting = choose_hosting(recipe, Ranks(0, 4, 2, torch.device("cpu")), cut)
        assert hosting.kind == kind and ("more than a quarter" in hosting.reason) == (kind == "zero3")
    assert hosting.per_rank == weights / 4 - body + body / 4
    assert choose_hosting(recipe, Ranks(0, 1, 1, torch.device("cpu")), cut).kind == "replicate"
