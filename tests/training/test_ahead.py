"""training.ahead: the teacher's next pass, made while gradients are averaged."""

import ctypes
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.data.inputs import Inputs
from pipeline.engines.ranks import Ranks
from pipeline.training import ahead as ahead_module
from pipeline.training.ahead import Ahead, ahead_of, beside
from tests.parts import launching
from tests.parts.ahead_ranks import CASES
from tests.parts.runs import STAGES, assert_same_state, make_recipe_of_several, untimed
from tests.parts.tiny import make_recipe

CPU = torch.device("cpu")
WINDOWS = [Inputs(torch.full((1, 2), number)) for number in range(3)]
STUDENTS = ("deep", "wide", "plain")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs of two ranks, each on a host of its own, of every case: with passes made ahead and without."""
    folder = tmp_path_factory.mktemp("ahead")
    make_recipe(folder)
    make_recipe_of_several(folder)
    processes = launching.start_ranks(2, "tests.parts.ahead_ranks", str(folder), slots=(1, 1))
    errors = [process.communicate(timeout=launching.PATIENCE)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "".join(errors)[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_passes_made_ahead_change_no_bit(runs, case):
    for name in STUDENTS if case == "several" else ("",):
        ahead, plain = (runs / f"{case}-{way}" / name for way in ("ahead", "plain"))
        assert untimed(ahead) == untimed(plain)
        assert_same_state(ahead, plain)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_window_but_a_runs_first_is_begun_ahead_and_none_twice(runs, case):
    passes = json.loads((runs / "passes.json").read_text())
    assert set(passes[f"{case}-plain"]) <= {"m", "|"}
    if case == "sharded":  # its gathers and the gradients would meet
        assert passes["sharded-ahead"] == passes["sharded-plain"]
    starts, plain = (passes[f"{case}-{way}"].split("|") for way in ("ahead", "plain"))
    assert [len(start) for start in starts] == [len(start) for start in plain] and len(starts) == 1 + (case == "left")
    assert case == "sharded" or all(start == "m" + "b" * (len(start) - 1) for start in starts)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_gradients_travel_after_the_pass_has_begun(runs, stage, precision):
    before, behind, times = json.loads((runs / "traffic.json").read_text())[f"{stage} {precision}"]
    assert before == 0 < behind and times == 2


def openmps_threads():
    """How many threads torch's OpenMP would use in this thread, which torch itself has perhaps not set up yet."""
    libraries = list(Path(torch.__file__).parent.glob("lib/libgomp*"))
    return ctypes.CDLL(str(libraries[0])).omp_get_max_threads() if libraries else torch.get_num_threads()


def noting(notes):
    """A teacher that notes where it computes."""

    def teach(ids, second, padded, pieces):
        assert openmps_threads() == torch.get_num_threads()
        notes.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads(), padded))
        return ids

    return teach


def test_a_pass_is_begun_in_a_thread_that_computes_as_this_one_does():
    notes, before = [], torch.get_num_threads()
    torch.set_num_threads(before + 2)
    try:
        ahead = Ahead(noting(notes), beside(CPU))
        assert ahead(WINDOWS[0]) is WINDOWS[0].ids
        ahead.begin(lambda: WINDOWS[1])
        ahead.wait()
        assert ahead(WINDOWS[1]) is WINDOWS[1].ids
        ahead.begin(None)
        assert ahead(WINDOWS[2]) is WINDOWS[2].ids
    finally:
        torch.set_num_threads(before)
    assert notes == [(main, before + 2, False) for main in (True, False, True)]


def test_nothing_is_begun_where_nothing_is_to_be_hidden():
    notes = []
    ahead = Ahead(noting(notes))
    ahead.begin(lambda: WINDOWS[0])
    ahead.wait()
    assert not notes and ahead(WINDOWS[0]) is WINDOWS[0].ids


@pytest.mark.parametrize("ask", [Ahead.wait, lambda ahead: ahead(WINDOWS[1])])
def test_an_error_in_a_pass_that_was_begun_is_raised_here(ask):
    def broken(*_, **__):
        raise MemoryError("full")

    ahead = Ahead(broken, beside(CPU))
    ahead.begin(lambda: WINDOWS[1])
    with pytest.raises(MemoryError, match="full"):
        ask(ahead)


ONE, TWO = ((0, 1),), ((0,), (1,))  # the ranks of each host
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "nodes, device, hosting, hides",
    [
        (TWO, CPU, "replicate", True),
        (ONE, CUDA, "replicate", True),
        (((0,),), CPU, "replicate", False),
        (((0,),), CUDA, "replicate", False),
        (ONE, CPU, "replicate", False),
        (TWO, CPU, "zero3", False),
        (TWO, CUDA, "zero3", False),
    ],
)
def test_passes_are_begun_where_gradients_travel_and_the_teacher_does_not(monkeypatch, nodes, device, hosting, hides):
    begun = []
    monkeypatch.setattr(ahead_module, "beside", lambda device: begun.append)
    ranks = Ranks(0, sum(map(len, nodes)), len(nodes[0]), device, nodes)
    teacher = noting([])
    teacher.hosting = SimpleNamespace(kind=hosting)
    ahead_of(SimpleNamespace(ranks=ranks), teacher).begin(lambda: WINDOWS[0])
    assert len(begun) == hides


def test_on_a_gpu_the_pass_has_a_stream_of_its_own_and_each_stream_waits_for_the_other(monkeypatch):
    order, current = [], ["main"]

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            order.append(f"{self.name} waits for {other.name}")

        def __enter__(self):
            current.append(self.name)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(current[-1]))
    ahead = Ahead(lambda *_, **__: order.append(f"a pass in {current[-1]}"), beside(CUDA))
    ahead.begin(lambda: WINDOWS[0])
    assert order == ["side waits for main", "a pass in side"]
    ahead.wait()
    assert order[2:] == ["main waits for side"]
