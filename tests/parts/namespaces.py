"""Two hosts on one machine: Linux namespaces with a network, a host name and processes of their own, and an sshd in each.

They share the file system, as the hosts of a cluster share a folder, and see each other over a virtual cable. Needs root.
Nothing outside the given folder is changed but for the two network namespaces, which go away at the end.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil

NAMES = ("alpha", "beta")
ADDRESSES = ("10.197.31.1", "10.197.31.2")
INTERFACE = "lan0"  # the same in both, as GLOO_SOCKET_IFNAME needs it
_PREFIX = "minilm-"  # of the network namespaces, followed by the process that made them and the host


def missing() -> str:
    """What two hosts would need and is not here, or nothing."""
    if os.geteuid() != 0:
        return "root"
    tools = [name for name in ("ip", "unshare", "nsenter", "taskset", "sshd", "ssh-keygen", "pdsh") if not _find(name)]
    if tools:
        return ", ".join(tools)
    probe = subprocess.run(["ip", "netns", "add", f"{_PREFIX}{os.getpid()}-probe"], capture_output=True, text=True)
    if probe.returncode:
        return f"leave to make network namespaces ({probe.stderr.strip()})"
    subprocess.run(["ip", "netns", "del", f"{_PREFIX}{os.getpid()}-probe"], check=True)
    return ""


class TwoHosts:
    """A context manager: two hosts up on entry, gone with all their processes on exit.

    ``folder`` receives keys, configuration and each sshd's log; give it a short path that both may write to.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.inits: dict[str, int] = {}  # host -> the process number, here, of its first process

    def __enter__(self) -> "TwoHosts":
        _remove_stale()
        try:
            self._make_keys()
            for name in NAMES:
                _ip("netns", "add", _namespace(name))
            ends = [f"mini{os.getpid()}{side}"[-15:] for side in "ab"]
            _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for name, address, end in zip(NAMES, ADDRESSES, ends, strict=True):
                _ip("link", "set", end, "netns", _namespace(name), "name", INTERFACE)
                _ip("-n", _namespace(name), "address", "add", f"{address}/24", "dev", INTERFACE)
                _ip("-n", _namespace(name), "link", "set", "lo", "up")
                self.plug(name)
            for name in NAMES:
                self.boot(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for name in list(self.inits):
            self.kill(name)
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", _namespace(name)], capture_output=True)

    def boot(self, name: str) -> None:
        """Start the host's sshd, as the first process of a new process namespace, and wait until it answers."""
        log = (self.folder / f"sshd-{name}.log").open("w")
        shell = f'hostname {name} && exec "$0" -D -e -f "$1"'
        command = [
            *_on_own_core(name),
            "ip",
            "netns",
            "exec",
            _namespace(name),
            "unshare",
            "--uts",
            "--pid",
            "--fork",
            "--mount-proc",
        ]
        command += ["--kill-child", "sh", "-c", shell, _find("sshd"), str(self.folder / "sshd_config")]
        outer = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 10
        while "Server listening" not in Path(log.name).read_text():
            if outer.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd of {name} does not start: {Path(log.name).read_text()}")
            time.sleep(0.05)
        self.inits[name] = psutil.Process(outer.pid).children()[0].pid

    def kill(self, name: str) -> None:
        """End every process of the host at once, as a power cut does; ``boot`` starts it again."""
        init = psutil.Process(self.inits.pop(name))
        outer = init.parent()
        init.send_signal(signal.SIGKILL)  # the kernel ends all that run in its process namespace
        psutil.wait_procs([outer], timeout=10)

    def unplug(self, name: str) -> None:
        """Take the host off the network; its processes live on."""
        _ip("-n", _namespace(name), "link", "set", INTERFACE, "down")

    def plug(self, name: str) -> None:
        _ip("-n", _namespace(name), "link", "set", INTERFACE, "up")

    def processes(self, name: str, word: str) -> list[psutil.Process]:
        """The host's living processes that have ``word`` in their command line."""
        inside, found = _process_namespace(self.inits[name]), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):  # gone, or none of ours
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and _process_namespace(process.pid) == inside and word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def command(self, name: str, *command: str, folder: Path) -> list[str]:
        """``command`` as it is run on the host, in ``folder``."""
        inside = ["--target", str(self.inits[name]), "--net", "--uts", "--pid", "--mount"]
        # The folder is entered there: one that is handed over would be of another mount, from which nothing is renamed.
        return [*_on_own_core(name), "nsenter", *inside, "sh", "-c", 'cd "$0" && exec "$@"', str(folder), *command]

    def ssh_options(self) -> str:
        """What ssh needs to reach the hosts by name, without a look at the user's own configuration and keys."""
        return f"-F {self.folder / 'ssh_config'}"

    def _make_keys(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to start without
        for key in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)]
            subprocess.run(command, check=True)
        public = (self.folder / "host_key.pub").read_text()
        lines = [f"{name},{address} {public}" for name, address in zip(NAMES, ADDRESSES, strict=True)]
        (self.folder / "known_hosts").write_text("".join(lines))
        shutil.copy(self.folder / "user_key.pub", self.folder / "authorized_keys")
        (self.folder / "sshd_config").write_text(
            f"HostKey {self.folder}/host_key\nAuthorizedKeysFile {self.folder}/authorized_keys\nPidFile none\nUsePAM no\n"
            "StrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nPrintMotd no\n"
        )
        ssh = f"User root\nIdentityFile {self.folder}/user_key\nIdentitiesOnly yes\nStrictHostKeyChecking yes\n"
        ssh += f"UserKnownHostsFile {self.folder}/known_hosts\nGlobalKnownHostsFile /dev/null\nLogLevel ERROR\n"
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ssh += f"Host {name}\n  HostName {address}\n"
        (self.folder / "ssh_config").write_text(ssh)


def _on_own_core(name: str) -> list[str]:
    """A rank that is alone on its host takes all its cores; and with more threads it would round otherwise."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "--cpu-list", str(cores[NAMES.index(name) % len(cores)])]


def _namespace(name: str) -> str:
    return f"{_PREFIX}{os.getpid()}-{name}"


def _process_namespace(pid: int) -> int:
    return Path(f"/proc/{pid}/ns/pid").stat().st_ino


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _find(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _remove_stale() -> None:
    """Namespaces, and what runs in them, of test runs that were killed."""
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        namespace = line.split()[0]
        maker = namespace.removeprefix(_PREFIX).partition("-")[0]
        if not namespace.startswith(_PREFIX) or not maker.isdigit() or psutil.pid_exists(int(maker)):
            continue
        inside = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout
        for number in inside.split():
            try:
                os.kill(int(number), signal.SIGKILL)
            except ProcessLookupError:
                continue
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True)
