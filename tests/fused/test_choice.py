"""When the kernel is taken, and what is said when it is not."""

import importlib.util
import types

import pytest
import torch

from pipeline.fused import choice
from pipeline.fused.choice import Shape, reason_against
from pipeline.relations import QKV, relation_loss

pytest.importorskip("triton")
import triton

from pipeline.fused import loss as fused_loss

CPU = torch.device("cpu")
BF16, FP32 = torch.bfloat16, torch.float32
SHAPE = Shape(2, (32, 16), (BF16, BF16), ("qk", "vv"))


@pytest.fixture(autouse=True)
def forget():
    reason_against.cache_clear()
    yield
    reason_against.cache_clear()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_proof_passes_here_and_runs_once(monkeypatch):
    calls = []
    errors = choice.errors
    monkeypatch.setattr(choice, "errors", lambda *args: calls.append(args) or errors(*args))
    assert [reason_against(CPU, SHAPE) for _ in range(3)] == ["", "", ""]
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (
            SHAPE._replace(heads=1, widths=(256, 64)),
            "heads of at most 128, and these are 256 wide: use more relation_heads",
        ),
        (
            SHAPE._replace(heads=1, widths=(128, 64), dtypes=(FP32, FP32)),
            "in fp32 it takes heads of at most 96 together",
        ),
        (SHAPE._replace(dtypes=(torch.float64, BF16)), "bf16, fp16 and fp32"),
    ],
)
def test_shapes_that_it_does_not_take(shape, reason):
    assert reason in reason_against(CPU, shape)


def test_no_gpu_no_triton_an_old_one(monkeypatch):
    with monkeypatch.context() as patch:
        patch.delenv("TRITON_INTERPRET")
        assert reason_against(CPU, SHAPE) == "it is for GPUs, not for cpu"
    reason_against.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert reason_against(CPU, SHAPE) == "Triton is not installed: pip install triton"
    reason_against.cache_clear()
    monkeypatch.setattr(triton, "__version__", "3.2.0")
    assert "Triton 3.2.0 is older than 3.5" in reason_against(CPU, SHAPE)


def test_an_old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    assert reason_against(torch.device("cuda"), SHAPE) == "Tesla V100 has compute capability 7.0, and it needs 8.0"


@pytest.mark.parametrize("error", [RuntimeError("ptxas died\nof old age"), torch.OutOfMemoryError("none left")])
def test_a_kernel_that_fails_when_tried(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(fused_loss._Maps, "statistics", fail)
    first = str(error).splitlines()[0]
    assert reason_against(CPU, SHAPE) == f"it failed when it was tried here ({type(error).__name__}: {first})"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_kernel_that_computes_something_else(monkeypatch, what):
    monkeypatch.setattr(fused_loss, "LN_2" if what == "loss" else "LARGEST", 0.5)
    if what == "gradient":  # the scale of a gradient alone
        monkeypatch.setattr(fused_loss, "math", types.SimpleNamespace(sqrt=lambda x: x**0.49, log2=None))
    assert "it differs from the formula when it is tried here" in reason_against(CPU, SHAPE)


def test_relation_loss_says_what_it_cannot_do():
    teacher, student = (QKV(*torch.randn(3, 1, 8, width)) for width in (256, 64))
    with pytest.raises(ValueError, match="fused = True: it takes heads of at most 128, and these are 256 wide"):
        relation_loss(teacher, student, ("qk",), 1, fused=True)
    assert torch.isfinite(relation_loss(teacher, student, ("qk",), 1)["loss"])  # on CPUs nothing is tried
