"""Start the processes of a distillation, on this machine or on several hosts, and tell the truth about its end.

examples:
  a laptop, or one node   ./run.sh distill demo                             one process for each GPU that is visible, or one
                          ./run.sh distill demo --ranks 4                   so many (also: RANKS=4 ./run.sh distill demo)
  several nodes           ./run.sh distill minilm_6x768 --hostfile hosts    by pdsh and ssh, from any machine
  several, without ssh    ./run.sh distill minilm_6x768 --hostfile hosts --no-ssh --master-addr gpu-01 --node-rank 0
                          the same on each host of the file, with its own --node-rank
  Slurm                   sbatch distill.sbatch minilm_6x768                a copy of pipeline/distill.sbatch, made to fit
  torchrun                torchrun --nproc-per-node 8 -m pipeline.distill minilm_6x768

A hostfile has a host on each line, as in `gpu-01 slots=8`. The folder in which the command is given, the Python
environment, the data and the run folder must have the same paths on all hosts. Variables that begin with NCCL_, GLOO_,
DS_, TORCH, OMP_, MKL_, HF_, TOKENIZERS_, UCX_ or FI_ go to the hosts, and those that --env names (HF_TOKEN only so,
since others there can see it while the run lasts).

Ctrl-C, SIGTERM and SIGUSR1 to this command, or `touch OUT/STOP` from anywhere, let the run write a checkpoint after the
step it is in and leave with code 75. A second Ctrl-C or SIGTERM ends everything at once. The same command always goes
on from the newest checkpoint.

exit codes: 0 done; 2 a mistake, told in a line `error: …`; 75 stopped early with a checkpoint, run it again; 1 the rest
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from data_prep.errors import Parser, UserError, run_command
from pipeline import checkpoints, hosts, worker
from pipeline.ds_config import load_ds_config
from pipeline.places import PORT, TIMEOUT, choose_place
from pipeline.recipe import Recipe, load_stages

MARK = "DISTILL_LAUNCH"  # the variable that tells the processes of a launch from all others on this machine


def main() -> int:
    environment = dict(os.environ)  # as the user has set it; later imports add to it
    options = parse(sys.argv[1:])

    # A mistake costs no time on a cluster: all that can be told from here is told before anything starts.
    stages = load_stages(options.recipe, options.overrides)
    recipes = [recipe for stage in stages for recipe in stage]
    for recipe in recipes:
        for name in (recipe.teacher.ds_config, recipe.student.ds_config):
            load_ds_config(name, recipe)
    place = choose_place(options, environment)
    for recipe in recipes:
        recipe.accumulation(place.ranks)

    token = secrets.token_hex(8)
    arguments = [options.recipe, *options.overrides, "--launch", token]
    for name in ("stop_at", "max_hours", "timeout"):
        if getattr(options, name) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command = place.command("pipeline.distill", arguments)

    from pipeline import runs  # imports DeepSpeed

    root = runs.root_of(recipes)
    former = read_record(root / runs.ENDED)

    def is_new(record: dict | None) -> bool:
        return bool(record) and record != former and (record["launch"] == token or bool(options.node_rank))

    patience = (options.timeout or TIMEOUT) + 10
    code = follow(command, place.environment | {MARK: token}, token, root / runs.STOP, patience)

    # The launcher's own code is not believed: it is 0 if a signal has killed it, and of several hosts the largest. What
    # counts is the record that rank 0 leaves. Its token is that of the first node; other nodes see that it is a new one.
    deadline = time.monotonic() + (10 if code in (0, runs.EARLY) else 0)  # a network's file system may take a moment
    while not is_new(record := read_record(root / runs.ENDED)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if is_new(record) and record["code"] in (0, 2, runs.EARLY):
        return record["code"]
    if not is_new(record) and code == 2:
        return 2
    tell(f"error: the run has ended early; {standing(recipes)}; the same command goes on from there")
    return 1


# --- until its end ----------------------------------------------------------------------------------------------------


def follow(command: list[str], environment: dict[str, str], token: str, stop: Path, patience: float) -> int:
    """Run the launcher's ``command`` to its end and return its code; signals to this process make the file ``stop``.

    Of several hosts, none outlives another by more than ``patience`` s: a rank waits long for one that never came.
    """
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: signals.append(number))
    parent = int(environment.get("DISTILL_PARENT", 0))  # a script that wants all this to end with it
    # A session of its own: Ctrl-C is for us alone. The launcher would answer it by ending every launch of this user.
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    told, most, complete = False, 0, time.monotonic()
    while process.poll() is None:
        urgent = [number for number in signals if number != signal.SIGUSR1]
        if len(urgent) > 1 or (parent and not worker.is_alive(parent)):
            end_all(token)
        elif signals:
            stop.parent.mkdir(parents=True, exist_ok=True)
            stop.touch()  # again and again: the run removes an old one while it starts
            if not told:
                tell("Stopping after this step, with a checkpoint. Ctrl-C (or SIGTERM) again ends it at once.")
            told = True
        connected = connections(process.pid)
        most = max(most, connected)
        if connected == most:
            complete = time.monotonic()
        elif time.monotonic() - complete > patience:
            tell(
                f"error: {most - connected} of {most} hosts ended {patience:.0f} s ago; what still runs on others is ended"
            )
            end_all(token)
        time.sleep(0.5)
    end_all(token)  # if the launcher was killed, what it has started
    if told:
        stop.unlink(missing_ok=True)
    return process.returncode


def connections(launcher: int) -> int:
    """The living ssh's of a launcher, one for each host; pdsh waits for the last of them."""
    try:
        children = psutil.Process(launcher).children(recursive=True)
        return sum(child.name() == "ssh" and child.status() != psutil.STATUS_ZOMBIE for child in children)
    except psutil.Error:  # one has ended at this moment
        return 0


def end_all(token: str) -> None:
    """Kill every process of this launch on this machine. Over ssh the others end with their connections."""
    for _ in range(50):  # a process may be starting another at this moment
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == token:
                    found.append(process)
                    process.kill()
        if not found:
            return
        time.sleep(0.1)


def standing(recipes: list[Recipe]) -> str:
    """Where the runs stand, from their newest whole checkpoints."""
    newest = [(recipe.out, checkpoints.latest(Path(recipe.out))) for recipe in recipes]
    return ", ".join(f"{out} has {f'step {one.step}' if one else 'no checkpoint yet'}" for out, one in newest)


def read_record(path: Path) -> dict | None:
    """What is written in ROOT/.ended, or None."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def tell(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(line, file=sys.stderr, flush=True)


# --- the command line -------------------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options. Raises UserError for those that are unknown or that do not go together."""
    parser = Parser(
        prog="./run.sh distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("recipe", help="a TOML file, or the name of a shipped recipe")
    add("overrides", nargs="*", metavar="key=value", help="as in steps=100 or student.layers=4")
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--stop-at",
        type=int,
        metavar="STEP",
        help="save a checkpoint after this step (of the first stage that is not complete) and leave",
    )
    run.add_argument(
        "--max-hours", type=float, metavar="H", help="save a checkpoint after so long and leave with code 75"
    )
    run.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help=f"give up a rank that is not heard of for so long (default: {TIMEOUT:g} s)",
    )
    here = parser.add_argument_group("this machine")
    here.add_argument("--ranks", type=int, metavar="N", help="processes (default: one for each GPU, or 1)")
    several = parser.add_argument_group("several hosts")
    several.add_argument("--hostfile", type=Path, metavar="FILE", help="the hosts, each with its number of processes")
    several.add_argument("--include", default="", metavar="HOSTS", help="only these, or these slots of them: a@b:0,2")
    several.add_argument("--exclude", default="", metavar="HOSTS", help="all but these")
    several.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable for the processes"
    )
    several.add_argument(
        "--master-addr", metavar="HOST", help="where ranks meet (default: the first host's first address)"
    )
    several.add_argument("--master-port", type=int, metavar="PORT", help=f"(default: a free one; {PORT} with --no-ssh)")
    several.add_argument("--no-ssh", action="store_true", help="start only this host's processes")
    several.add_argument("--node-rank", type=int, metavar="I", help="this host's place in the hostfile, from 0")
    options = parser.parse_intermixed_args(arguments)
    for option, least in (("stop_at", 1), ("ranks", 1), ("timeout", 5)):
        value = getattr(options, option)
        if value is not None and not value >= least:
            raise UserError(f"--{option.replace('_', '-')} {value}: must be at least {least:g}")
    if options.max_hours is not None and not options.max_hours > 0:
        raise UserError(f"--max-hours {options.max_hours:g}: must be above 0")
    if options.master_port is not None and not 0 < options.master_port < 2**16:
        raise UserError(f"--master-port {options.master_port}: must be a port, from 1 to 65535")
    if options.hostfile and options.ranks:
        raise UserError(f"--ranks {options.ranks}: with a hostfile its slots say how many; use --include for fewer")
    for option in ("include", "exclude", "no_ssh", "master_addr", "master_port"):
        if getattr(options, option) and not options.hostfile:
            raise UserError(f"--{option.replace('_', '-')}: is for several hosts; name them with --hostfile FILE")
    if options.node_rank is not None and not options.no_ssh:
        raise UserError("--node-rank: goes with --no-ssh; over ssh one command starts all hosts")
    if options.master_addr and not hosts.is_host(options.master_addr):
        raise UserError(f"--master-addr {options.master_addr}: is not a host's name or address")
    return options


if __name__ == "__main__":
    run_command(main)
