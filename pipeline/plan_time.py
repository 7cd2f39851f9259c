"""Seconds of a step on a cluster, from floating-point operations, memory traffic and what crosses the network.

Rates are a stated share of what data sheets promise. Nothing here has been compared with a GPU.
"""

from dataclasses import dataclass

from pipeline import plan_memory
from pipeline.hardware import Gpu
from pipeline.plan_memory import GIB, NUMBER, Cut, Hosting
from pipeline.recipe import Recipe

MAP_BYTES = 28  # memory traffic of the relation loss for an entry of a map: seven fp32 numbers written or read


@dataclass(frozen=True)
class Cluster:
    """``nodes`` × ``gpus`` of one kind with ``memory`` bytes each.

    ``nic``: what a node receives from others [10⁹ bytes/s]; ``share``: of the peak rate that products run at.
    """

    nodes: int
    gpus: int
    gpu: Gpu
    memory: float
    nic: float
    share: float

    @property
    def world(self) -> int:
        return self.nodes * self.gpus

    def arithmetic(self, precision: str) -> float:
        """FLOP/s of one GPU."""
        return 1e9 * self.share * (self.gpu.low if precision == "bf16" else self.gpu.fp32)

    def link(self, over_nodes: bool) -> float:
        """Bytes/s that a collective brings to each GPU: a ring passes every link, and each node's NIC, alike."""
        return 1e9 * (min(self.gpu.link, self.nic) if over_nodes else self.gpu.link)

    def __str__(self) -> str:
        return (
            f"{self.nodes} node{'s' if self.nodes > 1 else ''} × {self.gpus} {self.gpu.name} ({self.memory / GIB:g} GB)"
        )


@dataclass(frozen=True)
class Gathers:
    """What a sharded teacher costs a step: ``forwards``, and over all of them bytes ``received`` by a GPU, and seconds.

    They hide behind arithmetic from ``needed`` tokens a GPU and forward on, if all is gathered ahead of its turn; ``tokens``
    are there, and ``ahead`` is the share that DeepSpeed's settings let be. ``exposed`` seconds are waited for.
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
    """Seconds of a step on each GPU by part, and what follows."""

    teacher: float
    students: float
    loss: float
    gathers: float
    gradients: float
    tokens_per_second: float
    days: float

    @property
    def step(self) -> float:
        return self.teacher + self.students + self.loss + self.gathers + self.gradients


def gathers_of(recipe: Recipe, cluster: Cluster, teacher: Cut, hosting: Hosting, flops: float) -> Gathers:
    """The traffic of a teacher in ``hosting.shards`` parts; ``flops`` are those of its forward of one sequence."""
    rank_batch = recipe.batch // cluster.world
    window = min(recipe.teacher_batch, rank_batch)
    forwards = -(-rank_batch // window)
    received = NUMBER[recipe.precision] * teacher.body * (hosting.shards - 1) / hosting.shards
    over_nodes = hosting.shards > cluster.gpus
    seconds = received / cluster.link(over_nodes)
    computing = window * flops / cluster.arithmetic(recipe.precision)
    ahead = plan_memory.gathered_ahead(teacher, recipe)
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
    """How long a step takes. ``flops`` of one sequence: the teacher's forward, each student's forward and backward."""
    recipe = recipes[0]
    rank_batch, rate = recipe.batch // cluster.world, cluster.arithmetic(recipe.precision)
    loss = sum(loss_seconds(one, cluster, teacher, cut) for one, cut in zip(recipes, students, strict=True))
    sent = sum(gradient_bytes(one, cut, cluster.world) for one, cut in zip(recipes, students, strict=True))
    parts = {
        "teacher": rank_batch * flops[0] / rate,
        "students": rank_batch * sum(flops[1:]) / rate,
        "loss": rank_batch * loss,
        "gathers": gathers.exposed if gathers else 0.0,
        "gradients": sent / cluster.link(cluster.nodes > 1),
    }
    step = sum(parts.values())
    return Times(**parts, tokens_per_second=recipe.tokens_per_step / step, days=recipe.steps * step / 86400)


def loss_seconds(recipe: Recipe, cluster: Cluster, teacher: Cut, student: Cut) -> float:
    """Of the relation loss of one sequence: its products, which are in fp32, and the traffic of its maps."""
    entries = recipe.length**2
    products = (
        2 * entries * (teacher.width + 3 * student.width)
    )  # two models' logits, and two products for the gradients
    maps = MAP_BYTES * entries * recipe.relation_heads
    pair = products / cluster.arithmetic("fp32") + maps / (1e9 * cluster.gpu.bandwidth)
    return len(recipe.relations) * len(recipe.layers) * pair


def gradient_bytes(recipe: Recipe, student: Cut, world: int) -> float:
    """Bytes that a rank receives in a step to average a student's gradients, and to bring its weights together again."""
    stage, number = plan_memory.zero_config(recipe).get("stage", 0), NUMBER[recipe.precision]
    around = student.parameters * (world - 1) / world  # once around a ring; an all-reduce goes around twice
    if stage == 0:
        return 2 * number * around
    if stage == 3:  # weights in forward and in backward, gradients once
        return 3 * number * around
    return (2 * 4 + number) * around
