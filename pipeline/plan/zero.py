"""What DeepSpeed's ZeRO stages hold: the state of a student, and the gathered layers of a sharded teacher."""

from dataclasses import dataclass
from typing import Any

from pipeline.engines.ds_config import load_ds_config
from pipeline.engines.traffic import rows_bytes, sends_rows, sent_type, zero_config
from pipeline.models.precision import DTYPES
from pipeline.plan.sizes import Cut, Device
from pipeline.settings.recipe import Recipe


@dataclass(frozen=True)
class State:
    """Bytes of a student's engine on one rank.

    Held all the time: ``weights``, fp32 ``masters`` (of bf16), Adam's ``moments``, ``gradients`` and ``buckets`` that are
    never released. ``accumulated``: gradients between micro-batches. In addition, ``forward``: weights that are gathered in
    a forward and kept until backward; ``bucket``: allocated in a backward; ``reduction``: at its end, when all gradients are
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
        moments = self.moments if self.moments_at_start else 0
        return self.weights + self.masters + self.gradients + moments


def student_state(student: Cut, recipe: Recipe, world: int, device: Device) -> State:
    """DeepSpeed's state for the student's parameters at its ZeRO stage over ``world`` ranks."""
    zero, count, n = zero_config(recipe), student.parameters, DTYPES[recipe.precision].itemsize
    stage, share = zero.get("stage", 0), student.parameters / world
    bucket, sent = zero.get("reduce_bucket_size", 500_000_000), DTYPES[sent_type(recipe)].itemsize
    if device.cpu:  # an allocated bucket costs what is written to it
        bucket = min(bucket, count)
    words = student.words.rows * student.words.width
    averaged, rows = count, 0.0  # parameters that are averaged whole; bytes of rows that are received
    if sends_rows(recipe, student.words, world):
        averaged, rows = count - words, rows_bytes(recipe, student.words, world)
    if stage == 0:
        return State(
            weights=n * count,
            masters=4 * count if n == 2 else 0,
            moments=8 * count,
            accumulated=n * count,
            reduction=n * count + (n + (sent if sent != n else 0)) * averaged + rows,
            update=(n + (4 if n == 2 else 0)) * count,
            moments_at_start=n == 2,
        )
    if stage == 3:
        return State(
            weights=n * share,
            masters=4 * share,
            moments=8 * share,
            gradients=4 * share,
            buckets=sent * bucket,
            forward=n * count if world > 1 else 0,
            update=8 * min(student.largest / world, share),
        )
    if n == 2 and stage == 1:
        return _flat_state(student, world, device, averaged, rows, bucket, sent)

    copy = 4 * min(bucket, count)  # gradients are put side by side to be sent, in fp32
    norm = 8 * min(student.largest, share)  # a gradient is squared in fp64
    accumulated: float
    if n == 2:
        reduction, accumulated = sent * bucket + copy + 4 * share, 4 * share
    else:  # the gradients themselves move into the bucket
        whole = 4 * count if stage == 1 else 4 * share
        reduction, accumulated = max(4 * count, 4 * bucket) + max(copy, 4 * share), whole
    return State(
        weights=n * count,
        masters=4 * share,
        moments=8 * share,
        accumulated=accumulated,
        bucket=0 if device.cpu else sent * bucket,
        reduction=reduction,
        update=4 * share + max(norm, 4 * share),
    )


def _flat_state(student: Cut, world: int, device: Device, averaged: int, rows: float, bucket: int, sent: int) -> State:
    """That of DeepSpeed's BF16_Optimizer, which it takes at stage 1 under bf16 and which keeps whole fp32 gradients.

    ``averaged`` parameters travel whole, and ``rows`` bytes are received of a word embedding that travels as rows.
    """
    count, share = student.parameters, student.parameters / world
    buckets = min(averaged, bucket + student.largest)  # a bucket is sent with the gradient that overfills it
    words = student.words.rows * student.words.width
    group = max(words, count - words) if world > 1 else count
    adding = (2 + 4 * device.cpu) * group  # gradients side by side, and on CPUs once more in the sum's fp32
    gathered_weights = 2 * averaged if device.cpu and world > 1 else 0
    return State(
        weights=2 * count,
        masters=4 * share,
        moments=8 * share,
        gradients=4 * count,
        accumulated=2 * count,
        reduction=2 * count + max(adding, (4 + (sent if sent != 4 else 0)) * buckets + rows),
        update=2 * count + gathered_weights,
    )


def gathered(cut: Cut, shards: int, recipe: Recipe, device: Device) -> float:
    """Bytes of gathered layers of a sharded teacher at the largest moment of a forward.

    As DeepSpeed does it: at a layer's turn it gathers what is not on its way, waits, and starts to gather as many parameters
    more as its bucket has, whatever was started before, up to a limit of live ones. A gather is received in one buffer, from
    which all its parameters are copied when the first is waited for; the buffer is freed after the last.
    """
    if shards == 1:
        return 0
    bucket, limit = _prefetching(recipe)
    copies = not _teacher_zero(recipe).get("stage3_allgather_sequential")  # which receives a parameter in its own place
    started = copied = released = peak = 0
    buffers: list[tuple[int, int]] = []  # parameters from, to

    def held() -> int:
        if not copies:
            return started - released
        return copied - released + sum(end - begin for begin, end in buffers)

    for size in [cut.layer] * cut.layers + [cut.last]:
        turn = released + size
        if started < turn:
            buffers.append((started, turn))
            started = turn
        copied = max([copied, *(end for begin, end in buffers if begin < turn)])
        peak = max(peak, held())
        buffers = [(begin, end) for begin, end in buffers if end > turn]

        ahead = max(0, min(bucket, limit - (started - released), cut.body - started))
        buffers.append((started, started + ahead))
        started += ahead
        received = ahead if device.cpu else 0  # gloo, the CPUs' library, receives in a buffer of its own first
        peak = max(peak, held() + received)
        released = turn
    return device.number * peak


def gathered_ahead(cut: Cut, recipe: Recipe) -> float:
    """The share of a sharded teacher's layer that is on its way, at least, while the layer before it computes."""
    bucket, limit = _prefetching(recipe)
    if not cut.layer:
        return 1.0
    return min(1.0, max(0, min(bucket, limit - cut.layer)) / cut.layer)


def _prefetching(recipe: Recipe) -> tuple[int, int]:
    """The number of parameters that DeepSpeed starts to gather at a layer's turn, and of those gathered at a time."""
    zero = _teacher_zero(recipe)
    return zero.get("stage3_prefetch_bucket_size", 50_000_000), zero.get("stage3_max_live_parameters", 1_000_000_000)


def offloads(recipe: Recipe) -> bool:
    """Whether the teacher's ds_config keeps its shares in the host's memory."""
    offload: dict[str, Any] = _teacher_zero(recipe).get("offload_param") or {}
    return bool(offload.get("device", "none") != "none")


def _teacher_zero(recipe: Recipe) -> dict[str, Any]:
    zero: dict[str, Any] = load_ds_config(recipe.teacher.ds_config, recipe)["zero_optimization"]
    return zero
