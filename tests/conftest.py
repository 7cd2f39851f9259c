"""Tests never ask the model hub: this is set before anything imports transformers. And a finished run for several files."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


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
