"""A run on paper: what a GPU holds, what crosses the network, how long it takes, what lies on disk.

    python -m pipeline.plan RECIPE [key=value …] --nodes 4 --gpus-per-node 8 --gpu H100
    python -m pipeline.plan RECIPE [key=value …] --measure        the memory model beside a real run on this machine's CPU

It needs no weights, no GPU, and no network for the papers' teachers. Exit code 0 if the run fits, 1 if it does not.
"""

import argparse
import dataclasses
import json
import math
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import Parser, UserError, run_command
from data_prep.shards import MANIFEST, open_corpus
from pipeline import encoders, plan_memory
from pipeline.hardware import GPUS, find_gpu, gpu_with
from pipeline.plan_memory import GIB, MIB, NUMBER, Cut, Device, Hosting, Memory
from pipeline.plan_time import MAP_BYTES, Cluster, Gathers, Times, gathers_of, times_of
from pipeline.recipe import Recipe, load_stages, teacher_layers

FRAMEWORK = 1.5 * GIB  # CUDA's context, NCCL's buffers, cuBLAS's workspaces: assumed, not measured
SPARE = 0.1  # of a GPU's memory: what its allocator loses to fragments, assumed as well


@dataclass(frozen=True)
class Models:
    """What is planned for: the teacher's config and cut, and those of each student."""

    config: Any
    teacher: Cut
    shapes: list
    students: list[Cut]


@dataclass(frozen=True)
class Disk:
    """Tokens in shards and bytes of each; bytes of a checkpoint of all students, and of all that are kept."""

    tokens: int
    token_bytes: int
    prepared: bool
    checkpoint: int
    checkpoints: int

    @property
    def data(self) -> int:
        return self.tokens * self.token_bytes


@dataclass(frozen=True)
class Plan:
    """``recipes`` on a ``cluster``. The recipe's micro-batch was ``asked``; ``largest`` is the largest that fits, or 0."""

    recipes: list[Recipe]
    models: Models
    cluster: Cluster
    hosting: Hosting
    asked: int
    largest: int
    memory: Memory
    gathers: Gathers | None
    times: Times
    disk: Disk

    @property
    def usable(self) -> float:
        return self.cluster.memory * (1 - SPARE)

    @property
    def missing(self) -> float:
        """Bytes that a GPU lacks."""
        return max(0.0, self.memory.peak - self.usable)

    @property
    def fits(self) -> bool:
        return not self.missing


# --- planning ---------------------------------------------------------------------------------------------------------


def models_of(recipes: list[Recipe]) -> Models:
    """The shapes of a run's models, without their weights. Raises UserError for a recipe that does not suit its teacher."""
    recipe = recipes[0]
    config = recipe.teacher_config()
    for one in recipes:
        one.check_teacher(config)
    shapes = [one.student_config(config) for one in recipes]
    students = [plan_memory.cut_of(shape, shape.num_hidden_layers) for shape in shapes]
    return Models(config, plan_memory.cut_of(config, recipe.teacher.layer), shapes, students)


def plan_run(recipes: list[Recipe], models: Models, cluster: Cluster) -> Plan:
    """Plan ``recipes``, which differ in their student only.

    A micro-batch that does not come out on so many GPUs is replaced by the largest that fits and does. Raises UserError for
    a batch that the GPUs cannot share evenly.
    """
    recipe, teacher, students = recipes[0], models.teacher, models.students
    check_batch(recipe, cluster)
    hosting = plan_memory.hosting_of(
        recipe, teacher.parameters, teacher.embeddings, cluster.memory, cluster.world, cluster.gpus
    )
    blocks = plan_memory.UNCOMPILED_BLOCKS if recipe.compile == "none" else 3
    device = Device(NUMBER[recipe.precision], max(2**25, cluster.gpu.cache * MIB), blocks)

    def memory_with(micro: int) -> Memory:
        own = [with_micro_batch(one, micro) for one in recipes]
        return plan_memory.memory_of(own, teacher, students, hosting, cluster.world, device, FRAMEWORK)

    rank_batch = recipe.batch // cluster.world
    divisors = [size for size in range(rank_batch, 0, -1) if rank_batch % size == 0]
    largest = next((size for size in divisors if memory_with(size).peak <= cluster.memory * (1 - SPARE)), 0)
    micro = recipe.micro_batch if recipe.micro_batch in divisors else largest or 1
    planned = [with_micro_batch(one, micro) for one in recipes]
    earlier = len(teacher_layers(recipes)) - 1
    flops = [encoders.forward_flops(models.config, recipe.teacher.layer, recipe.length, earlier)]
    flops += [
        3 * encoders.forward_flops(shape, shape.num_hidden_layers, recipe.length, len(one.layers) - 1)
        for one, shape in zip(recipes, models.shapes, strict=True)
    ]
    gathers = gathers_of(planned[0], cluster, teacher, hosting, flops[0]) if hosting.shards > 1 else None
    return Plan(
        recipes=planned,
        models=models,
        cluster=cluster,
        hosting=hosting,
        asked=recipe.micro_batch,
        largest=largest,
        memory=memory_with(micro),
        gathers=gathers,
        times=times_of(planned, cluster, teacher, students, flops, gathers),
        disk=disk_of(recipe, models),
    )


def check_batch(recipe: Recipe, cluster: Cluster) -> None:
    """Raise UserError, with the nearest numbers that fit, unless each GPU gets equally many sequences."""
    batch, world = recipe.batch, cluster.world
    if batch % world == 0:
        return
    counts = [count for count in range(1, batch + 1) if batch % count == 0]
    near = [count for count in counts if count < world][-1:] + [count for count in counts if count > world][:1]
    batches = [size for size in (batch // world * world, (batch // world + 1) * world) if size]
    raise UserError(
        f"{recipe.source}: batch = {batch}: not a multiple of the {world} GPUs ({cluster.nodes} × {cluster.gpus}); use "
        f"{' or '.join(f'batch={size}' for size in batches)}, or {' or '.join(map(str, near))} GPUs"
    )


def with_micro_batch(recipe: Recipe, micro: int) -> Recipe:
    """The recipe with another micro-batch, and its teacher.micro_batch where that still comes out."""
    comes_out = recipe.teacher.micro_batch % micro == 0
    teacher = recipe.teacher if comes_out else dataclasses.replace(recipe.teacher, micro_batch=0)
    return dataclasses.replace(recipe, micro_batch=micro, teacher=teacher)


def disk_of(recipe: Recipe, models: Models) -> Disk:
    """Shards of the corpus, or of as many tokens as the run reads; and checkpoints, with the one that is being written."""
    prepared = (Path(recipe.data) / MANIFEST).is_file()
    tokens = recipe.steps * recipe.tokens_per_step
    if prepared:
        tokens = sum(source.tokens for source in open_corpus(recipe.data).sources.values())
    one = sum(
        12 * cut.parameters + 4 * cut.tail for cut in models.students
    )  # fp32 weights, two moments of those trained
    kept = recipe.keep_checkpoints + (recipe.steps // recipe.keep_every if recipe.keep_every else 0) + 1
    return Disk(tokens, 2 if models.config.vocab_size <= 2**16 else 4, prepared, one, kept * one)


def ways_out(plan: Plan) -> list[str]:
    """What, alone, would make a plan fit that does not: settings of the recipe, then more or larger GPUs."""
    recipes, models, cluster = plan.recipes, plan.models, plan.cluster
    recipe, stage = recipes[0], plan_memory.zero_config(recipes[0]).get("stage", 0)

    def fits(recipes: list[Recipe] = recipes, models: Models = models, cluster: Cluster = cluster) -> bool:
        try:
            return plan_run(recipes, models, cluster).fits
        except UserError:
            return False

    def with_teacher(**values) -> list[Recipe]:
        return [dataclasses.replace(one, teacher=dataclasses.replace(one.teacher, **values)) for one in recipes]

    def with_stage(stage: int) -> list[Recipe]:
        name = f"student_zero{stage}.json"
        return [dataclasses.replace(one, student=dataclasses.replace(one.student, ds_config=name)) for one in recipes]

    found = [f"micro_batch={plan.largest}"] if plan.largest else []
    if plan.hosting.kind == "replicate" and fits(with_teacher(hosting="zero3")):
        found.append("teacher.hosting=zero3")
    if plan.hosting.shards > 1 and recipe.teacher.shard_group == "node" and fits(with_teacher(shard_group="world")):
        found.append("teacher.shard_group=world")
    higher = next((higher for higher in range(stage + 1, 4) if fits(with_stage(higher))), None)
    if higher:
        found.append(f"student.ds_config=student_zero{higher}.json")
    alone = [([one], dataclasses.replace(models, students=[cut], shapes=[shape]))
             for one, cut, shape in zip(recipes, models.students, models.shapes, strict=True)]  # fmt: skip
    if len(recipes) > 1 and all(fits(*each) for each in alone):
        found.append("one student at a time")
    nodes = range(cluster.nodes + 1, recipe.batch // cluster.gpus + 1)
    enough = next((n for n in nodes if fits(cluster=dataclasses.replace(cluster, nodes=n))), None)
    if enough:
        found.append(f"--nodes {enough}")
    return [*found, f"GPUs of {math.ceil(plan.memory.peak / (1 - SPARE) / GIB)} GB"]


# --- what is printed --------------------------------------------------------------------------------------------------


def report(plan: Plan, others: list[Plan], remedies: list[str]) -> str:
    """The plan for a terminal; ``others`` are the plans for other kinds of GPU."""
    first = plan.recipes[0]
    verdict = f"{first.source.split(',')[0]}{first.stage and f', stage {first.stage}'} on {plan.cluster}: "
    if plan.fits:
        verdict += f"fits, {plan.memory.peak / GIB:.1f} of {plan.cluster.memory / GIB:g} GiB a GPU; "
        verdict += f"{plan.times.days:.2f} days at {plan.cluster.share:.0%} of the peak rate"
    else:
        verdict += (
            f"does not fit, a GPU lacks {plan.missing / GIB:.2f} GiB; each of these would do: {', '.join(remedies)}"
        )
    about = (about_models, about_memory, about_batch, about_gathers, about_time)
    sections = [[verdict], *(section(plan) for section in about), table(others), about_disk(plan), assumptions(plan)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _told(label: str, text: str) -> str:
    """A sentence beside its label, in lines of a terminal's width."""
    return textwrap.fill(text, 120, initial_indent=f"{label:10}", subsequent_indent=" " * 10, break_on_hyphens=False)


def about_models(plan: Plan) -> list[str]:
    recipe, models, hosting = plan.recipes[0], plan.models, plan.hosting
    lines = [
        _told(
            "Teacher",
            f"{recipe.teacher.model}: layer {recipe.teacher.layer} of {models.config.num_hidden_layers}, width "
            f"{models.teacher.width}, {models.teacher.parameters / 1e6:,.1f} M parameters up to there, "
            f"{models.teacher.embeddings / 1e6:,.1f} M of them embeddings",
        )
    ]
    for one, cut in zip(plan.recipes, models.students, strict=True):
        size = f"{(cut.parameters + cut.tail) / 1e6:,.1f} M parameters, {cut.parameters / 1e6:,.1f} M of them trained"
        lines.append(_told("Student", f"{one.student.layers} layers × {one.student.hidden}: {size}"))
    lines.append(_told("Hosting", f"{hosting.kind}: {hosting.reason}"))
    if hosting.shards > 1:
        group = "all GPUs" if hosting.shards == plan.cluster.world else "the GPUs of a node"
        shards = f"layers in {hosting.shards} shards, over {group}; embeddings whole on each"
        if plan_memory.offloads(recipe):
            held = NUMBER[recipe.precision] * models.teacher.body / hosting.shards * plan.cluster.gpus
            shards += f"; shards in the host's memory, {held / GIB:.1f} GiB a node, and the way from there is not timed"
        lines.append(_told("", shards))
    return lines


def about_memory(plan: Plan) -> list[str]:
    """The parts, and the sum at the largest moment of each phase."""
    moments = sorted(plan.memory.phases.items(), key=lambda item: -item[1])
    return [
        "Memory of a GPU, GiB",
        *(f"{value / GIB:9.2f}  {name}" for name, value in plan.memory.parts.items() if value),
        "Largest moments, GiB",
        *(f"{value / GIB:9.2f}  {name}" for name, value in moments),
        f"{plan.usable / GIB:9.2f}  can be used",
    ]


def about_batch(plan: Plan) -> list[str]:
    recipe, world = plan.recipes[0], plan.cluster.world
    most = f"at most micro-batch {plan.largest} fits" if plan.largest else "not even micro-batch 1 fits"
    accumulation = f"accumulation {recipe.accumulation(world)}"
    text = f"{recipe.batch} sequences = {world} GPUs × micro-batch {recipe.micro_batch} × {accumulation}; {most}"
    if recipe.micro_batch != plan.asked:
        text += f"; micro_batch = {plan.asked} of the recipe does not come out: run it with micro_batch={recipe.micro_batch}"
    return [_told("Batch", text)]


def about_gathers(plan: Plan) -> list[str]:
    """The sharded teacher's traffic, whether it hides, and what would help."""
    gathers, cluster, recipe = plan.gathers, plan.cluster, plan.recipes[0]
    if not gathers:
        return []
    rate, layer = cluster.link(gathers.over_nodes) / 1e9, plan.models.teacher.layer
    lines = [
        _told(
            "Gathers",
            f"{gathers.received / 1e9:.1f} GB a step into each GPU, in {gathers.forwards} "
            f"forward{'s' if gathers.forwards > 1 else ''}, {'between nodes' if gathers.over_nodes else 'inside a node'} at "
            f"{rate:g} GB/s: {gathers.seconds * 1e3:,.0f} ms beside {plan.times.teacher * 1e3:,.0f} ms of the teacher's "
            f"arithmetic. They hide from {gathers.needed:,.0f} tokens a GPU and forward on; here are {gathers.tokens:,}",
        )
    ]
    if gathers.ahead < 1:
        lines.append(
            _told(
                "",
                f"Only {gathers.ahead:.0%} of a layer is gathered ahead of its turn; all of it with "
                f"stage3_prefetch_bucket_size = {layer} and stage3_max_live_parameters = {2 * layer} in "
                "a copy of teacher_zero3_prefetch.json",
            )
        )
    if gathers.over_nodes and gathers.exposed:
        shard = NUMBER[recipe.precision] * plan.models.teacher.body / cluster.gpus / GIB
        instead = f"for {shard:.2f} GiB of layers a GPU instead of {shard / cluster.nodes:.2f}"
        lines.append(_told("", f"teacher.shard_group=node keeps them inside a node, {instead}"))
    if gathers.exposed and gathers.forwards > 1:
        lines.append(_told("", f"teacher.micro_batch={recipe.batch // cluster.world} gathers once a step"))
    return lines


def about_time(plan: Plan) -> list[str]:
    times = plan.times
    parts = {
        "teacher": times.teacher, "students": times.students, "relation loss": times.loss,
        "waiting for gathers": times.gathers, "averaging gradients": times.gradients,
    }  # fmt: skip
    shown = ", ".join(f"{name} {seconds * 1e3:,.0f}" for name, seconds in parts.items() if seconds)
    speed = f"{times.tokens_per_second:,.0f} tokens/s; {plan.recipes[0].steps:,} steps in {times.days:.2f} days"
    return [_told("Time", f"{times.step * 1e3:,.0f} ms a step: {shown}"), _told("", speed)]


def table(plans: list[Plan]) -> list[str]:
    """The same run on as many GPUs of each kind."""
    lines = [
        f"{'GPU':8} {'GB':>4} {'TFLOP/s':>8} {'GB/s':>6} {'link':>5} {'tokens/s':>12} {'days':>7} {'GiB':>7}  teacher"
    ]
    for plan in plans:
        gpu = plan.cluster.gpu
        rate = (gpu.low if plan.recipes[0].precision == "bf16" else gpu.fp32) / 1e3
        notes = "; ".join(filter(None, (gpu.note, "" if plan.fits else "does not fit")))
        lines.append(
            f"{gpu.name:8} {gpu.memory:4} {rate:8,.0f} {gpu.bandwidth:6,.0f} {gpu.link:5,.0f} "
            f"{plan.times.tokens_per_second:12,.0f} {plan.times.days:7.2f} {plan.memory.peak / GIB:7.2f}  {plan.hosting.kind}"
            + (f" ({notes})" if notes else "")
        )
    return lines


def about_disk(plan: Plan) -> list[str]:
    disk, recipe = plan.disk, plan.recipes[0]
    if disk.prepared:
        data = f"{disk.data / 1e9:,.1f} GB of shards: {recipe.data} holds {disk.tokens:,} tokens"
    else:
        data = f"at most {disk.data / 1e9:,.1f} GB of shards: {recipe.data} is not there, and the run reads "
        data += f"{disk.tokens:,} tokens, those of a smaller corpus several times"
    kept = f"keep_checkpoints = {recipe.keep_checkpoints}"
    kept += f", one of every {recipe.keep_every:,} steps" if recipe.keep_every else ""
    size = f"{disk.checkpoints / 1e9:,.1f} GB of checkpoints, {disk.checkpoint / 1e9:.2f} GB each"
    return [_told("Disk", data), _told("", f"{size}: {kept}, and one that is being written")]


def assumptions(plan: Plan) -> list[str]:
    cluster = plan.cluster
    return [
        _told(
            "Assumed",
            f"products at {cluster.share:g} of the peak rate (--share-of-peak; narrow students reach less), those of the "
            f"relation loss at as much of the fp32 rate, with {MAP_BYTES} bytes of memory traffic for each entry of its maps; "
            f"{cluster.nic:g} GB/s into a node (--nic); gradients averaged after backward; {FRAMEWORK / GIB:g} GiB for CUDA, "
            f"NCCL and cuBLAS; {SPARE:.0%} of the memory lost to fragments; GB of a GPU's memory are 2³⁰ bytes; reading, "
            "evaluation and checkpoints take no time. The memory model is checked by runs on CPUs (--measure), times are not.",
        )
    ]


def as_json(plan: Plan, others: list[Plan], remedies: list[str]) -> str:
    """One object, in bytes and seconds."""
    models = plan.models
    whole = {
        "recipe": plan.recipes[0].source, "fits": plan.fits, "missing": plan.missing, "ways_out": remedies,
        "cluster": asdict(plan.cluster), "teacher": asdict(models.teacher), "students": [asdict(c) for c in models.students],
        "hosting": asdict(plan.hosting), "asked_micro_batch": plan.asked, "micro_batch": plan.recipes[0].micro_batch,
        "largest_micro_batch": plan.largest, "parts": plan.memory.parts, "phases": plan.memory.phases,
        "peak": plan.memory.peak, "gathers": asdict(plan.gathers) if plan.gathers else None,
        "times": asdict(plan.times) | {"step": plan.times.step}, "disk": asdict(plan.disk) | {"data": plan.disk.data},
        "gpus": {
            other.cluster.gpu.name: {
                "fits": other.fits, "peak": other.memory.peak, "hosting": other.hosting.kind,
                "tokens_per_second": other.times.tokens_per_second, "days": other.times.days,
            }
            for other in others
        },
    }  # fmt: skip
    return json.dumps(whole, indent=1)


def report_check(rows: list, ranks: int) -> str:
    """The memory model beside a run."""
    lines = [f"Memory above the framework's own, {ranks} rank{'s' if ranks > 1 else ''} on this CPU, MiB"]
    lines.append(f"  {'':26} {'model':>9} {'run':>9} {'model / run':>12}")
    for row in rows:
        lines.append(f"  {row.what:26} {row.model / MIB:9.1f} {row.run / MIB:9.1f} {1 + row.error:12.3f}")
    lines.append(
        "The run: random weights, compile = 'none', at most 2 micro-batches a step, second update; freed memory goes back to "
        "the system\nat once (mallopt). On CPUs attention with dropout keeps its maps, and bf16 products may be taken in fp32: "
        "the model here counts both."
    )
    return "\n".join(lines)


# --- the command ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m pipeline.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a TOML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in steps=100 or student.layers=4")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="G", help="default: %(default)s")
    parser.add_argument("--gpu", metavar="NAME", help=f"one of {', '.join(GPUS)} (default: by its memory)")
    parser.add_argument("--gpu-memory", type=float, metavar="GB", help="of one GPU (default: that of --gpu)")
    parser.add_argument(
        "--nic", type=float, default=12.5, metavar="GB/s", help="into a node (default: %(default)s, 100 Gb/s)"
    )
    parser.add_argument("--share-of-peak", type=float, default=0.4, metavar="SHARE", help="default: %(default)s")
    parser.add_argument("--measure", action="store_true", help="check the memory model by a real run on this CPU")
    parser.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="processes of --measure (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    return parser


def cluster_of(options: argparse.Namespace) -> Cluster:
    """What the options describe. Raises UserError for numbers that make no sense."""
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


def main() -> int:
    options = _parser().parse_intermixed_args()
    for name in ("nodes", "gpus_per_node", "ranks"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    if options.measure:
        from pipeline.plan_check import compare  # importing DeepSpeed takes seconds

        rows = compare(options.recipe, options.overrides, options.ranks)
        print(json.dumps([asdict(row) for row in rows]) if options.json else report_check(rows, options.ranks))
        return 0
    cluster, stages = cluster_of(options), load_stages(options.recipe, options.overrides)
    kinds = [dataclasses.replace(cluster, gpu=gpu, memory=gpu.memory * GIB) for gpu in GPUS.values()]
    plans, told = [], []
    for recipes in stages:
        models = models_of(recipes)
        plan = plan_run(recipes, models, cluster)
        others = [plan_run(recipes, models, kind) for kind in kinds]
        told.append((as_json if options.json else report)(plan, others, [] if plan.fits else ways_out(plan)))
        plans.append(plan)
    if len(stages) == 1:
        print(told[0])
    elif options.json:
        print(f"[{', '.join(told)}]")
    else:
        total = sum(plan.times.days for plan in plans)
        print("\n\n\n".join([*told, f"All {len(plans)} stages: {total:.2f} days"]))
    return 0 if all(plan.fits for plan in plans) else 1


if __name__ == "__main__":
    run_command(main)
