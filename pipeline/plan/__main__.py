"""Estimate a run: the memory of a GPU, network traffic, time, and disk used.

    python -m pipeline.plan RECIPE [key=value …] --nodes 4 --gpus-per-node 8 --gpu H100
    python -m pipeline.plan RECIPE [key=value …] --measure        compare the memory model with a real run on this machine

It needs no weights, no GPU, and no network for the papers' teachers. Exit code 0 if the run fits, 1 if it does not.
"""

import argparse
import dataclasses
import json

from data_prep.cli import Parser, UserError, run_command
from pipeline.plan.hardware import GIB, GPUS, KNOWN, Cluster, find_gpu, gpu_with


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        "python -m pipeline.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a TOML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in steps=100 or student.layers=4")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="G", help="default: %(default)s")
    parser.add_argument("--gpu", metavar="NAME", help=f"one of {', '.join(KNOWN)} (default: chosen from --gpu-memory)")
    parser.add_argument("--gpu-memory", type=float, metavar="GB", help="memory of one GPU (default: that of --gpu)")
    parser.add_argument(
        "--nic",
        type=float,
        default=12.5,
        metavar="GB/s",
        help="network bandwidth per node (default: %(default)s, 100 Gb/s)",
    )
    parser.add_argument(
        "--share-of-peak",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="fraction of the peak rate (default: %(default)s)",
    )
    parser.add_argument("--measure", action="store_true", help="check the memory model by a real run on this machine")
    parser.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="processes of --measure (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main() -> int:
    options = parser().parse_intermixed_args()
    for name in ("nodes", "gpus_per_node", "ranks"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    return measure(options) if options.measure else plan(options, cluster_of(options))


def cluster_of(options: argparse.Namespace) -> Cluster:
    """The cluster that the options describe. Raises UserError for numbers that make no sense."""
    if not 0 < options.nic < float("inf"):
        raise UserError(f"--nic {options.nic:g}: must be above 0, in GB/s (12.5 for 100 Gb/s)")
    if not 0 < options.share_of_peak <= 1:
        raise UserError(f"--share-of-peak {options.share_of_peak:g}: must be above 0 and at most 1")
    if options.gpu_memory is not None and not 1 <= options.gpu_memory < float("inf"):
        raise UserError(f"--gpu-memory {options.gpu_memory:g}: must be at least 1, in GB")
    if options.gpu is None and options.gpu_memory is None:
        raise UserError(
            "name the kind of GPU, as in --gpu H100, or its memory, as in --gpu-memory 80; --help lists both"
        )
    gpu = find_gpu(options.gpu) if options.gpu else gpu_with(options.gpu_memory)
    if not options.gpu and not options.json:
        print(f"note: no --gpu is named; rates are those of {gpu.name}, whose memory is nearest")
    memory = (options.gpu_memory or gpu.memory) * GIB
    return Cluster(options.nodes, options.gpus_per_node, gpu, memory, options.nic, options.share_of_peak)


# The imports in these two load torch and transformers: seconds that neither --help nor a mistake in the options should take.


def measure(options: argparse.Namespace) -> int:
    """Print the memory model next to a run."""
    from pipeline.plan.comparison import compare
    from pipeline.plan.text import report_check

    rows = compare(options.recipe, options.overrides, options.ranks)
    print(json.dumps([dataclasses.asdict(row) for row in rows]) if options.json else report_check(rows, options.ranks))
    return 0


def plan(options: argparse.Namespace, cluster: Cluster) -> int:
    """Print the plan of each stage of the recipe; 1 if one does not fit."""
    from pipeline.plan.planning import models_of, on_nodes, plan_run, ways_out
    from pipeline.plan.text import as_json, report
    from pipeline.settings.reading import load_stages

    compared = GPUS | {cluster.gpu.name: cluster.gpu}
    kinds = [dataclasses.replace(cluster, gpu=gpu, memory=gpu.memory * GIB) for gpu in compared.values()]
    written = as_json if options.json else report
    plans, texts = [], []
    for recipes in load_stages(options.recipe, options.overrides):
        models = models_of(recipes)
        plan = plan_run(recipes, models, cluster)
        others = [plan_run(recipes, models, kind) for kind in kinds]
        texts.append(written(plan, others, on_nodes(recipes, models, cluster), [] if plan.fits else ways_out(plan)))
        plans.append(plan)

    if len(plans) == 1:
        print(texts[0])
    elif options.json:
        print(f"[{', '.join(texts)}]")
    else:
        total = sum(plan.times.days for plan in plans)
        print("\n\n\n".join([*texts, f"All {len(plans)} stages: {total:.2f} days"]))
    return 0 if all(plan.fits for plan in plans) else 1


if __name__ == "__main__":
    run_command(main)
