"""Where one process can compute, and how much is free there. CUDA is a stand-in here: not tested on a GPU."""

from types import SimpleNamespace

import pytest
import torch

from data_prep.cli import UserError
from pipeline.engines import memory
from pipeline.engines.hosting import Hosting
from pipeline.engines.ranks import Ranks
from pipeline.models.cut import empty_encoder
from pipeline.models.loading import load_config
from pipeline.settings.reading import load_recipe
from tests.parts.tiny import make_recipe

KEPT = ["precision=bf16", "arithmetic=widened", "teacher.hosting=auto"]


@pytest.fixture
def gpus(monkeypatch):
    """Three GPUs, of which others use the most, little, and all; returns what is asked of them, in order."""
    done = []
    accelerator = SimpleNamespace(
        device_name=lambda number=None: "cuda" if number is None else f"cuda:{number}",
        device_count=lambda: 3,
        current_device=lambda: 0,
        set_device=lambda number: done.append(f"set {number}"),
        empty_cache=lambda: done.append("emptied"),
        available_memory=lambda number: 2**40,  # this process uses nothing, and knows of no other
    )

    def asked(number):
        done.append(f"asked {number}")
        if number == 2:
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")
        return (number + 1) * 2**30, 2**40

    monkeypatch.setattr(memory, "get_accelerator", lambda: accelerator)
    monkeypatch.setattr(torch.cuda, "mem_get_info", asked)
    return done


def test_the_gpu_on_which_most_is_free_comes_first_whoever_uses_the_others(gpus, monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: {"free": 5})
    monkeypatch.setattr(memory.dist, "is_initialized", lambda: False)
    found = list(memory.free_devices())
    names = ("cuda:1", 2 * 2**30), ("cuda:0", 2**30), ("cuda:2", 0), ("cpu", 5)
    assert found == [(torch.device(name), free) for name, free in names]
    assert "emptied" not in gpus and "set 2" not in gpus


def test_in_a_launch_a_rank_has_its_own_device_and_torchs_cache_is_free(gpus, monkeypatch):
    monkeypatch.setattr(memory.dist, "is_initialized", lambda: True)
    assert list(memory.free_devices()) == [(torch.device("cuda:0"), 2**30)]
    assert gpus == ["emptied", "asked 0", "set 0"]


def test_widened_weights_are_kept_where_a_quarter_of_a_rank_holds_the_teacher(tmp_path, monkeypatch):
    recipe = load_recipe(make_recipe(tmp_path), KEPT)
    cut, _ = empty_encoder(load_config(recipe.teacher.model), 3)
    linear = sum(p.numel() for m in cut.modules() if isinstance(m, torch.nn.Linear) for p in m.parameters())
    size = 2 * sum(p.numel() for p in cut.parameters()) + 2 * linear
    ranks = Ranks(0, 1, 1, torch.device("cpu"))

    def hosted(bytes_, *overrides):
        monkeypatch.setattr(memory, "memory_per_rank", lambda ranks: bytes_)
        return memory.choose_hosting(load_recipe(tmp_path / "tiny.toml", [*KEPT, *overrides]), ranks, cut)

    assert hosted(4 * size).widened == linear and hosted(4 * size).weights(2) == size
    assert hosted(4 * size - 1).widened == 0
    for other in ("arithmetic=native", "precision=fp32", "teacher.hosting=zero3"):
        assert hosted(4 * size, other).widened == 0


def test_widened_weights_that_do_not_fit_next_to_the_students_are_not_kept(tmp_path, monkeypatch):
    recipe = load_recipe(make_recipe(tmp_path), KEPT)
    ranks, student = Ranks(0, 1, 1, torch.device("cpu")), torch.nn.Linear(10, 10)
    hosting = Hosting("replicate", "", 1000, 1000, widened=800)
    need = 2 * 1000 + 2 * 800 + 18 * 110  # bf16, what more fp32 takes, and a student's state at stage 1
    for bytes_, kept in ((need, 800), (need - 1, 0), (need - 2 * 800, 0)):
        monkeypatch.setattr(memory, "memory_per_rank", lambda ranks, bytes_=bytes_: bytes_)
        assert memory.check_memory([recipe], ranks, hosting, [student]).widened == kept
    monkeypatch.setattr(memory, "memory_per_rank", lambda ranks: need - 2 * 800 - 1)
    with pytest.raises(UserError, match="train fewer students at once"):
        memory.check_memory([recipe], ranks, hosting, [student])
