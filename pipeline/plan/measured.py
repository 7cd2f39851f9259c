"""The run behind ``python -m pipeline.plan RECIPE --measure``, in each of its processes.

It hosts a teacher of random weights, makes the students' engines and does two updates, all by the code of a run, and looks
at the process's resident memory, or on a GPU at what torch has allocated there. That rises by what the model predicts; what
the framework itself takes is there before, since the same is done first with tiny models. On a CPU nothing is compiled: a
compiler's own memory is not the models'.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedConfig

from data_prep.cli import Parser, run_command
from pipeline.data.inputs import Inputs
from pipeline.engines.agreeing import decided
from pipeline.engines.memory import choose_hosting
from pipeline.engines.ranks import Ranks, start_ranks
from pipeline.engines.student import student_engine
from pipeline.engines.teacher import host_teacher
from pipeline.measuring import process_status, return_freed_memory
from pipeline.models.arithmetic import widens
from pipeline.models.configs import planned_config
from pipeline.models.fit import check_teacher, student_config_of, teacher_config_of
from pipeline.models.precision import DTYPES
from pipeline.models.students import build_student, student_config
from pipeline.plan.comparison import Comparison
from pipeline.plan.memory import memory_of
from pipeline.plan.sizes import UNCOMPILED_BLOCKS, Device, cut_of
from pipeline.relations import block_bytes
from pipeline.settings.reading import load_recipes
from pipeline.settings.recipe import Recipe, teacher_layers
from pipeline.training.ahead import Ahead
from pipeline.training.start import teacher_part, trained_part
from pipeline.training.step import Clock, update
from pipeline.training.trainee import Trainee, divergence_of
from pipeline.training.which_loss import takes_kernel

STEPS = 2  # Adam's moments come with the first
_ACCUMULATION = 2  # micro-batches of a step, at most: more need no more memory


def parser() -> argparse.ArgumentParser:
    """The command line, which comparison.py calls."""
    parser = Parser(prog="python -m pipeline.plan.measured", description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    return parser


def main() -> None:
    options = parser().parse_intermixed_args()
    return_freed_memory()
    ranks = start_ranks()
    rows = measured(load_recipes(options.recipe, options.overrides), ranks)
    if ranks.first:
        print(json.dumps([dataclasses.asdict(row) for row in rows]), flush=True)
    dist.destroy_process_group()


def measured(recipes: list[Recipe], ranks: Ranks) -> list[Comparison]:
    """Model and run of ``recipes``, on the rank that held most."""
    config = teacher_config_of(recipes[0], planned_config)
    for recipe in recipes:
        check_teacher(recipe, config)
    few = ranks.world * recipes[0].micro_batch * min(_ACCUMULATION, recipes[0].accumulation(ranks.world))
    teacher = dataclasses.replace(recipes[0].teacher, micro_batch=0)  # a window that divides the smaller batch too
    arithmetic = decided(recipes[0], ranks).arithmetic
    recipes = [dataclasses.replace(recipe, batch=few, teacher=teacher, arithmetic=arithmetic) for recipe in recipes]
    if ranks.device.type == "cpu":
        recipes = [dataclasses.replace(recipe, compile="none") for recipe in recipes]

    _rises(*_tiny(recipes, config), ranks)
    rises = _rises(recipes, config, ranks)
    worst = torch.tensor(list(rises.values()), device=ranks.device)
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    model = _model(recipes, config, ranks)
    return [Comparison(what, model[what], run) for what, run in zip(rises, worst.tolist(), strict=True)]


def _tiny(recipes: list[Recipe], config: PreTrainedConfig) -> tuple[list[Recipe], PreTrainedConfig]:
    """The same run with models of almost no size."""
    heads = recipes[0].student.heads
    width = math.lcm(heads, *(recipe.relation_heads for recipe in recipes))
    small = student_config(config, 2, width, heads, width, 0.0, recipes[0].teacher.layer)
    small.vocab_size = 100
    teacher = dataclasses.replace(recipes[0].teacher, layer=2)
    made = []
    for recipe in recipes:
        student = dataclasses.replace(recipe.student, layers=2, hidden=width, heads=heads, init="random", vocab="")
        made.append(dataclasses.replace(recipe, teacher=teacher, student=student, length=16))
    return made, small


def _rises(recipes: list[Recipe], config: PreTrainedConfig, ranks: Ranks) -> dict[str, int]:
    """Bytes by which this process's memory is higher than at the call, at each stage of a run."""
    recipe, start = recipes[0], _held(ranks.device)
    cut, _, layers = teacher_part(recipes, config)
    shapes = {name: p.shape for name, p in cut.named_parameters()}
    generator = torch.Generator().manual_seed(recipe.seed)

    def random_weights(name: str) -> Tensor:
        return torch.randn(shapes[name], generator=generator).mul_(0.02)

    teach, _ = host_teacher(recipe, ranks, cut, choose_hosting(recipe, ranks, cut), random_weights)
    rises = {"teacher hosted": _held(ranks.device) - start}

    trainees = [_trainee(own, config, layers, ranks) for own in recipes]
    rises["students' engines made"] = _held(ranks.device) - start

    vocabulary, samples = min(config.vocab_size, 1000), recipe.batch // ranks.world
    inputs = Inputs(torch.randint(5, vocabulary, (samples, recipe.length), generator=generator)).to(ranks.device)
    for step in range(STEPS):
        peaks = Peaks(ranks.device)
        update(trainees, Ahead(teach), inputs, step, ranks, peaks)
        rises["between steps"] = _held(ranks.device) - start
    return rises | {part: peak - start for part, peak in peaks.by_part().items()}


def _trainee(recipe: Recipe, config: PreTrainedConfig, layers: tuple[int, ...], ranks: Ranks) -> Trainee:
    model = build_student(student_config_of(recipe, config), recipe.student_seed)
    student, names, tail = trained_part(recipe, model, config.hidden_size)
    engine = student_engine(recipe, ranks, student)
    fused, _ = takes_kernel(recipe, config.hidden_size, ranks)
    return Trainee(recipe, engine, divergence_of(recipe), fused, names, tail, layers)


class Peaks(Clock):
    """A clock that takes memory, not time: the highest in each part of an update."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(torch.device("cpu"))
        self._gpu = device if device.type == "cuda" else None
        self._peaks: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if self._gpu:
            torch.cuda.reset_peak_memory_stats(self._gpu)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        yield
        highest = torch.cuda.max_memory_allocated(self._gpu) if self._gpu else process_status("VmHWM")
        self._peaks.append((part, highest))

    def by_part(self) -> dict[str, int]:
        """Peaks by the model's parts: a student has a forward, the loss, and then a backward in each micro-batch."""
        names = {"teacher": "teacher's pass", "loss": "student's pass", "optimizer": "update"}
        peaks: dict[str, int] = {}
        after_loss = False
        for part, peak in self._peaks:
            name = names.get(part) or ("backward" if after_loss else "student's pass")
            after_loss = part == "loss"
            peaks[name] = max(peak, peaks.get(name, 0))
        return peaks | {"peak": max(peaks.values())}


def _model(recipes: list[Recipe], config: PreTrainedConfig, ranks: Ranks) -> dict[str, float]:
    """The memory model's numbers for this run on this machine."""
    recipe, number = recipes[0], DTYPES[recipes[0].precision].itemsize
    teacher = cut_of(config, max(teacher_layers(recipes)), recipe.embeds)
    students = [cut_of(student_config_of(own, config), own.student.layers, own.embeds) for own in recipes]
    cpu = ranks.device.type == "cpu"
    device = Device(
        number,
        block=block_bytes(ranks.device),
        blocks=UNCOMPILED_BLOCKS if recipe.compile == "none" else 3,
        cpu=cpu,
        widens=widens(recipe.arithmetic, recipe.precision, ranks.device),
        chip="" if cpu else _chip(recipe, config, ranks),
    )
    hosting = choose_hosting(recipe, ranks, teacher_part(recipes, config)[0])
    memory = memory_of(recipes, teacher, students, hosting, ranks.world, device)
    held = hosting.weights(number)
    engines_made = held + memory.parts["untrained tail, on the host"] + sum(state.at_start for state in memory.states)
    phases = memory.phases
    return {
        "teacher hosted": held,
        "students' engines made": engines_made,
        **{name: phases[name] for name in ("between steps", "teacher's pass", "student's pass", "update")},
        "backward": max(phases["student's pass"], phases["averaging gradients"]),
        "peak": memory.peak,
    }


def _chip(recipe: Recipe, config: PreTrainedConfig, ranks: Ranks) -> str:
    """The GPU's chip as plan names it, or "" where the loss is not fused."""
    major, minor = torch.cuda.get_device_capability(ranks.device)
    return f"sm_{major}{minor}" if takes_kernel(recipe, config.hidden_size, ranks)[0] else ""


def _held(device: torch.device) -> int:
    """Bytes of this process that are in memory, or allocated on its GPU, once what it no longer needs has been given back."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return process_status("VmRSS")


if __name__ == "__main__":
    run_command(main)
