"""The kernels compile for GPUs that are not here, and leave nothing in memory that belongs into registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}  # bytes that a program may have


@pytest.mark.slow
@pytest.mark.parametrize("chip", SHARED)
def test_every_tile_compiles_without_spilling(chip):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.parts.compile_kernels", chip]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 24
    assert [name for name, _, spilled, _ in found if spilled] == []
    assert [name for name, _, _, shared in found if shared > SHARED[chip]] == []
    assert all(registers > 30 for _, registers, _, _ in found)
