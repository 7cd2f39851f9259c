"""bench step --launches: what is counted, and that it does not depend on this machine."""

import json
import sys

import pytest
import torch

from pipeline.bench import __main__ as bench
from pipeline.bench.launches import Launches
from pipeline.models import arithmetic
from pipeline.models.arithmetic import Rates

SMALL = ["step", "--launches", "--json", "--teacher", "3x48", "--student", "2x24", "--heads", "12"]
SMALL += ["--batch", "2", "--length", "8", "--compile"]


def counted(monkeypatch, capsys, *more):
    monkeypatch.setattr(sys, "argv", ["bench", *SMALL, *more])
    bench.main()
    _, *rows = map(json.loads, capsys.readouterr().out.splitlines())
    assert {row["compile"] for row in rows} == {more[0]}
    return {row["measure"]: row["value"] for row in rows}


def test_views_memory_and_questions_are_no_launches_and_a_read_number_is_a_wait():
    x = torch.ones(4, 6)
    with Launches() as free:
        x.view(3, 8).t()[1:].expand(2, 7, 3), torch.empty(3), torch.empty_like(x), x.detach()
    assert (free.total, free.waits) == (0, 0)
    with Launches() as some:
        (x + 1).float().sum().item(), x.t().contiguous()
    assert (some.operations, some.kernels, some.waits) == (3, 0, 1)


def test_a_dropout_is_one_launch_whatever_the_device_makes_of_it():
    x = torch.ones(4)
    with Launches() as launches:
        torch.nn.functional.dropout(x, 0.5)
    assert launches.total == 1


def layer(dropouts):
    """Launches of a BERT's layer: six products with their biases, attention, GELU, two norms, two sums, dropouts."""
    return 6 + 1 + 1 + 2 + 2 + dropouts


EMBEDDINGS = 3 + 1 + 2 + 1  # three tables, the token types' gather, two sums, the norm
LAST = 3  # the projections


@pytest.mark.slow
@pytest.mark.parametrize("here", [Rates(2.0, 1.0), Rates(1.0, 2.0)])
def test_an_update_is_counted_as_on_a_gpu(monkeypatch, capsys, here):
    monkeypatch.setattr(arithmetic, "rates", lambda *_: here)
    got = counted(monkeypatch, capsys, "none")
    assert got["teacher"] == EMBEDDINGS + 2 * layer(0) + LAST
    assert got["student"] == EMBEDDINGS + 1 + layer(2) + LAST
    parts = ("teacher", "student", "loss", "backward", "engine.step")
    assert got["update"] == sum(got[part] for part in parts)
    assert got["without the loss"] == got["update"] - got["loss"]
    assert got["waits"] == 2
    parameters = 5 + 16 + 6  # embeddings and their norm, a layer, three projections
    assert parameters < got["engine.step"] < parameters + 40  # the norm of each parameter's gradient, and some
    stage2 = counted(monkeypatch, capsys, "none", "--ds-config", "student_zero2.json")
    assert stage2["engine.step"] > 10 * parameters and stage2["teacher"] == got["teacher"]


@pytest.mark.slow
def test_compiled_an_update_has_fewer_launches_and_its_generated_kernels_are_counted(monkeypatch, capsys):
    plain, compiled = counted(monkeypatch, capsys, "none"), counted(monkeypatch, capsys, "all")
    per_layer = 6 + 1 + 3  # products, attention; GELU and the two sums with their norms are a kernel each
    assert compiled["teacher"] == 1 + 2 * per_layer + LAST
    for part in ("teacher", "student", "loss", "backward", "engine.step"):
        assert 0 < compiled[part] < plain[part]
    assert compiled["engine.step"] < 35  # whatever the number of parameters
    assert compiled["waits"] == 2
