"""Many short runs at once: `python -m tests.parts.forking JOBS.json`. The libraries are loaded once, each rank is a fork.

JOBS.json is a list of {"module", "arguments", "ranks", "environment", "agent"}; with "agent" the ranks meet in a store of this
process, as under torchrun in its agent's, else in one of rank 0. The output of rank R of job J goes to JOBS.json.J.R.out
and .err, and its process's number to .pid once it begins. The last line of the output is a list of the codes of each job.
"""

import json
import os
import runpy
import sys
from pathlib import Path

from torch.distributed import TCPStore

from pipeline import distill  # noqa: F401 - what takes seconds to load
from pipeline.processes import free_port


def start(stem: str, module: str, arguments: list[str], environment: dict[str, str]) -> int:
    """Fork a process that is `python -m MODULE ARGUMENTS`; returns its number."""
    if child := os.fork():
        return child
    for number, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{stem}.{ending}", os.O_WRONLY | os.O_CREAT, 0o644), number)
    os.environ |= environment
    sys.argv[1:] = arguments
    Path(f"{stem}.pid").write_text(str(os.getpid()))
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(path: str) -> None:
    children: list[list[int]] = []
    agents = []
    for job, content in enumerate(json.loads(Path(path).read_text())):
        place = {"WORLD_SIZE": content["ranks"], "LOCAL_WORLD_SIZE": content["ranks"], "MASTER_ADDR": "127.0.0.1"}
        place |= {"MASTER_PORT": free_port()}
        if content["agent"]:
            place |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": 0}
            agents.append(place["MASTER_PORT"])
        children.append([])
        for rank in range(content["ranks"]):
            environment = content["environment"] | place | {"RANK": rank, "LOCAL_RANK": rank}
            texts = {key: str(value) for key, value in environment.items()}
            children[-1].append(start(f"{path}.{job}.{rank}", content["module"], content["arguments"], texts))
    stores = [
        TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False) for port in agents
    ]  # no fork after threads
    codes = [[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in group] for group in children]
    del stores
    print(json.dumps(codes))


if __name__ == "__main__":
    main(sys.argv[1])
