"""The processes of a run: how they meet, who they are, and what one of them does for all."""

import contextlib
import io
import logging
import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import pydantic
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from data_prep.cli import UserError
from pipeline.processes import free_port

T = TypeVar("T")

MEETING = timedelta(minutes=5)  # hosts do not start at the same moment
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)  # DeepSpeed's own calls


@dataclass(frozen=True)
class Ranks:
    """This process among all: its number, how many there are, how many share this machine, and its device."""

    rank: int
    world: int
    local_world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


def start_ranks() -> Ranks:
    """Join the process group that `deepspeed`, torchrun or nobody (one process) has set up in the environment."""
    if "RANK" not in os.environ:
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_WORLD_SIZE": "1",
        }
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)
    accelerator = get_accelerator()
    device = torch.device(accelerator.device_name(local) if accelerator.device_name() != "cpu" else "cpu")
    if device.type == "cpu":  # two ranks that each take every core wait for each other all the time
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world))
    else:
        accelerator.set_device(local)
    backend = accelerator.communication_backend_name() if device.type != "cpu" else "gloo"
    # On CPUs DeepSpeed would build and load an op of its own, for an all-reduce that only its inference uses: a minute of
    # compiling at the first start, and 66 MiB of /dev/shm lost with every process.
    deepspeed.ops.__compatible_ops__ = {}
    # The timeout must outlast the slowest rank's reading of a large teacher; the default is 10 minutes.
    timeout = timedelta(minutes=30)
    if not dist.is_initialized() and (store := _meet(world)):
        store.set_timeout(timeout)
        dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=world, timeout=timeout)
    with quietly():
        deepspeed.init_distributed(backend, verbose=False, timeout=timeout)
    return Ranks(dist.get_rank(), world, local_world, device)


def _meet(world: int) -> dist.Store | None:
    """The store in which all ranks have met, or None if torchrun has one already.

    If all are on this machine it listens on loopback, where torch's own would on every interface. Raises UserError if
    somebody does not come.
    """
    host, port, first = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), os.environ["RANK"] == "0"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    listener = None
    try:
        if first and host in ("127.0.0.1", "localhost"):
            listener = socket.create_server(("127.0.0.1", port), backlog=2048).detach()
        return dist.TCPStore(host, port, world, is_master=first, timeout=MEETING, master_listen_fd=listener)
    except (OSError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(
            f"{host}:{port}: the {world} processes of this run have not met there within {MEETING.seconds} s ({why}); is each "
            "host up, started, and the port open to it? ./run.sh doctor --hostfile FILE looks"
        ) from None


def communication_backend() -> Any:
    """DeepSpeed's own communication object, through which all of its collectives go."""
    return deepspeed.comm.comm.cdb


def on_first_rank(ranks: Ranks, work: Callable[..., T], *arguments: Any) -> T:
    """``work(*arguments)`` done on rank 0, its result on every rank; a UserError or OSError there is raised on all."""
    outcome: list[Any] = [None, None]
    if ranks.first:
        try:
            outcome[0] = work(*arguments)
        except (UserError, OSError) as error:
            outcome[1] = error
    if ranks.world > 1:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextlib.contextmanager
def quietly(ds_config: str = ""):
    """Silence DeepSpeed's stdout while it starts; a value of a ``ds_config`` that it refuses is reported in one line."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except pydantic.ValidationError as error:
        what = error.errors()[0]
        key = ".".join(str(part) for part in what["loc"])
        raise UserError(f"{ds_config}: DeepSpeed refuses {key} = {what['input']!r}: {what['msg']}") from None
