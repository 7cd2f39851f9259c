"""engines.gradients: few operations, and the numbers of DeepSpeed's own loop over parameters."""

import pytest
import torch

from pipeline.engines import student as student_module
from pipeline.engines.gradients import FlatGradients
from pipeline.engines.ranks import start_ranks
from pipeline.engines.state import read_state, set_learning_rate
from pipeline.models.cut import split
from pipeline.models.fit import student_config_of, teacher_config_of
from pipeline.models.students import build_student
from pipeline.settings.reading import load_recipe
from tests.parts.tiny import make_recipe


def trained(recipe, updates=3):
    """The state after some updates, the norms before clipping, and the engine."""
    ranks, norms = start_ranks(), []
    cut, names, _ = split(build_student(student_config_of(recipe, teacher_config_of(recipe)), 5))
    engine = student_module.student_engine(recipe, ranks, cut)
    generator = torch.Generator().manual_seed(3)
    for _ in range(updates):
        set_learning_rate(engine, 0.01)
        for _ in range(recipe.accumulation(1)):
            engine.train()
            torch.manual_seed(1)
            output = engine(torch.randint(5, 50, (recipe.micro_batch, 16), generator=generator))
            engine.backward(sum(x.float().square().mean() for x in output))
            engine.step()
        norms.append(float(engine.get_global_grad_norm()))
    return read_state(engine, names, True), norms, engine


@pytest.fixture
def recipe(tmp_path):
    return lambda *keys: load_recipe(make_recipe(tmp_path), ["precision=bf16", "gradient_clipping=0.05", *keys])


def test_gradients_added_by_groups_are_those_added_one_by_one(recipe, monkeypatch):
    state, norms, engine = trained(recipe("compile=none"))
    assert type(engine.optimizer) is FlatGradients and engine.gradient_accumulation_steps() > 1
    monkeypatch.setattr(student_module, "flatten_gradients", lambda *_, **__: None)
    expected, norms_expected, engine = trained(recipe("compile=none"))
    assert type(engine.optimizer) is not FlatGradients
    assert norms == norms_expected and min(norms) > 0.05
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_norm_taken_by_groups_differs_in_its_last_bits_alone(recipe, monkeypatch):
    monkeypatch.setattr(student_module, "fit", lambda *_: None)  # nothing is compiled: only the norm is another
    state, norms, engine = trained(recipe("compile=all"))
    assert engine.optimizer.flat_norm
    expected, norms_expected, _ = trained(recipe("compile=none"))
    assert norms == pytest.approx(norms_expected, rel=1e-5)
    assert all(torch.allclose(state[name], expected[name], rtol=1e-3, atol=1e-5) for name in expected)


def test_a_parameter_without_a_gradient_is_left_out(recipe):
    _, _, engine = trained(recipe("compile=none"), updates=1)
    optimizer = engine.optimizer
    for group in optimizer.bf16_groups:
        for parameter in group:
            parameter.grad = torch.ones_like(parameter)
    optimizer.bf16_groups[0][0].grad = None
    optimizer.update_hp_grads()
    first, second, *_ = optimizer.fp32_groups_gradients[0]
    assert not first.any() and (second == 1).all() and optimizer.fp32_groups_has_gradients[0][:2] == [False, True]


@pytest.mark.parametrize("keys", [["precision=fp32"], ["student.ds_config=student_zero2.json"]])
def test_other_optimizers_of_deepspeed_are_left_alone(recipe, keys):
    _, _, engine = trained(recipe("compile=none", *keys), updates=1)
    assert not isinstance(engine.optimizer, FlatGradients)
