"""Where one process can compute, and how much is free there. CUDA is a stand-in here: not tested on a GPU."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.engines import memory


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
