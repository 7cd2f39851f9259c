"""The threads with which a rank computes on the CPU."""

import os
import subprocess
import sys

import pytest
import torch

from data_prep.machine import Allowed, threads
from pipeline.models import units
from tests.parts.launching import ROOT, environment


@pytest.mark.slow
@pytest.mark.parametrize("asked", [None, str(os.cpu_count() + 3)])
def test_a_rank_has_the_threads_that_the_user_asks_for_or_its_share(asked):
    code = "import torch; from pipeline.engines.ranks import start_ranks; start_ranks(); print(torch.get_num_threads())"
    own = {key: value for key, value in environment().items() if key != "OMP_NUM_THREADS"}
    own |= {"OMP_NUM_THREADS": asked} if asked else {}
    said = subprocess.run([sys.executable, "-c", code], env=own, cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.split()[-1] == (asked or str(threads(1, {}).number)), said.stderr[-1000:]


def test_one_process_keeps_to_a_containers_quota(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(7)
        for allowed, number in ((9, 7), (3, 3)):
            monkeypatch.setattr(units, "threads", lambda allowed=allowed: Allowed(allowed, "a CPU quota"))
            units.settle_threads()
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
