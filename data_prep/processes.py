"""Whether a process runs, and how another one ends with it."""

import ctypes
import os
import signal
import sys
import threading
import time

import psutil

_PR_SET_PDEATHSIG = 1  # Linux prctl(2)
_LOOK_SECONDS = 0.5


def is_alive(pid: int) -> bool:
    """Whether the process runs. One that has ended and was not waited for does not."""
    try:
        status: str = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return False
    return bool(status != psutil.STATUS_ZOMBIE)


def die_with_parent(parent: int) -> None:
    """Have the kernel (Linux) kill this process the moment its own parent dies, also if that has happened already.

    On other systems this process ends here if the parent is gone; later it has to look for itself.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def die_with(process: int) -> None:
    """Exit within half a second of the end of any ``process``, parent or not: a thread looks for it.

    So killing a script that started a run, through whatever launcher, ends the run too.
    """

    def watch() -> None:
        while is_alive(process):
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
