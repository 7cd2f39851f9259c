"""pipeline.engines.ranks: one rank works, the others wait for it without a collective."""

import json

import pytest

from tests.parts import launching


@pytest.mark.slow
def test_one_rank_may_work_for_longer_than_a_collective_may_wait():
    processes = launching.start_ranks(2, "tests.parts.meeting", "5")
    outputs = [process.communicate(timeout=launching.PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for output, _ in outputs:
        found = json.loads(output.splitlines()[-1])
        assert found["result"] == ["a/b", {"step": 3}]
        assert found["errors"] == [
            ["UserError", "shard 5 is damaged"],
            ["OSError", "[Errno 28] No space left on device: '/data/x'"],
        ]
        assert found["come"] == 2
        assert found["entered"] == 1  # what the watchdog knows of a rank that waits
