"""One plan: models, hosting, memory, times and disk of a recipe on a cluster; and what would make it fit."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from data_prep.cli import UserError
from data_prep.remote import is_url
from data_prep.shards import MANIFEST, open_corpus
from pipeline.engines.hosting import Hosting, hosting_of
from pipeline.engines.traffic import zero_config
from pipeline.models.arithmetic import widens
from pipeline.models.configs import planned_config
from pipeline.models.counting import forward_flops
from pipeline.models.fit import check_teacher, student_config_of, teacher_config_of
from pipeline.models.precision import DTYPES
from pipeline.plan.fused import is_fused
from pipeline.plan.hardware import CPU, GIB, MIB, Cluster
from pipeline.plan.memory import Memory, memory_of
from pipeline.plan.sizes import UNCOMPILED_BLOCKS, Cut, Device, cut_of
from pipeline.plan.times import Gathers, Times, gathers_of, times_of
from pipeline.relations import block_bytes
from pipeline.settings.recipe import Recipe, teacher_layers

FRAMEWORK = 1.5 * GIB  # CUDA's context, NCCL's buffers, cuBLAS's workspaces: assumed, not measured
CPU_FRAMEWORK = 0.5 * GIB  # Python, torch, transformers and DeepSpeed in a process
SPARE = 0.1  # of a GPU's memory: what its allocator loses to fragments, assumed as well


@dataclass(frozen=True)
class Models:
    """The models to plan for: the teacher's config and cut, and the ``shapes`` (configs) and cuts of the students."""

    config: PreTrainedConfig
    teacher: Cut
    shapes: list[PreTrainedConfig]
    students: list[Cut]


@dataclass(frozen=True)
class Disk:
    """Tokens in shards and bytes of each; bytes of a checkpoint of all students, and of all checkpoints that are kept."""

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

    @property
    def fused(self) -> bool:
        """Whether the losses of all students run by the kernel."""
        chip, pairs = self.cluster.gpu.chip, zip(self.recipes, self.models.students, strict=True)
        return all(is_fused(recipe, chip, self.models.teacher, student) for recipe, student in pairs)


def models_of(recipes: list[Recipe]) -> Models:
    """The shapes of a run's models, without their weights. Raises UserError for a recipe that does not suit its teacher."""
    config = teacher_config_of(recipes[0], planned_config)
    for recipe in recipes:
        check_teacher(recipe, config)
    shapes = [student_config_of(recipe, config) for recipe in recipes]
    whole = recipes[0].embeds
    students = [cut_of(shape, shape.num_hidden_layers, whole) for shape in shapes]
    return Models(config, cut_of(config, max(teacher_layers(recipes)), whole), shapes, students)


def plan_run(recipes: list[Recipe], models: Models, cluster: Cluster) -> Plan:
    """Plan ``recipes``, whose students share a teacher's pass.

    A micro-batch that does not come out on so many GPUs is replaced by the largest that fits and does. Raises UserError for
    a batch that the GPUs cannot share evenly.
    """
    recipe, teacher, students = recipes[0], models.teacher, models.students
    check_batch(recipe, cluster)
    hosting = hosting_of(recipe, teacher.parameters, teacher.embeddings, cluster.memory, cluster.world, cluster.gpus)
    device, framework = device_of(recipe, cluster), CPU_FRAMEWORK if cluster.gpu.chip == CPU else FRAMEWORK

    def memory_with(micro: int) -> Memory:
        changed = [with_micro_batch(each, micro) for each in recipes]
        return memory_of(changed, teacher, students, hosting, cluster.world, device, framework)

    rank_batch = recipe.batch // cluster.world
    divisors = [size for size in range(rank_batch, 0, -1) if rank_batch % size == 0]
    largest = next((size for size in divisors if memory_with(size).peak <= cluster.memory * (1 - SPARE)), 0)
    micro = recipe.micro_batch if recipe.micro_batch in divisors else largest or 1
    planned = [with_micro_batch(each, micro) for each in recipes]

    flops = flops_of(recipes, models)
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


def on_nodes(recipes: list[Recipe], models: Models, cluster: Cluster) -> list[Plan]:
    """The same run on 1, 2, 4, … nodes, up to twice as many as ``cluster`` has and 8 at least, wherever the batch comes out."""
    counts = {2**power for power in range(max(2 * cluster.nodes, 8).bit_length())} | {cluster.nodes}
    clusters = [dataclasses.replace(cluster, nodes=nodes) for nodes in sorted(counts)]
    return [plan_run(recipes, models, each) for each in clusters if recipes[0].batch % each.world == 0]


def device_of(recipe: Recipe, cluster: Cluster) -> Device:
    """What of the cluster's devices, which may be processes on a CPU, decides on memory."""
    number, blocks = DTYPES[recipe.precision].itemsize, UNCOMPILED_BLOCKS if recipe.compile == "none" else 3
    if cluster.gpu.chip == CPU:
        wide = widens(recipe.arithmetic, recipe.precision, torch.device("cpu"))
        return Device(number, block_bytes(torch.device("cpu")), blocks, cpu=True, widens=wide)
    return Device(number, max(2**25, cluster.gpu.cache * MIB), blocks, chip=cluster.gpu.chip)


def flops_of(recipes: list[Recipe], models: Models) -> list[float]:
    """Floating-point operations of one sequence: the teacher's forward, then each student's forward and backward."""
    recipe = recipes[0]
    *earlier, layer = teacher_layers(recipes)
    teacher = forward_flops(models.config, layer, recipe.length, len(earlier), recipe.embeds)
    students = [
        3 * forward_flops(shape, shape.num_hidden_layers, recipe.length, len(own.layers) - 1, recipe.embeds)
        for own, shape in zip(recipes, models.shapes, strict=True)
    ]
    return [teacher, *students]


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
    prepared = is_url(recipe.data) or (Path(recipe.data) / MANIFEST).is_file()
    tokens = recipe.steps * recipe.tokens_per_step
    if prepared:
        tokens = sum(source.tokens for source in open_corpus(recipe.data, recipe.shards_cache).sources.values())
    token_bytes = 2 if models.config.vocab_size <= 2**16 else 4

    # fp32 weights, and two moments of those that are trained
    checkpoint = sum(12 * cut.parameters + 4 * cut.tail for cut in models.students)
    spaced = recipe.steps // recipe.keep_every if recipe.keep_every else 0
    kept = recipe.keep_checkpoints + spaced + 1
    return Disk(tokens, token_bytes, prepared, checkpoint, kept * checkpoint)


def ways_out(plan: Plan) -> list[str]:
    """Changes of which each alone would make a plan fit: settings of the recipe, then more or larger GPUs."""
    recipes, models, cluster = plan.recipes, plan.models, plan.cluster
    recipe, stage = recipes[0], zero_config(recipes[0]).get("stage", 0)

    def fits(recipes: list[Recipe] = recipes, models: Models = models, cluster: Cluster = cluster) -> bool:
        try:
            return plan_run(recipes, models, cluster).fits
        except UserError:
            return False

    def with_teacher(**values: Any) -> list[Recipe]:
        teacher = dataclasses.replace(recipe.teacher, **values)
        return [dataclasses.replace(each, teacher=teacher) for each in recipes]

    def with_stage(stage: int) -> list[Recipe]:
        name = f"student_zero{stage}.json"
        return [
            dataclasses.replace(each, student=dataclasses.replace(each.student, ds_config=name)) for each in recipes
        ]

    found = [f"micro_batch={plan.largest}"] if plan.largest else []
    if plan.hosting.kind == "replicate" and fits(with_teacher(hosting="zero3")):
        found.append("teacher.hosting=zero3")
    if plan.hosting.shards > 1 and recipe.teacher.shard_group == "node" and fits(with_teacher(shard_group="world")):
        found.append("teacher.shard_group=world")
    higher = next((higher for higher in range(stage + 1, 4) if fits(with_stage(higher))), None)
    if higher:
        found.append(f"student.ds_config=student_zero{higher}.json")

    alone = [
        ([own], dataclasses.replace(models, students=[cut], shapes=[shape]))
        for own, cut, shape in zip(recipes, models.students, models.shapes, strict=True)
    ]
    if len(recipes) > 1 and all(fits(*each) for each in alone):
        found.append("one student at a time")

    nodes = range(cluster.nodes + 1, recipe.batch // cluster.gpus + 1)
    enough = next((n for n in nodes if fits(cluster=dataclasses.replace(cluster, nodes=n))), None)
    if enough:
        found.append(f"--nodes {enough}")
    return [*found, f"GPUs of {math.ceil(plan.memory.peak / (1 - SPARE) / GIB)} GB"]
