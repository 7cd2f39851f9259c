"""Seconds of a step on a cluster, from floating-point operations, memory traffic and what crosses the network.

Rates are a stated share of those in data sheets. Nothing here has been compared with a GPU.
"""

from dataclasses import dataclass

from pipeline.engines.hosting import Hosting
from pipeline.engines.traffic import received_bytes
from pipeline.models.precision import DTYPES
from pipeline.plan.fused import fused_seconds, is_fused
from pipeline.plan.hardware import Cluster
from pipeline.plan.sizes import Cut
from pipeline.plan.zero import gathered_ahead
from pipeline.settings.recipe import Recipe

POOLING_BYTES = 12  # memory traffic for a hidden number: read, written and read in fp32
MAP_BYTES = 28  # memory traffic of the loss in blocks, for an entry of a map: seven fp32 numbers written or read


@dataclass(frozen=True)
class Gathers:
    """The cost of a sharded teacher in a step: ``forwards``, and in all of them ``received`` bytes of a GPU, and seconds.

    Gathers hide behind arithmetic from ``needed`` tokens a GPU and forward on, if all is gathered ahead of its turn; there
    are ``tokens``, and ``ahead`` is the share that DeepSpeed's settings allow. ``exposed`` seconds are waited for.
    """

    forwards: int
    received: float
    over_nodes: bool
    seconds: float
    needed: float
    tokens: int
    ahead: float
    exposed: float


@dataclass(frozen=True)
class Times:
    """Seconds of a step on each GPU by part, and what follows from them. ``gpu_hours``: of the run, on all GPUs together."""

    teacher: float
    students: float
    loss: float
    gathers: float
    gradients: float
    tokens_per_second: float
    days: float
    gpu_hours: float

    @property
    def step(self) -> float:
        return self.teacher + self.students + self.loss + self.gathers + self.gradients


def gathers_of(recipe: Recipe, cluster: Cluster, teacher: Cut, hosting: Hosting, flops: float) -> Gathers:
    """The traffic of a teacher in ``hosting.shards`` parts; ``flops`` are those of its forward of one sequence."""
    rank_batch = recipe.batch // cluster.world
    window = min(recipe.teacher_batch, rank_batch)
    forwards = -(-rank_batch // window)
    received = DTYPES[recipe.precision].itemsize * teacher.body * (hosting.shards - 1) / hosting.shards
    over_nodes = hosting.shards > cluster.gpus

    seconds = received / cluster.link(over_nodes)
    computing = window * flops / cluster.arithmetic(recipe.precision)
    ahead = gathered_ahead(teacher, recipe)
    return Gathers(
        forwards=forwards,
        received=forwards * received,
        over_nodes=over_nodes,
        seconds=forwards * seconds,
        needed=window * recipe.length * seconds / computing,
        tokens=window * recipe.length,
        ahead=ahead,
        exposed=forwards * (seconds * (1 - ahead) + max(0.0, seconds * ahead - computing)),
    )


def times_of(
    recipes: list[Recipe],
    cluster: Cluster,
    teacher: Cut,
    students: list[Cut],
    flops: list[float],
    gathers: Gathers | None,
) -> Times:
    """Times of a step. ``flops`` of one sequence: the teacher's forward, then each student's forward and backward."""
    recipe = recipes[0]
    rank_batch, rate = recipe.batch // cluster.world, cluster.arithmetic(recipe.precision)
    pairs = list(zip(recipes, students, strict=True))
    loss = sum(loss_seconds(own, cluster, teacher, student) for own, student in pairs)
    sent = sum(gradient_bytes(own, student, cluster.world) for own, student in pairs)
    parts = {
        "teacher": rank_batch * flops[0] / rate,
        "students": rank_batch * sum(flops[1:]) / rate,
        "loss": rank_batch * loss,
        "gathers": gathers.exposed if gathers else 0.0,
        "gradients": sent / cluster.link(cluster.nodes > 1),
    }
    step = sum(parts.values())
    run = recipe.steps * step
    speed = recipe.tokens_per_step / step
    return Times(**parts, tokens_per_second=speed, days=run / 86400, gpu_hours=cluster.world * run / 3600)


def loss_seconds(recipe: Recipe, cluster: Cluster, teacher: Cut, student: Cut) -> float:
    """Seconds of the loss of one sequence: fused, or its products, which are in fp32, and the traffic of its maps.

    Where vectors are learnt that of the pooling: hidden states made fp32 and read, the student's with their gradient.
    """
    if recipe.embeds:
        return POOLING_BYTES * recipe.length * (teacher.width + 2 * student.width) / (1e9 * cluster.gpu.bandwidth)
    if is_fused(recipe, cluster.gpu.chip, teacher, student):
        return fused_seconds(recipe, cluster.gpu, teacher, student)
    entries = recipe.length**2
    # Two models' logits, and two products for the gradients.
    products = 2 * entries * (teacher.width + 3 * student.width)
    maps = MAP_BYTES * entries * recipe.relation_heads
    pair = products / cluster.arithmetic("fp32") + maps / (1e9 * cluster.gpu.bandwidth)
    return len(recipe.relations) * len(recipe.layers) * pair


def gradient_bytes(recipe: Recipe, student: Cut, world: int) -> float:
    """Bytes that a rank receives in a step to average a student's gradients, and to bring its weights together again."""
    return received_bytes(recipe, student.parameters, student.words, world)
