"""All ranks of a run take the kernel, or none; a run by the kernel learns what one by torch does."""

import json

import pytest
import torch
import torch.distributed as dist

from data_prep.cli import UserError
from pipeline.engines.ranks import Ranks
from pipeline.settings.reading import load_recipe
from pipeline.training import which_loss
from tests.parts import launching
from tests.parts.tiny import make_recipe

pytest.importorskip("triton")


@pytest.fixture
def ranks(monkeypatch):
    """Two ranks on two hosts, of which the second cannot."""
    monkeypatch.setattr(which_loss, "reason_against", lambda device, shape: "")

    def gather(everyone, own):
        everyone[:] = [own, ("node7", "Triton is not installed: pip install triton")]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    return Ranks(0, 2, 1, torch.device("cuda"))


def test_one_rank_that_cannot_decides_for_all(ranks, tmp_path):
    recipe = load_recipe(str(make_recipe(tmp_path)), ["compile=loss"])
    takes, note = which_loss.takes_kernel(recipe, 32, ranks)
    assert not takes
    assert "computed by torch on all ranks" in note and "rank 1, host node7: Triton is not installed" in note


def test_asked_for_and_impossible_is_an_error_on_all(ranks, tmp_path):
    recipe = load_recipe(str(make_recipe(tmp_path)), ["loss_kernel=triton"])
    with pytest.raises(UserError, match="loss_kernel = 'triton', but on rank 1, host node7: Triton is not installed"):
        which_loss.takes_kernel(recipe, 32, ranks)


def test_torch_and_a_run_without_compilers_try_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(which_loss, "reason_against", lambda device, shape: pytest.fail("tried"))
    for key in ("loss_kernel=torch", "compile=none"):
        recipe = load_recipe(str(make_recipe(tmp_path / key)), [key])
        assert which_loss.takes_kernel(recipe, 32, Ranks(0, 1, 1, torch.device("cuda"))) == (False, "")


SMALL = ("steps=2", "batch=4", "micro_batch=2", "warmup_steps=1", "eval_samples=2")  # a tile takes milliseconds
RUNS = {
    "last": (),
    "layers": ("layout=doc", "transfer=layer-to-layer", "student.layers=2", "pairs=qq,kk,vv"),
}


@pytest.mark.slow
def test_two_ranks_by_the_kernel_learn_as_by_torch(tmp_path):
    recipe, jobs = str(make_recipe(tmp_path)), []
    for name, overrides in RUNS.items():
        for kernel in ("triton", "torch"):
            out = f"out={tmp_path / name / kernel}"
            jobs.append({"recipe": recipe, "overrides": [*SMALL, f"loss_kernel={kernel}", out, *overrides]})
    launching.finish_jobs(tmp_path, 2, jobs)
    for name in RUNS:
        own, other = (_losses(tmp_path / name / kernel) for kernel in ("triton", "torch"))
        assert own == pytest.approx(other, rel=1e-5)
        assert len(own) >= 2
        for kernel, said in (("triton", True), ("torch", False)):
            assert ("by the fused kernel" in (tmp_path / name / kernel / "log.txt").read_text()) == said


def _losses(run):
    """Held-out and training losses of a run, in the order of its metrics."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [value for line in lines for key, value in line.items() if key.endswith("loss")]
