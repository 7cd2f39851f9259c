"""A Slurm cluster on this machine: slurmctld and two slurmd, in namespaces of their own for processes and mounts.

The nodes are called alpha and beta, which a hosts file of their own resolves to the loopback interface; each has four CPUs and
two GPUs that are none. Needs root, and Debian's slurmctld, slurmd, slurm-client and munge.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from pipeline.processes import free_port
from tests.parts.launching import PATIENCE

NODES = ("alpha", "beta")
TOOLS = ("unshare", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")

_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
NodeName=alpha NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 Gres=gpu:2 State=UNKNOWN
NodeName=beta NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=alpha,beta Default=YES MaxTime=INFINITE State=UP
"""
_GPUS = "".join(f"NodeName=alpha,beta Name=gpu File=/dev/{device}\n" for device in ("null", "zero"))
_START = """
set -e
mount --bind "$1/hosts" /etc/hosts
munged --force --socket="$1/munge.socket" --key-file="$1/munge.key" --pid-file="$1/munged.pid" --log-file="$1/munged.log" \
    --seed-file="$1/munge.seed"
slurmctld
for node in alpha beta; do slurmd -N "$node"; done
exec sleep infinity
"""
_INSIDE = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


def missing() -> str:
    """What a cluster would need and is not here, or nothing."""
    if os.geteuid() != 0:
        return "root"
    places = f"{os.environ['PATH']}:/usr/sbin"
    tools = [name for name in TOOLS if not shutil.which(name, path=places)]
    if tools:
        return ", ".join(tools)
    probe = subprocess.run([*_INSIDE, "mount", "--bind", "/etc/hosts", "/etc/hosts"], capture_output=True, text=True)
    return f"leave to make namespaces ({probe.stderr.strip()})" if probe.returncode else ""


class SlurmCluster:
    """A context manager: the cluster idle on entry, gone with all its processes on exit. ``folder``: for its files and logs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}

    def __enter__(self) -> "SlurmCluster":
        folder, host = self.folder, socket.gethostname()
        (folder / "state").mkdir()
        (folder / "munge.key").touch(0o600)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "hosts").write_text(f"127.0.0.1 localhost {' '.join(NODES)} {host}\n")
        (folder / "gres.conf").write_text(_GPUS)
        ports = [free_port() for _ in range(3)]
        (folder / "slurm.conf").write_text(_CONFIG.format(host=host, folder=folder, ports=ports))
        self._daemons = subprocess.Popen(
            [*_INSIDE, "bash", "-c", _START, "start", folder], env=os.environ | self.environment
        )
        try:
            self.wait_for(lambda: self.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(NODES))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._daemons.kill()
        self._daemons.wait()

    def run(self, *command: object, **variables: str) -> subprocess.CompletedProcess:
        """A command of Slurm to its end, with only these ``variables`` and the cluster's."""
        words = [str(word) for word in command]
        return subprocess.run(
            words, env=self.environment | variables, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE
        )

    def ask(self, *command: object) -> str:
        return self.run(*command).stdout

    def state(self, job: str) -> str:
        """`PENDING BeginTime`: a job's state and its reason."""
        return self.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T %r").strip()

    def wait_for(self, holds, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline and self._daemons.poll() is None, self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.log")))
