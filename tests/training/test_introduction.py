"""training.introduction: what a run says about a GPU before it starts."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.engines.ranks import Ranks
from pipeline.models.pooling import Pooling
from pipeline.settings.reading import load_recipe
from pipeline.training import introduction
from pipeline.training.introduction import about_attention, about_bits, about_pooling, shared


def ranks(device):
    return Ranks(0, 1, 1, torch.device(device))


@pytest.mark.parametrize(
    "device, layout, told",
    [("cuda", "doc", True), ("cuda", "full", False), ("cuda", "packed", False), ("cpu", "doc", False)],
)
def test_a_run_with_padding_on_a_gpu_is_told_what_its_attention_loses(device, layout, told):
    notes = about_attention(load_recipe("minilm_6x384", [f"layout={layout}"]), ranks(device))
    assert len(notes) == told and all("takes no mask" in note and "layout = 'packed'" in note for note in notes)


@pytest.mark.parametrize(
    "device, value, told", [("cuda", "true", True), ("cuda", "false", False), ("cpu", "true", False)]
)
def test_deterministic_algorithms_are_said_where_they_are_asked_for(device, value, told):
    run = SimpleNamespace(
        recipe=load_recipe("minilm_6x384", [f"deterministic={value}", "precision=fp32"]),
        ranks=ranks(device),
        corpus=SimpleNamespace(place="data", id="0" * 64, sources={}),
        windows=SimpleNamespace(paired=False),
        tokens_per_step=1,
        about_arithmetic=(),
    )
    hosting = SimpleNamespace(parameters=1, kind="replicate", reason="it fits", widened=0)
    teacher = SimpleNamespace(hosting=hosting, config=SimpleNamespace(num_hidden_layers=12))
    assert ("deterministic algorithms alone" in " ".join(shared(run, teacher, [run.recipe]))) == told


@pytest.mark.parametrize(
    ("made_with", "now", "told"),
    [
        ({}, {}, []),
        ({"deterministic": True}, {}, ["deterministic = false"]),
        ({}, {"fused": True}, ["the loss by the fused kernel = true"]),
        ({"fused": True}, {"deterministic": True}, ["deterministic = true", "the loss by the fused kernel = false"]),
    ],
)
def test_a_run_that_is_resumed_another_way_says_that_its_bits_are_others(made_with, now, told):
    info = {"recipe": {}} | made_with  # of before there were these keys
    if "deterministic" in made_with:
        info["recipe"] = {"deterministic": info.pop("deterministic")}
    student = SimpleNamespace(
        checkpoint=SimpleNamespace(info=info, path="runs/x/checkpoints/10"),
        recipe=SimpleNamespace(deterministic=now.get("deterministic", False)),
        fused=now.get("fused", False),
    )
    notes = about_bits(student)
    assert len(notes) == len(told)
    assert all(
        words in note and "runs/x/checkpoints/10 was made with" in note for words, note in zip(told, notes, strict=True)
    )
    assert about_bits(SimpleNamespace(checkpoint=None)) == []


@pytest.mark.parametrize(
    ("pooling", "told"),
    [
        (None, []),
        (Pooling(stated=True), []),
        (Pooling(), ["nothing in t says how it makes a vector"]),
        (
            Pooling(stated=True, prompt="query: "),
            ["t puts 'query: ' before each text; here texts are read as d has them"],
        ),
        (
            Pooling(stated=True, prompt="query: ", includes_prompt=False),
            ["is pooled too, which that folder leaves out"],
        ),
        (Pooling(stated=True, lowers=True), ["t puts texts in lower case; here texts are read as d has them"]),
    ],
)
def test_a_teacher_that_is_given_texts_in_another_way_than_in_training_is_noted(monkeypatch, pooling, told):
    monkeypatch.setattr(introduction, "pooling_of", lambda _: pooling)
    notes = about_pooling(load_recipe("demo", ["teacher.model=t", "data=d"]))
    assert len(notes) == len(told) and all(words in note for words, note in zip(told, notes, strict=True))
