"""A run continues with another number of ranks, at every ZeRO stage: the global batch, the samples and the losses stay."""

import json

import numpy as np
import pytest

from tests.parts import launching
from tests.parts.runs import STAGES, TOLERANCE, engine_options, job, losses
from tests.parts.tiny import make_recipe

pytestmark = pytest.mark.slow

CHANGES = ((1, 2), (2, 1), (2, 3))
# Half the accumulation on other ranks; and a micro-batch of its own where one rank continues.
OPTIONS = ["batch=12", "student.dropout=0.0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each change at each stage: three steps by the first number of ranks, three by the second; and a run by one rank."""
    folder = tmp_path_factory.mktemp("world")
    make_recipe(folder)

    def jobs(half: str, ranks: int) -> list[dict]:
        found = []
        for first, second in CHANGES:
            for stage in STAGES:
                options = [*OPTIONS, *engine_options("replicate", stage, "fp32")]
                if half == "first" and first == ranks:
                    found.append(job(folder, f"{first}-{second}-{stage}", *options, stop_at=3))
                if half == "second" and second == ranks:
                    micro = ["micro_batch=4"] if second == 1 else []
                    found.append(job(folder, f"{first}-{second}-{stage}", *options, *micro))
        return found

    reference = job(folder, "reference", *OPTIONS, *engine_options("replicate", 0, "fp32"))
    launches = (
        (1, [reference, *jobs("first", 1)]),
        (2, [*jobs("first", 2), *jobs("second", 2)]),
        (1, jobs("second", 1)),
        (3, jobs("second", 3)),
    )
    for ranks, due in launches:
        launching.finish_jobs(folder, ranks, due)
    return folder


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("first, second", CHANGES)
def test_a_run_continues_with_another_number_of_ranks(folder, first, second, stage):
    run = folder / f"{first}-{second}-{stage}"
    for kind, rows in (("train", 6), ("heldout", 3)):
        expected = losses(folder / "reference", kind)
        assert len(expected) == rows
        np.testing.assert_allclose(losses(run, kind), expected, rtol=TOLERANCE["fp32"])
    info = json.loads((run / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert (info["ranks"], info["samples"]) == (second, 72)
