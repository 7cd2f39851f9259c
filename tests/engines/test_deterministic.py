"""engines.deterministic: what a GPU is asked for, and nothing on a CPU."""

import os
import types

import pytest
import torch

from data_prep.cli import UserError
from pipeline.engines import deterministic as module
from pipeline.engines.compiling import Compiled
from pipeline.engines.deterministic import use_deterministic, without_an_algorithm
from pipeline.settings.reading import load_recipe


@pytest.fixture
def machine(monkeypatch):
    """Pretends a kind of device; afterwards torch is as it was."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for owner, name in (
        (torch.backends.cudnn, "deterministic"),
        (torch.backends.cudnn, "benchmark"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))

    def pretend(kind):
        accelerator = types.SimpleNamespace(device_name=lambda: kind)
        monkeypatch.setattr(module, "get_accelerator", lambda: accelerator)

    yield pretend
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def recipe(value):
    return load_recipe("minilm_6x384", [f"deterministic={value}"])


@pytest.mark.parametrize(
    "kind, value, wanted", [("cuda", "true", True), ("cuda", "false", False), ("cpu", "true", False)]
)
def test_deterministic_algorithms_are_asked_for_on_gpus_alone(machine, kind, value, wanted):
    machine(kind)
    use_deterministic(recipe(value))
    assert torch.are_deterministic_algorithms_enabled() == torch.backends.cudnn.deterministic == wanted
    assert not torch.is_deterministic_algorithms_warn_only_enabled()  # which leaves attention's backward pass as it is
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if wanted else None)


def test_a_stage_that_does_not_ask_for_them_has_none(machine):
    machine("cuda")
    use_deterministic(recipe("true"))
    use_deterministic(recipe("false"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_nothing_is_compiled_where_bits_must_be_the_same(machine, monkeypatch):
    compiled = Compiled(lambda x: "as it is", "a function")
    monkeypatch.setattr(compiled, "_compiled", lambda x: "compiled")
    assert compiled(1) == "compiled"
    machine("cuda")
    use_deterministic(recipe("true"))
    assert compiled(1) == "as it is"


def test_an_operation_without_a_deterministic_algorithm_is_a_users_error_in_one_line(machine):
    machine("cuda")
    wanted = recipe("true")
    use_deterministic(wanted)
    with pytest.raises(UserError) as error, without_an_algorithm(wanted):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    line = str(error.value)
    assert "\n" not in line and "deterministic = true: put_ does not have a deterministic implementation" in line
    assert "set deterministic = false" in line
    with pytest.raises(RuntimeError, match="another"), without_an_algorithm(wanted):
        raise RuntimeError("another trouble")


def test_the_key_is_true_or_false():
    with pytest.raises(UserError, match=r"deterministic = 'maybe': must be true or false"):
        recipe("maybe")
