"""pipeline.training.progress: how patient a watchdog is with a phase, and which rank is behind."""

import pytest

from pipeline.training import progress
from pipeline.training.progress import EVALUATION, SAVE, UPDATE, Place, Progress, behind


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.training.progress.time.monotonic", lambda: now[0])
    return now


def take(made: Progress, clock: list[float], phase: str, seconds: float) -> None:
    made.at(phase, 1)
    clock[0] += seconds


def test_patience_follows_the_longest_of_a_phase_but_for_its_first(clock):
    made = Progress(timeout=120)
    take(made, clock, UPDATE, 900)  # compiles
    assert made.place(0).patience == progress.UNKNOWN * 120 == 3600
    take(made, clock, EVALUATION, 40)
    take(made, clock, UPDATE, 5)
    assert made.place(0).patience == 3600  # the second one is still running
    take(made, clock, UPDATE, 100)
    assert made.place(0).patience == progress.FLOOR * 120 == 600
    take(made, clock, UPDATE, 1)
    assert made.place(0).patience == 10 * 100
    take(made, clock, EVALUATION, 1)
    assert made.place(0).patience == 3600  # each kind has its own
    assert made.place(7) == Place(6, 7, EVALUATION, 1, 3600, 40)


def test_time_to_leave_covers_an_update_an_evaluation_and_a_save(clock):
    made = Progress(timeout=120)
    assert made.time_to_leave == 600
    for phase, seconds in ((UPDATE, 3), (EVALUATION, 300), (SAVE, 500), (UPDATE, 1)):
        take(made, clock, phase, seconds)
    assert made.time_to_leave == 600 + 3 * (3 + 300 + 500)


def test_time_in_which_the_machine_slept_is_no_phase_s(clock):
    made = Progress(timeout=120)
    for _ in range(3):
        take(made, clock, UPDATE, 2)
    clock[0] += 30_000
    made.suspended(30_000)
    made.at(SAVE, 1)
    made.at(UPDATE, 2)
    assert made.place(0).patience == 600 and made.place(0).longest == 2


def test_the_rank_that_has_not_arrived_is_behind_those_that_wait_for_it():
    def place(number: int, arrivals: int) -> Place:
        return Place(number, arrivals, UPDATE, 3, 600, 1)

    assert behind({0: place(8, 41), 1: place(8, 40), 2: place(8, 41)}) == [1]
    assert behind({0: place(7, 40), 1: place(8, 39)}) == [0]  # an earlier phase
    assert behind({0: place(8, 41), 1: place(8, 41)}) == [0, 1]
    assert behind({}) == []
