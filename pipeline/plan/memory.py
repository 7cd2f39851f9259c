"""Bytes of memory that one rank of a run needs, part by part: arithmetic on shapes, no tensor is made.

Whatever is not the models' own follows the code that uses it: autograd and torch's kernels for activations, relations.py
for the loss, DeepSpeed 0.19 for a student's state. ``python -m pipeline.plan RECIPE --measure`` compares it with a real run.
"""

from dataclasses import dataclass, field

from pipeline.engines.hosting import Hosting
from pipeline.models.dropout import goes_in_blocks
from pipeline.pairs import VALUE_MSE
from pipeline.plan.fused import is_fused
from pipeline.plan.sizes import Cut, Device
from pipeline.plan.zero import State, gathered, offloads, student_state
from pipeline.settings.recipe import Recipe, teacher_layers


def activations(cut: Cut, batch: int, length: int, dropout: float, device: Device, outputs: int = 1) -> int:
    """Bytes that autograd keeps of a student's forward of ``batch`` sequences, the q, k, v of ``outputs`` layers included.

    There may be none of these, where vectors are learnt.

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
    if maps:  # a map in fp32, and its product with which entries were kept unless blocks make it again
        attention += (5 if goes_in_blocks(cut.heads, length, length) else 9) * cut.heads * length
    else:
        attention += 4 * cut.heads + (wide * width if device.widens else 0)
    layer = read(width, 3) + attention + read(width)
    layer += read(width) + n * ffn + read(ffn)
    layer += 2 * norm + cut.dropouts * masks
    if cut.gated:  # such a family also rotates q and k, and keeps what they were before
        layer += 2 * n * ffn + 2 * n * width
    kept = outputs if outputs == 1 else 2 * outputs  # of several layers they are put together
    token = 16 + norm + masks + cut.layers * layer + outputs * read(width, 3) + kept * 3 * n * width

    matrices = 3 if cut.gated else 2
    projections = 3 * width**2 if outputs else 0
    copies = 4 * (cut.layers * (4 * width**2 + matrices * width * ffn) + projections) if device.widens else 0
    return batch * length * token + copies


def qkv(cut: Cut, batch: int, length: int, device: Device) -> int:
    """Bytes of the queries, keys and values of one layer."""
    return 3 * device.number * batch * length * cut.width


def outputs_of(recipe: Recipe) -> int:
    """How many layers of the student return q, k, v."""
    return 0 if recipe.embeds else len(recipe.layers)


def taught(recipes: list[Recipe], teacher: Cut, device: Device) -> int:
    """Bytes of what the teacher returns of a window: q, k, v of some layers, or a vector of one text in each row."""
    recipe = recipes[0]
    if recipe.embeds:
        return 4 * recipe.teacher_batch * teacher.width
    return len(teacher_layers(recipes)) * qkv(teacher, recipe.teacher_batch, recipe.length, device)


def teacher_pass(cut: Cut, batch: int, length: int, device: Device, kept: bool = False) -> int:
    """Bytes that a forward without gradients needs at its largest moment: in an FFN, between its two products.

    ``kept``: widened weights are, and not made in a forward.
    """
    n, width, ffn = device.number, cut.width, cut.ffn * (2 if cut.gated else 1)
    if device.widens:
        product = 4 * width + 4 * ffn  # input and output in fp32
        weights = 0 if kept else 4 * width * ffn
        return batch * length * (2 * n * width + n * ffn + product) + weights
    return n * batch * length * max(2 * width + 2 * ffn, 5 * width)


def loss_memory(recipe: Recipe, teacher: Cut, student: Cut, device: Device, several: bool = False) -> int:
    """Bytes of relation_loss: its blocks of maps, fp32 copies for the sequences of a block, and the gradients it keeps.

    If the teacher tells ``several`` layers, those that this student learns from are put together.
    Fused it has no blocks and no copies, but two fp32 numbers a row, head and pair, and in backward of one pair two more.
    Where vectors are learnt it is the pooling's: the student's hidden states in fp32, and their gradient.
    """
    batch, length, heads = recipe.micro_batch * len(recipe.layers), recipe.length, recipe.relation_heads
    if recipe.embeds:
        return 2 * 4 * batch * length * student.width
    gradients = sum(len(set(pair)) for pair in recipe.relations)  # of qq one, of qk two
    kept = gradients * device.number * batch * length * student.width
    if several:
        kept += qkv(teacher, batch, length, device)
    if VALUE_MSE in recipe.pairs:  # projected values, and the difference in fp32 with its square
        kept += (device.number + 8) * batch * length * teacher.width
    if is_fused(recipe, device.chip, teacher, student):
        return kept + (len(recipe.relations) + 1) * 2 * 4 * batch * heads * length

    maps = device.block // (4 * length**2)
    sequences = max(1, min(batch, maps // heads))
    block = min(device.block, 4 * batch * heads * length**2)
    copies = 4 * sequences * length * (4 * teacher.width + 6 * student.width)
    return device.blocks * block + copies + kept


@dataclass(frozen=True)
class Memory:
    """A rank's memory in bytes: ``parts`` that are held or needed, and the total at the largest moment of each phase."""

    parts: dict[str, float]
    phases: dict[str, float]
    states: list[State] = field(default_factory=list, repr=False)

    @property
    def peak(self) -> float:
        return max(self.phases.values())


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

    The students share a teacher's pass. Their ``micro_batch`` counts; several micro-batches in a step keep gradients.
    """
    recipe = recipes[0]
    length, micro = recipe.length, recipe.micro_batch
    accumulates = recipe.batch > world * micro
    pairs = list(zip(students, recipes, strict=True))

    weights, widened = device.number * hosting.per_rank, (4 - device.number) * hosting.widened
    if hosting.kind == "zero3" and offloads(recipe) and not device.cpu:
        weights = device.number * teacher.embeddings
    layers = gathered(teacher, hosting.shards, recipe, device)
    results = taught(recipes, teacher, device)
    passing = max(teacher_pass(teacher, recipe.teacher_batch, length, device, widened > 0), results)
    previous = results if accumulates else 0  # those of the window before are replaced at the end of the new one's pass
    ahead, graph = another_pass(recipe, hosting, world, device, passing)

    states = [student_state(student, each, world, device) for student, each in pairs]
    tails = 4 * sum(cut.tail for cut in students) if device.cpu else 0  # kept outside the engine, on the host
    kept = [activations(student, micro, length, own.student.dropout, device, outputs_of(own)) for student, own in pairs]
    several = len(teacher_layers(recipes)) > 1
    losses = [loss_memory(each, teacher, student, device, several) for student, each in pairs]
    learning = [k + x + s.forward + s.bucket for k, x, s in zip(kept, losses, states, strict=True)]

    standing = fixed + weights + widened + graph + tails + sum(state.standing for state in states)
    between = sum(state.accumulated for state in states) if accumulates else 0
    others = [between - state.accumulated if accumulates else 0 for state in states]  # gradients of the other students
    reductions = [state.reduction + more for state, more in zip(states, others, strict=True)]
    updates = [state.update + more for state, more in zip(states, others, strict=True)]
    phases = {
        "between steps": standing,
        "teacher's pass": standing + between + layers + passing + previous,
        "student's pass": standing + between + results + max(learning),
        "averaging gradients": standing + results + ahead + max(reductions),
        "update": standing + results + ahead + max(updates),
    }
    parts = {
        "framework": fixed,
        "teacher's weights": weights,
        "teacher's widened weights": widened,
        "teacher's gathered layers": layers,
        "teacher's pass": passing,
        "teacher's CUDA graph": graph,
        "teacher's vectors" if recipe.embeds else "teacher's q, k, v": results,
        **parts_of_states(states),
        "student's activations": max(kept),
        "pooling" if recipe.embeds else "relation loss": max(losses),
        "untrained tail, on the host": tails,
    }
    return Memory(parts, phases, states)


def another_pass(recipe: Recipe, hosting: Hosting, world: int, device: Device, passing: int) -> tuple[int, int]:
    """Bytes of the next window's pass, made while gradients are averaged (training/ahead.py), and of one that a CUDA graph
    keeps (engines/graphs.py); ``passing`` is one pass."""
    if hosting.kind != "replicate" or device.cpu:
        return 0, 0
    return passing if world > 1 else 0, passing if recipe.compile == "all" else 0


def parts_of_states(states: list[State]) -> dict[str, float]:
    """The parts of the students' engines."""
    return {
        "students' weights": sum(state.weights for state in states),
        "fp32 masters": sum(state.masters for state in states),
        "Adam's moments": sum(state.moments for state in states),
        "gradients": sum(max(state.gradients, state.accumulated) for state in states),
        "DeepSpeed's buckets": sum(state.buckets for state in states) + max(state.bucket for state in states),
    }
