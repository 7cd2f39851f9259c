"""Tests never ask the model hub: this is set before anything imports transformers. And a finished run for several files."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

# Files of a few tests that take minutes each: they begin first, lest the others wait for them at the end.
LONG = ("test_two_hosts", "test_fuzz_faults", "test_distill", "test_world_size", "test_two_hosts_doctor", "test_launch")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a finished tiny run, its teacher beside it."""
    from tests import launching
    from tests.tiny import make_recipe

    folder = tmp_path_factory.mktemp("finished")
    jobs = [{"recipe": str(make_recipe(folder)), "overrides": ["precision=bf16"]}]
    assert launching.run_jobs(folder, 1, jobs) == [None, True]
    return folder / "run"


@pytest.fixture(scope="session")
def student(run):
    """The run's exported student."""
    from pipeline import export

    export.export(run, run.parent / "student")
    return run.parent / "student"
