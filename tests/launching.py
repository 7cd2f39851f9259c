"""Starting real processes from tests: the DeepSpeed launcher, on a free port, with a clean environment."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    """This process's environment without what a launcher or an earlier test has set."""
    gone = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DISTILL_PARENT"}
    kept = {key: value for key, value in os.environ.items() if key not in gone}
    return kept | {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def command(ranks: int, module: str, *arguments: str) -> list[str]:
    """`deepspeed` for ``ranks`` processes of ``module`` on this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus", str(ranks)]
    return [*launcher, "--master_addr", "127.0.0.1", "--master_port", str(port), "--module", module, *arguments]


def run(ranks: int, module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(ranks, module, *arguments), capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=400
    )


def run_jobs(folder: Path, ranks: int, jobs: list[dict]) -> list:
    """Run ``jobs`` (see jobs.py) by ``ranks`` processes; rank 0's error messages, and last whether F.linear was kept."""
    path = folder / f"jobs{ranks}.json"
    path.write_text(json.dumps(jobs))
    result = run(ranks, "tests.jobs", str(path))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return json.loads(Path(f"{path}.0.errors").read_text())
