"""For all tests: no question to the model hub, which files begin, the mark `slow`; and a finished run for several files."""

import os

import pytest

from tests.parts.scheduling import pytest_xdist_make_scheduler  # noqa: F401

# Before anything imports transformers.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before anything imports Triton: its kernels run on this CPU, interpreted. What compiles them runs in a process of its own.
os.environ["TRITON_INTERPRET"] = "1"

# The files that take longest, in this order: they begin first, lest the others wait for them at the end.
LONG = (
    "test_two_hosts", "test_slurm_cluster", "test_hanging", "test_world_size", "test_fuzz_faults", "test_engines",
    "test_two_hosts_doctor", "test_layouts", "test_launch", "test_losses", "test_modern", "test_resume", "test_stages",
    "test_students", "test_watchdog", "test_teacher", "test_compiled", "test_bench", "test_embedding", "test_gpu",
    "test_ahead", "test_evaluate_together", "test_kernels", "test_which_loss", "test_static", "test_fused", "test_launches",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a finished tiny run, with its teacher next to it."""
    from tests.parts import launching  # here, since pipeline and transformers are loaded only by tests that need them
    from tests.parts.tiny import make_recipe

    folder = tmp_path_factory.mktemp("finished")
    launching.finish_jobs(folder, 1, [{"recipe": str(make_recipe(folder)), "overrides": ["precision=bf16"]}])
    return folder / "run"


@pytest.fixture(scope="session")
def student(run):
    """The run's exported student."""
    from pipeline.export import export

    export(run, run.parent / "student")
    return run.parent / "student"
