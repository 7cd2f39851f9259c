"""Start the processes of a distillation, on this machine or on several hosts, and report how it really ended.

examples:
  a laptop, or one node   ./run.sh distill demo                             one process per visible GPU, or one on a CPU
                          ./run.sh distill demo --ranks 4                   4 processes (also: RANKS=4 ./run.sh distill demo)
  Slurm                   sbatch distill.sbatch minilm_6x768                a copy of pipeline/distill.sbatch, adapted to your
                                                                            cluster
  torchrun                torchrun --nproc-per-node 8 -m pipeline.distill minilm_6x768
  hosts without either    ./run.sh distill minilm_6x768 --hostfile hosts    by pdsh and ssh, from any machine
  several, without ssh    ./run.sh distill minilm_6x768 --hostfile hosts --no-ssh --master-addr gpu-01 --node-rank 0
                          the same on each host of the file, with its own --node-rank

A hostfile has a host on each line, as in `gpu-01 slots=8`. The folder in which the command is given, the Python
environment, the data and the run folder must have the same paths on all hosts. Variables that begin with NCCL_, GLOO_,
DS_, TORCH, PYTORCH_, TRITON_, CUDA_, OMP_, MKL_, HF_, TOKENIZERS_, UCX_ or FI_ go to the hosts, and those that --env
names (HF_TOKEN only if named, since others there can see it while the run lasts; CUDA_VISIBLE_DEVICES never by itself).

Ctrl-C, SIGTERM and SIGUSR1 to this command, or `touch OUT/STOP` from anywhere, let the run write a checkpoint after one
of its next steps and exit with code 75. A second Ctrl-C or SIGTERM ends everything at once. The same command always
resumes from the newest checkpoint.

exit codes: 0 done; 2 a user error, reported in a line `error: …`; 75 stopped early with a checkpoint, run it again;
1 anything else
"""

import argparse
import os
import sys
from pathlib import Path

from data_prep.cli import Parser, UserError, run_command, sign_of_life
from data_prep.shards import open_corpus
from pipeline.launch.hosts import PORT, is_host
from pipeline.models.folders import check_folder
from pipeline.processes import LONGEST, TIMEOUT, asked_ranks
from pipeline.settings.reading import load_stages
from pipeline.settings.recipe import Recipe


def main() -> int:
    environment = dict(os.environ)  # as the user has set it; importing DeepSpeed's settings adds to it
    options = parse(sys.argv[1:])
    stages = load_stages(options.recipe, options.overrides)
    if not options.hostfile:  # whose hosts may see other folders
        asked_ranks({} if options.ranks else environment)
        check_folders(stages)
    first = stages[0][0]
    sign_of_life(
        f"{first.root}: {first.student.layers} × {first.student.hidden} from {first.teacher.model}; torch is loading"
    )
    # Takes seconds: not for --help, a mistyped option or a mistake in the recipe.
    from pipeline.launch.launching import launch

    return launch(options, environment, stages)


def check_folders(stages: list[list[Recipe]]) -> None:
    """Raise UserError for a teacher's folder or data that is not there, or not whole, as ranks would do seconds later."""
    for recipe in (recipe for recipes in stages for recipe in recipes):
        if not recipe.previous:
            check_folder(recipe.teacher.model)
        open_corpus(recipe.data, recipe.shards_cache)


def parser() -> argparse.ArgumentParser:
    """The command line of ``./run.sh distill``."""
    parser = Parser(
        prog="./run.sh distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="a TOML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in steps=100 or student.layers=4")

    run = parser.add_argument_group("the run").add_argument
    run(
        "--stop-at",
        type=int,
        metavar="STEP",
        help="save a checkpoint after this step (of the first stage that is not complete) and exit",
    )
    run("--max-hours", type=float, metavar="H", help="save a checkpoint after H hours and exit with code 75")
    run(
        "--timeout",
        type=float,
        metavar="S",
        help=f"give up a rank that is silent for S seconds, or hangs for 5 S or more (default: {TIMEOUT:g})",
    )

    here = parser.add_argument_group("this machine").add_argument
    here("--ranks", type=int, metavar="N", help="processes (default: one per GPU, or 1)")

    several = parser.add_argument_group("several hosts").add_argument
    several("--hostfile", type=Path, metavar="FILE", help="the hosts, each with its number of processes")
    several("--include", default="", metavar="HOSTS", help="only these, or these slots of them: a@b:0,2")
    several("--exclude", default="", metavar="HOSTS", help="all but these")
    several("--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable for the processes")
    several("--master-addr", metavar="HOST", help="where ranks meet (default: the first host's first address)")
    several("--master-port", type=int, metavar="PORT", help=f"(default: a free one; {PORT} with --no-ssh)")
    several("--no-ssh", action="store_true", help="start only this host's processes")
    several("--node-rank", type=int, metavar="I", help="this host's place in the hostfile, from 0")
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options. Raises UserError for those that are unknown, out of range, or that exclude each other."""
    options = parser().parse_intermixed_args(arguments)
    for option, least in (("stop_at", 1), ("ranks", 1), ("timeout", 5)):
        value = getattr(options, option)
        if value is not None and not value >= least:
            raise UserError(f"--{option.replace('_', '-')} {value}: must be at least {least:g}")
    if options.timeout is not None and options.timeout > LONGEST:
        raise UserError(f"--timeout {options.timeout}: must be at most {LONGEST:g} seconds")
    if options.max_hours is not None and not options.max_hours > 0:
        raise UserError(f"--max-hours {options.max_hours:g}: must be above 0")
    check_hosts(options)
    return options


def check_hosts(options: argparse.Namespace) -> None:
    """Raise UserError for options of several hosts that make no sense, or not together."""
    if options.master_port is not None and not 0 < options.master_port < 2**16:
        raise UserError(f"--master-port {options.master_port}: must be a port, from 1 to 65535")
    if options.hostfile and options.ranks:
        raise UserError(f"--ranks {options.ranks}: with a hostfile its slots say how many; use --include for fewer")
    for option in ("include", "exclude", "no_ssh", "master_addr", "master_port"):
        if getattr(options, option) and not options.hostfile:
            raise UserError(f"--{option.replace('_', '-')}: is for several hosts; name them with --hostfile FILE")
    if options.node_rank is not None and not options.no_ssh:
        raise UserError("--node-rank: goes with --no-ssh; over ssh one command starts all hosts")
    if options.master_addr and not is_host(options.master_addr):
        raise UserError(f"--master-addr {options.master_addr}: is not a host's name or address")


if __name__ == "__main__":
    run_command(main)
