"""Real probes for the doctor's tests."""

import pytest

from pipeline.doctor.asking import Probe
from tests.parts.doctored import program


@pytest.fixture
def probes():
    """Makes probes that are closed at the end."""
    made = {}

    def make(name: str, before: str = "", wrapper: tuple[str, ...] = ()) -> dict[str, Probe]:
        made[name] = program(before, name, wrapper)
        return made

    yield make
    for each in made.values():
        each.close()
