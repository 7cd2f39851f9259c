"""The memory model of plan_memory.py beside a real run on this machine's CPU: ``python -m pipeline.plan RECIPE --measure``.

Fresh processes host a teacher of random weights, make the students' engines and take two updates, all by the code of a run, and
look at their resident memory. It rises by what the model should foretell; what the framework itself takes is there before,
since the same is done first with tiny models. Nothing is compiled: a compiler's own memory is not the models'.
"""

import contextlib
import ctypes
import dataclasses
import gc
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from data_prep.errors import Parser, UserError, run_command
from pipeline import encoders, engines, hosts, plan_memory, relations
from pipeline.bench_tools import return_at_once
from pipeline.precision import lacks_bf16_units
from pipeline.ranks import Ranks, start_ranks
from pipeline.recipe import Recipe, load_recipes, teacher_layers
from pipeline.step import Trainee, trained_part, update

STEPS = 2  # Adam's moments come with the first
_ACCUMULATION = 2  # micro-batches of a step, at most: more need no more memory
_SECONDS = 900


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One number of the model and of a run: bytes above the framework's own."""

    what: str
    model: float
    run: float

    @property
    def error(self) -> float:
        return self.model / self.run - 1


def compare(recipe: str, overrides: list[str], ranks: int) -> list[Comparison]:
    """Run it in ``ranks`` fresh processes on this machine and return what the model says beside what was there."""
    if not Path("/proc/self/clear_refs").exists():
        raise UserError("--measure: needs Linux's /proc to see how much memory a process has held")
    load_recipes(recipe, overrides)
    environment = os.environ | {
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(hosts.free_port()), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "",
        "MALLOC_ARENA_MAX": "1",  # one heap: what a thread frees can be given back
    }  # fmt: skip
    command = [sys.executable, "-m", "pipeline.plan_check", recipe, *overrides]
    processes = []
    try:
        for rank in range(ranks):
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE if rank == 0 else subprocess.DEVNULL}
            processes.append(subprocess.Popen(command, env=own, text=True, **streams))
        output, errors = processes[0].communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"--measure: not done after {_SECONDS} s; use a smaller micro_batch or length") from None
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if processes[0].returncode:
        cause = (errors.strip().splitlines() or ["it was killed"])[-1].removeprefix("error: ")
        raise UserError(f"--measure: the run failed: {cause}")
    return [Comparison(**row) for row in json.loads(output.strip().splitlines()[-1])]


# --- in the processes -------------------------------------------------------------------------------------------------


def measured(recipes: list[Recipe], ranks: Ranks) -> list[Comparison]:
    """Model beside run for ``recipes``, on the rank that held most."""
    config = recipes[0].teacher_config()
    for recipe in recipes:
        recipe.check_teacher(config)
    few = ranks.world * recipes[0].micro_batch * min(_ACCUMULATION, recipes[0].accumulation(ranks.world))
    recipes = [dataclasses.replace(one, batch=few, compile="none", teacher=_whole(one)) for one in recipes]
    _rises(*_tiny(recipes, config), ranks)
    rises = _rises(recipes, config, ranks)
    worst = torch.tensor(list(rises.values()))
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    model = _model(recipes, config, ranks)
    return [Comparison(what, model[what], run) for what, run in zip(rises, worst.tolist(), strict=True)]


def _whole(recipe: Recipe):
    """The teacher's settings with a window that comes out with the smaller batch."""
    return dataclasses.replace(recipe.teacher, micro_batch=0)


def _tiny(recipes: list[Recipe], config) -> tuple[list[Recipe], object]:
    """The same run with models of almost no size."""
    width = math.lcm(recipes[0].relation_heads, recipes[0].student.heads)
    heads = recipes[0].student.heads
    small = encoders.student_config(config, 2, width, heads, width, 0.0, recipes[0].teacher.layer)
    small.vocab_size = 100
    teacher = dataclasses.replace(recipes[0].teacher, layer=2)
    student = {"layers": 2, "hidden": width, "heads": heads, "init": "random", "vocab": ""}
    made = [dataclasses.replace(r, teacher=teacher, student=dataclasses.replace(r.student, **student)) for r in recipes]
    return [dataclasses.replace(one, length=16) for one in made], small


def _rises(recipes: list[Recipe], config, ranks: Ranks) -> dict[str, int]:
    """Bytes by which this process's resident memory is higher than at the call, at each stage of a run."""
    recipe, start = recipes[0], _resident()
    *earlier, layer = told = teacher_layers(recipes)
    cut, _ = encoders.empty_encoder(config, layer, earlier=tuple(earlier))
    shapes = {name: p.shape for name, p in cut.named_parameters()}
    generator = torch.Generator().manual_seed(recipe.seed)
    hosting = engines.choose_hosting(recipe, ranks, cut)
    teach, _ = engines.host_teacher(
        recipe, ranks, cut, hosting, lambda name: torch.randn(shapes[name], generator=generator).mul_(0.02)
    )
    rises = {"teacher hosted": _resident() - start}
    trainees = []
    for one in recipes:
        model = encoders.build_student(one.student_config(config), one.seed)
        student, names, tail = trained_part(one, model, config.hidden_size)
        trainees.append(
            Trainee(one, engines.student_engine(one, ranks, student), names=names, tail=tail, teacher_layers=told)
        )
    del student, model
    rises["students' engines made"] = _resident() - start
    ids = torch.randint(
        5, min(config.vocab_size, 1000), (recipe.batch // ranks.world, recipe.length), generator=generator
    )
    for step in range(STEPS):
        clock = _Peaks()
        update(trainees, teach, ids, step, ranks, None, clock)
        rises["between steps"] = _resident() - start
    return rises | {part: peak - start for part, peak in clock.peaks().items()}


class _Peaks:
    """Takes the place of step.Clock: the highest resident memory in each part of an update."""

    def __init__(self):
        self._spans: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def __call__(self, part: str):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        yield
        self._spans.append((part, _status("VmHWM")))

    def peaks(self) -> dict[str, int]:
        """By part of the model's: a student has a forward, the loss, and then a backward in each micro-batch."""
        names = {"teacher": "teacher's pass", "loss": "student's pass", "optimizer": "update"}
        peaks: dict[str, int] = {}
        lost = False
        for part, peak in self._spans:
            name = names.get(part) or ("backward" if lost else "student's pass")
            lost = part == "loss"
            peaks[name] = max(peak, peaks.get(name, 0))
        return peaks | {"peak": max(peaks.values())}


def _model(recipes: list[Recipe], config, ranks: Ranks) -> dict[str, float]:
    """What plan_memory says of this run on this machine."""
    recipe, number = recipes[0], plan_memory.NUMBER[recipes[0].precision]
    teacher = plan_memory.cut_of(config, recipe.teacher.layer)
    students = [plan_memory.cut_of(one.student_config(config), one.student.layers) for one in recipes]
    device = plan_memory.Device(
        number,
        block=relations.block_bytes(torch.device("cpu")),
        blocks=plan_memory.UNCOMPILED_BLOCKS,
        cpu=True,
        widens=recipe.precision == "bf16" and lacks_bf16_units(torch.device("cpu")),
    )
    hosting = engines.choose_hosting(recipe, ranks, encoders.empty_encoder(config, recipe.teacher.layer)[0])
    memory = plan_memory.memory_of(recipes, teacher, students, hosting, ranks.world, device)
    held = number * hosting.per_rank
    engines_made = held + memory.parts["untrained tail, on the host"] + sum(s.at_start for s in memory.states)
    phases = memory.phases
    return {
        "teacher hosted": held,
        "students' engines made": engines_made,
        **{name: phases[name] for name in ("between steps", "teacher's pass", "student's pass", "update")},
        "backward": max(phases["student's pass"], phases["averaging gradients"]),
        "peak": memory.peak,
    }


def _resident() -> int:
    """Bytes of this process that are in memory, once what it no longer needs has been given back."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return _status("VmRSS")


def _status(key: str) -> int:
    return 1024 * int(re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])


def main() -> None:
    parser = Parser(prog="python -m pipeline.plan_check", description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    return_at_once()
    ranks = start_ranks()
    rows = measured(load_recipes(options.recipe, options.overrides), ranks)
    if ranks.first:
        print(json.dumps([dataclasses.asdict(row) for row in rows]), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    run_command(main)
