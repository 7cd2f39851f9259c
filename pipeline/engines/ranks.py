"""The processes of a run: how they meet, who they are, and what one of them does for all."""

import contextlib
import io
import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import deepspeed
import pydantic
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from data_prep.cli import UserError
from data_prep.machine import threads
from pipeline.processes import free_port

T = TypeVar("T")

MEETING = timedelta(minutes=5)  # hosts do not start at the same moment
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)  # DeepSpeed's own calls


@dataclass(frozen=True)
class Ranks:
    """This process among all: its number, how many there are, how many share this machine, and its device.

    ``nodes``: the ranks of each host, in the order of their first ones; empty where no others were asked.
    """

    rank: int
    world: int
    local_world: int
    device: torch.device
    nodes: tuple[tuple[int, ...], ...] = ()

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
    accelerator = get_accelerator()
    device = torch.device(accelerator.device_name(local) if accelerator.device_name() != "cpu" else "cpu")
    if device.type != "cpu":
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
    nodes = _nodes(world)
    local_world = next(len(node) for node in nodes if dist.get_rank() in node)
    if device.type == "cpu":  # two ranks that each take every core wait for each other all the time
        torch.set_num_threads(threads(local_world).number)
    return Ranks(dist.get_rank(), world, local_world, device, nodes)


def _nodes(world: int) -> tuple[tuple[int, ...], ...]:
    """The ranks of each host, known by its name and when it was started. Collective.

    LOCAL_RANK does not tell: DeepSpeed's launcher counts from a rank that is another for each host, if their slots differ.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    hosts: list = [None] * world
    dist.all_gather_object(hosts, (socket.gethostname(), boot.read_text() if boot.exists() else ""))
    return tuple(tuple(rank for rank in range(world) if hosts[rank] == host) for host in dict.fromkeys(hosts))


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


# How often this process has met the others in the store: the number of the next meeting's keys, the same on all ranks.
_meetings = 0


def store() -> Any:
    """The store in which all ranks have met: a small table on rank 0's host, or in torchrun's agent."""
    return dist.distributed_c10d._get_default_store()  # noqa: SLF001 - torch has no public name for it


def arrivals() -> int:
    """The number of collectives and meetings that this rank has entered, of all its process groups.

    Who waits has entered one more than the rank that it waits for: torch numbers collectives as they are begun. Any thread
    may ask.
    """
    count, groups = _meetings, cast(list[Any], list(dist.distributed_c10d._world.pg_map))  # noqa: SLF001 - nor for these
    for group in groups:
        with contextlib.suppress(RuntimeError):  # a backend that does not count
            count += group._get_sequence_number_for_group()  # noqa: SLF001
    return count


def on_first_rank(ranks: Ranks, work: Callable[..., T], *arguments: Any) -> T:
    """``work(*arguments)`` done on rank 0, its result on every rank; a UserError or OSError there is raised on all.

    The others ask the store, with no limit of time: no collective, whose timeout would bound the work. The watchdog ends
    them if rank 0 is lost. Results travel as JSON, so nobody who reaches the store's port can have a pickle loaded: a path
    becomes text, a tuple a list, with one rank too.
    """
    global _meetings
    key = f"on-first-rank/{_meetings}"
    if not ranks.first:
        _meetings += 1
        _poll(lambda: store().check([key]))
        sent = store().get(key).decode()
        store().add(f"{key}/read", 1)
        return _opened(sent)
    outcome: dict[str, Any] = {}
    error: UserError | OSError | None = None
    try:
        outcome["result"] = work(*arguments)
    except UserError as mistake:
        error, outcome["user_error"] = mistake, str(mistake)
    except OSError as failure:
        parts = [*failure.args, *([failure.filename] if failure.filename else [])]
        error, outcome["os_error"] = failure, [part if isinstance(part, int) else str(part) for part in parts]
    sent = json.dumps(outcome, default=os.fspath)
    if ranks.world > 1:
        store().set(key, sent)
        _meetings += 1
    if error:
        # This process is about to end, perhaps with the store in it.
        _poll(lambda: ranks.world == 1 or store().add(f"{key}/read", 0) == ranks.world - 1)
        raise error
    return _opened(sent)


def _opened(sent: str) -> Any:
    """The result that rank 0 has sent, or its error raised."""
    outcome = json.loads(sent)
    if "user_error" in outcome:
        raise UserError(outcome["user_error"])
    if "os_error" in outcome:
        raise OSError(*outcome["os_error"])
    return outcome["result"]


def wait_for_all(ranks: Ranks) -> None:
    """Wait until every rank is here, with no limit of time: after what may take one much longer than another."""
    global _meetings
    if ranks.world == 1:
        return
    key = f"all-here/{_meetings}"
    store().add(key, 1)
    _meetings += 1
    _poll(lambda: store().add(key, 0) == ranks.world)


def _poll(ready: Callable[[], bool]) -> None:
    """Ask until it is so, ever less often: at first after 1 ms, later four times in a second."""
    pause = 0.001
    while not ready():
        time.sleep(pause)
        pause = min(2 * pause, 0.25)


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
