"""Bytes of memory that one rank of a run needs, part by part: arithmetic on shapes, no tensor is made.

What is not the models' own follows the code that uses it: autograd and torch's kernels for activations, relations.py for the
loss, DeepSpeed 0.19 for a student's state. ``python -m pipeline.plan RECIPE --measure`` compares it with a real run.
"""

from dataclasses import dataclass, field

from transformers import PreTrainedConfig

from data_prep.errors import UserError
from pipeline import encoders
from pipeline.ds_config import load_ds_config
from pipeline.recipe import Recipe, teacher_layers
from pipeline.relations import VALUE_MSE

NUMBER = {"bf16": 2, "fp32": 4}  # bytes of a weight, activation or gradient
GIB, MIB = 2**30, 2**20
UNCOMPILED_BLOCKS = 10  # the three that relation_loss has room for, and what divergence_and_gradient makes of them


@dataclass(frozen=True)
class Cut:
    """The sizes of a cut encoder (encoders.py): ``layers`` whole ones, and three projections of the next.

    ``embeddings``, ``layer`` (one whole), ``last`` (projections and a norm before them) and ``tail`` (what the model has
    beyond the cut) count parameters, ``largest`` those of the largest tensor. ``dropouts`` are those of a layer.
    """

    layers: int
    width: int
    ffn: int
    heads: int
    embeddings: int
    layer: int
    last: int
    tail: int
    largest: int
    dropouts: int = 2
    gated: bool = False  # the FFN has three matrices

    @property
    def body(self) -> int:
        return self.layers * self.layer + self.last

    @property
    def parameters(self) -> int:
        return self.embeddings + self.body


def cut_of(config: PreTrainedConfig, layer: int) -> Cut:
    """The sizes of the cut at ``layer`` of a model of this shape, counted on an encoder without memory."""
    encoder, _ = encoders.empty_encoder(config, layer)
    body, family = encoder.body, encoders.family_of(config)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in encoder.named_children()}
    whole = sum(p.numel() for p in body.layers[-1].parameters()) if len(body.layers) else 0
    return Cut(
        layers=len(body.layers),
        width=config.hidden_size,
        ffn=getattr(config, family.ffn),
        heads=config.num_attention_heads,
        embeddings=counts["embeddings"],
        layer=whole,
        last=counts["body"] - whole * len(body.layers),
        tail=encoders.count_parameters(config)["total"] - sum(counts.values()),
        largest=max(p.numel() for p in encoder.parameters()),
        dropouts=1 if config.model_type in ("distilbert", "xlm-roberta-xl") else 2,
        gated=family.gated,
    )


@dataclass(frozen=True)
class Device:
    """What memory depends on besides the models.

    ``number``: bytes of a weight or activation. ``block``: bytes of a block of relation maps, of which ``blocks`` live at a
    time. On a ``cpu`` attention with dropout keeps its maps, and memory counts when it is first touched; one that ``widens``
    takes bf16 products in fp32 (precision.py).
    """

    number: int
    block: int = 2**25
    blocks: int = 3
    cpu: bool = False
    widens: bool = False


# --- what passes keep and need ----------------------------------------------------------------------------------------


def activations(cut: Cut, batch: int, length: int, dropout: float, device: Device, outputs: int = 1) -> int:
    """Bytes that autograd keeps of a student's forward of ``batch`` sequences, the q, k, v of ``outputs`` layers included.

    Linear layers keep their input; fused attention q, k, v, its output and the logarithm of each row's sum; a norm its input,
    mean and deviation; GELU its input, and a gate both factors; dropout a byte for each number.
    """
    width, ffn, n = cut.width, cut.ffn, device.number
    maps = device.cpu and dropout > 0
    wide = 4 if maps or device.widens else n  # of attention's operands

    def read(size: int, readers: int = 1) -> int:  # by linear layers: the input itself, or each its own copy in fp32
        return 4 * size * readers if device.widens else n * size

    norm, masks = n * width + 8, width if dropout else 0
    attention = 3 * wide * width
    if maps:  # two maps in fp32, and which entries were kept
        attention += 9 * cut.heads * length
    else:
        attention += 4 * cut.heads + (wide * width if device.widens else 0)
    layer = (
        read(width, 3) + attention + read(width) + read(width) + n * ffn + read(ffn) + 2 * norm + cut.dropouts * masks
    )
    if cut.gated:  # such a family also rotates q and k, and keeps what they were before
        layer += 2 * n * ffn + 2 * n * width
    told = outputs if outputs == 1 else 2 * outputs  # of several layers they are put together
    token = 16 + norm + masks + cut.layers * layer + outputs * read(width, 3) + told * 3 * n * width
    matrices = 3 if cut.gated else 2
    copies = 4 * (cut.layers * (4 * width**2 + matrices * width * ffn) + 3 * width**2) if device.widens else 0
    return batch * length * token + copies


def qkv(cut: Cut, batch: int, length: int, device: Device) -> int:
    """Bytes of the queries, keys and values of one layer."""
    return 3 * device.number * batch * length * cut.width


def teacher_pass(cut: Cut, batch: int, length: int, device: Device) -> int:
    """Bytes that a forward without gradients needs at its largest moment: in an FFN, between its two products."""
    n, width, ffn = device.number, cut.width, cut.ffn * (2 if cut.gated else 1)
    if device.widens:
        product = 4 * width + 4 * ffn  # input and output in fp32
        return batch * length * (2 * n * width + n * ffn + product) + 4 * width * ffn
    return n * batch * length * max(2 * width + 2 * ffn, 5 * width)


def loss_memory(recipe: Recipe, teacher: Cut, student: Cut, device: Device) -> int:
    """Bytes of relation_loss: its blocks of maps, fp32 copies for the sequences of a block, and the gradients it keeps."""
    batch, length, heads = recipe.micro_batch * len(recipe.layers), recipe.length, recipe.relation_heads
    maps = device.block // (4 * length**2)
    sequences = max(1, min(batch, maps // heads))
    block = min(device.block, 4 * batch * heads * length**2)
    copies = 4 * sequences * length * (4 * teacher.width + 6 * student.width)
    kept = sum(1 if a == b else 2 for a, b in recipe.relations) * device.number * batch * length * student.width
    if VALUE_MSE in recipe.pairs:  # projected values, and the difference in fp32 with its square
        kept += (device.number + 8) * batch * length * teacher.width
    return device.blocks * block + copies + kept


# --- a student under DeepSpeed ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """Bytes of a student's engine on one rank.

    Held all the time: ``weights``, fp32 ``masters`` (of bf16), Adam's ``moments``, ``gradients`` and ``buckets`` that are
    never released. ``accumulated``: gradients between micro-batches. Beside these, ``forward``: weights that are gathered in
    a forward and kept until backward; ``bucket``: allocated in a backward; ``reduction``: its end, when all gradients are
    there and are averaged; ``update``: gradients and copies in the optimizer's step.
    """

    weights: float
    masters: float
    moments: float
    gradients: float = 0
    buckets: float = 0
    accumulated: float = 0
    forward: float = 0
    bucket: float = 0
    reduction: float = 0
    update: float = 0
    moments_at_start: bool = False  # rather than in the first update

    @property
    def standing(self) -> float:
        return self.weights + self.masters + self.moments + self.gradients + self.buckets

    @property
    def at_start(self) -> float:
        """Bytes before the first update."""
        return self.weights + self.masters + self.gradients + (self.moments if self.moments_at_start else 0)


def zero_config(recipe: Recipe) -> dict:
    """``zero_optimization`` of the student's ds_config."""
    return load_ds_config(recipe.student.ds_config, recipe).get("zero_optimization", {})


def student_state(student: Cut, recipe: Recipe, world: int, device: Device) -> State:
    """What DeepSpeed makes of the student's parameters at its ZeRO stage over ``world`` ranks."""
    zero, count, n = zero_config(recipe), student.parameters, NUMBER[recipe.precision]
    stage, share = zero.get("stage", 0), student.parameters / world
    bucket = zero.get("reduce_bucket_size", 500_000_000)
    if device.cpu:  # an allocated bucket costs what is written to it
        bucket = min(bucket, count)
    copy = 4 * min(bucket, count)  # gradients are put side by side to be sent, by stages 1 and 2 in fp32
    norm = 8 * min(student.largest, share)  # stages 1 to 3 square a gradient in fp64
    if stage == 0:
        return State(
            weights=n * count,
            masters=4 * count if n == 2 else 0,
            moments=8 * count,
            accumulated=n * count,
            reduction=2 * n * count,
            update=(n + (4 if n == 2 else 0)) * count,
            moments_at_start=n == 2,
        )
    sharded = {"masters": 4 * share, "moments": 8 * share}
    if stage == 3:
        return State(
            weights=n * share,
            **sharded,
            gradients=4 * share,
            buckets=n * bucket,
            forward=n * count if world > 1 else 0,
            update=8 * min(student.largest / world, share),
        )
    if n == 2 and stage == 1:  # DeepSpeed takes its BF16_Optimizer, which keeps whole fp32 gradients
        buckets = min(count, bucket + student.largest)  # a bucket is sent with the gradient that overfills it
        return State(
            weights=n * count,
            **sharded,
            gradients=4 * count,
            accumulated=n * count,
            reduction=n * count + (4 + n) * buckets,
            update=n * count + (n * count if device.cpu and world > 1 else 0),
        )
    if n == 2:
        reduction, accumulated = n * bucket + copy + 4 * share, 4 * share
    else:  # the gradients themselves move into the bucket
        whole = 4 * count if stage == 1 else 4 * share
        reduction, accumulated = max(4 * count, 4 * bucket) + max(copy, 4 * share), whole
    return State(
        weights=n * count,
        **sharded,
        accumulated=accumulated,
        bucket=0 if device.cpu else n * bucket,
        reduction=reduction,
        update=4 * share + max(norm, 4 * share),
    )


# --- the teacher's hosting --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hosting:
    """How the teacher is kept, ``replicate`` or ``zero3``, and why.

    ``parameters``: up to its layer; ``per_rank``: those that one rank holds; ``shards``: over how many ranks.
    """

    kind: str
    reason: str
    parameters: int
    per_rank: float
    shards: int = 1


def hosting_of(
    recipe: Recipe, parameters: int, embeddings: int, memory: float, world: int, local_world: int
) -> Hosting:
    """What the recipe says, or with ``auto`` a replica unless it takes more than a quarter of a rank's ``memory`` [bytes].

    ``parameters`` are all up to the teacher's layer; its ``embeddings`` are whole on each rank in any case. Raises UserError
    if a node has one rank only, over which nothing can be sharded.
    """
    wanted, reason = recipe.teacher.hosting, "the recipe says so"
    if wanted == "auto":
        weights = parameters * NUMBER[recipe.precision]
        large = weights > memory / 4
        wanted = "zero3" if large and world > 1 else "replicate"
        reason = f"its weights take {weights / GIB:.2f} GiB of {memory / GIB:.1f} GiB a rank"
        reason += ", more than a quarter" if large else ""
        reason += ", and there is one rank only" if world == 1 else ""
    if wanted == "replicate":
        return Hosting(wanted, reason, parameters, parameters)
    shards = world if recipe.teacher.shard_group == "world" else local_world
    if shards == 1 < world:
        raise UserError(
            f"{recipe.source}: teacher.shard_group = 'node': there is one rank on each node, so nothing is sharded; "
            "use 'world', or hosting = 'replicate'"
        )
    return Hosting(wanted, reason, parameters, embeddings + (parameters - embeddings) / shards, shards)


def gathered(cut: Cut, shards: int, recipe: Recipe, device: Device) -> float:
    """Bytes of gathered layers of a sharded teacher at the largest moment of a forward.

    As DeepSpeed does it: at a layer's turn it gathers what is not on its way, waits, and starts to gather as many parameters
    more as its bucket has, whatever was started before, up to a limit of live ones. A gather is received in one buffer, out
    of which all its parameters are copied when the first is waited for; the buffer goes when the last has been.
    """
    if shards == 1:
        return 0
    bucket, limit = _prefetching(recipe)
    copies = not _teacher_zero(recipe).get("stage3_allgather_sequential")  # which receives a parameter in its own place
    started = copied = released = peak = 0
    buffers: list[tuple[int, int]] = []  # parameters from, to
    for size in [cut.layer] * cut.layers + [cut.last]:
        turn = released + size
        if started < turn:
            buffers.append((started, turn))
            started = turn
        copied = max([copied, *(end for begin, end in buffers if begin < turn)])
        held = sum(end - begin for begin, end in buffers) if copies else 0
        peak = max(peak, (copied if copies else started) - released + held)
        buffers = [(begin, end) for begin, end in buffers if end > turn]
        ahead = max(0, min(bucket, limit - (started - released), cut.body - started))
        buffers.append((started, started + ahead))
        started += ahead
        held = sum(end - begin for begin, end in buffers) if copies else 0
        # gloo, the CPUs' library, receives in a buffer of its own first
        peak = max(peak, (copied if copies else started) - released + held + (ahead if device.cpu else 0))
        released = turn
    return device.number * peak


def gathered_ahead(cut: Cut, recipe: Recipe) -> float:
    """The share of a sharded teacher's layer that is on its way, at least, while the layer before it computes."""
    bucket, limit = _prefetching(recipe)
    return min(1.0, max(0, min(bucket, limit - cut.layer)) / cut.layer) if cut.layer else 1.0


def _prefetching(recipe: Recipe) -> tuple[int, int]:
    """How many parameters DeepSpeed starts to gather at a layer's turn, and how many may be gathered at a time."""
    zero = _teacher_zero(recipe)
    return zero.get("stage3_prefetch_bucket_size", 50_000_000), zero.get("stage3_max_live_parameters", 1_000_000_000)


def offloads(recipe: Recipe) -> bool:
    """Whether the teacher's ds_config keeps its shares in the host's memory."""
    return (_teacher_zero(recipe).get("offload_param") or {}).get("device", "none") != "none"


def _teacher_zero(recipe: Recipe) -> dict:
    return load_ds_config(recipe.teacher.ds_config, recipe)["zero_optimization"]


# --- all together -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """A rank's memory in bytes: ``parts`` that are held or needed, and the total at the largest moment of each ``phase``."""

    parts: dict[str, float]
    phases: dict[str, float]
    states: list[State] = field(default_factory=list, repr=False)

    @property
    def peak(self) -> float:
        return max(self.phases.values())

    @property
    def largest_phase(self) -> str:
        return max(self.phases, key=self.phases.__getitem__)


def memory_of(
    recipes: list[Recipe],
    teacher: Cut,
    students: list[Cut],
    hosting: Hosting,
    world: int,
    device: Device,
    fixed: float = 0,
) -> Memory:
    """The memory of a rank that trains ``students`` on ``teacher``; ``fixed`` bytes are the framework's own.

    ``recipes`` differ in their student only. Their ``micro_batch`` counts; several micro-batches in a step keep gradients.
    """
    recipe = recipes[0]
    n, length, micro = device.number, recipe.length, recipe.micro_batch
    accumulates = recipe.batch > world * micro
    states = [student_state(cut, one, world, device) for cut, one in zip(students, recipes, strict=True)]
    weights = n * hosting.per_rank
    if hosting.kind == "zero3" and offloads(recipe) and not device.cpu:
        weights = n * teacher.embeddings
    layers = gathered(teacher, hosting.shards, recipe, device)
    own = len(teacher_layers(recipes)) * qkv(teacher, recipe.teacher_batch, length, device)
    passing = teacher_pass(teacher, recipe.teacher_batch, length, device)
    tails = 4 * sum(cut.tail for cut in students) if device.cpu else 0  # kept beside the engine, on the host
    kept = [
        activations(cut, micro, length, one.student.dropout, device, len(one.layers))
        for cut, one in zip(students, recipes, strict=True)
    ]
    losses = [loss_memory(one, teacher, cut, device) for cut, one in zip(students, recipes, strict=True)]

    standing = fixed + weights + tails + sum(state.standing for state in states)
    between = sum(state.accumulated for state in states) if accumulates else 0
    phases = {
        "between steps": standing,
        # The former window's results are replaced at the end of the new one's pass.
        "teacher's pass": standing + between + layers + max(passing, own) + (own if accumulates else 0),
        "student's pass": standing + between + own
        + max(k + x + s.forward + s.bucket for k, x, s in zip(kept, losses, states, strict=True)),
        "averaging gradients": standing + own
        + max(s.reduction + (between - s.accumulated if accumulates else 0) for s in states),
        "update": standing + own + max(s.update + (between - s.accumulated if accumulates else 0) for s in states),
    }  # fmt: skip
    parts = {
        "framework": fixed,
        "teacher's weights": weights,
        "teacher's gathered layers": layers,
        "teacher's pass": max(passing, own),
        "teacher's q, k, v": own,
        "students' weights": sum(state.weights for state in states),
        "fp32 masters": sum(state.masters for state in states),
        "Adam's moments": sum(state.moments for state in states),
        "gradients": sum(max(state.gradients, state.accumulated) for state in states),
        "DeepSpeed's buckets": sum(state.buckets for state in states) + max(state.bucket for state in states),
        "student's activations": max(kept),
        "relation loss": max(losses),
        "untrained tail, on the host": tails,
    }
    return Memory(parts, phases, states)
