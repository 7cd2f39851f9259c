"""The first thing that runs in each process of a launch: it unpacks what to run, and becomes that.

    python -m pipeline.launch.worker PACKED

DeepSpeed pastes arguments and variables into a command line that a shell reads on each host. So they travel as one word of
letters, digits, ``-``, ``_`` and ``=``, and no shell ever sees them: PACKED is URL-safe base64 of JSON.
"""

import base64
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import psutil

from data_prep.cli import UserError, run_command

MODULES = ("pipeline.distill", "pipeline.doctor", "pipeline.bench")


def pack(module: str, arguments: list[str], environment: dict[str, str]) -> str:
    """One word for: in this folder, run ``module`` with ``arguments`` and the variables of ``environment``."""
    if module not in MODULES:
        raise ValueError(f"{module}: not one of {', '.join(MODULES)}")
    content = {"module": module, "arguments": arguments, "environment": environment, "folder": str(Path.cwd())}
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def unpack(packed: str) -> dict[str, Any]:
    """The arguments of ``pack``, and the folder it was called in. Raises UserError if ``packed`` is anything else."""
    try:
        content: dict[str, Any] = json.loads(base64.b64decode(packed, altchars="-_", validate=True))
        known = content["module"] in MODULES
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{packed[:40]!r}: not packed by pipeline.launch; start runs with ./run.sh distill")
    return content


def check_folder(folder: str) -> None:
    """Raise UserError if this process does not run in ``folder``: over ssh a failed ``cd`` leaves it at home."""
    try:
        same = Path(folder).samefile(Path.cwd())
    except OSError:
        same = False
    if not same:
        raise UserError(
            f"{socket.gethostname()}: the folder {folder}, where the run was started, cannot be entered here; start it in one "
            "that all hosts share"
        )


def connection() -> int:
    """The process whose end means that the launch is gone: the ssh server's for our connection, or else our parent."""
    for process in psutil.Process().parents():
        if process.name().startswith("sshd"):
            server: int = process.pid
            return server
    return os.getppid()


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError(
            "python -m pipeline.launch.worker takes one argument, which pipeline.launch makes; see ./run.sh distill"
        )
    content = unpack(sys.argv[1])
    check_folder(content["folder"])
    environment = os.environ | content["environment"]
    environment.setdefault("DISTILL_PARENT", str(connection()))
    command = [sys.executable, "-u", "-m", content["module"], *content["arguments"]]
    os.execvpe(sys.executable, command, environment)


if __name__ == "__main__":
    run_command(main)
