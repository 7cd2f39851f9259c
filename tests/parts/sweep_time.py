"""An update of all students of a sweep next to one of each alone: ``python -m tests.parts.sweep_time RECIPE [key=value …]``.

    python -m tests.parts.sweep_time minilmv2_ablation batch=16 length=128 micro_batch=8 --students full qk-vv 24-heads 12-heads
    python -m tests.parts.sweep_time demo_sweep.toml

Teacher and students have random weights and the recipe's shapes; nothing is downloaded. In one process, interleaved.
"""

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data_prep.cli import Parser, run_command, whole_number
from data_prep.machine import threads
from pipeline.data.inputs import Inputs
from pipeline.engines.agreeing import decided
from pipeline.engines.memory import choose_hosting
from pipeline.engines.ranks import Ranks, start_ranks
from pipeline.engines.student import student_engine
from pipeline.engines.teacher import host_teacher
from pipeline.measuring import interleaved_times, median_ratio, summed
from pipeline.models.configs import planned_config
from pipeline.models.fit import student_config_of, teacher_config_of
from pipeline.models.students import build_student
from pipeline.settings.reading import load_recipes
from pipeline.settings.recipe import Recipe
from pipeline.training.ahead import Ahead
from pipeline.training.start import teacher_part, trained_part
from pipeline.training.step import Clock, update
from pipeline.training.trainee import Trainee, divergence_of
from pipeline.training.which_loss import takes_kernel

TARGET = 0.6  # of the time of each alone, summed, for four students of one shape


def parser() -> argparse.ArgumentParser:
    made = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("recipe")
    made.add_argument("overrides", nargs="*", metavar="key=value")
    made.add_argument("--students", nargs="+", metavar="NAME", help="these alone (default: all)")
    made.add_argument("--repeats", type=whole_number(1), default=5)
    return made


def updates(recipes: list[Recipe], ranks: Ranks, samples: Inputs) -> partial[object]:
    """What makes an update of these students in a run of their own: the teacher is cut where they need it."""
    config = teacher_config_of(recipes[0], planned_config)
    cut, _, layers = teacher_part(recipes, config)
    shapes, generator = {name: p.shape for name, p in cut.named_parameters()}, torch.Generator().manual_seed(1)

    def read(name: str) -> Tensor:
        return torch.randn(shapes[name], generator=generator).mul_(0.02)

    teach, _ = host_teacher(recipes[0], ranks, cut, choose_hosting(recipes[0], ranks, cut), read)
    trainees = []
    for recipe in recipes:
        model = build_student(student_config_of(recipe, config), recipe.student_seed)
        student, names, tail = trained_part(recipe, model, config.hidden_size)
        fused, _ = takes_kernel(recipe, config.hidden_size, ranks)
        engine = student_engine(recipe, ranks, student)
        trainees.append(Trainee(recipe, engine, divergence_of(recipe), fused, names, tail, layers))
    return partial(update, trainees, Ahead(teach), samples, 0, ranks, Clock(ranks.device))


def main() -> None:
    options, ranks = parser().parse_intermixed_args(), start_ranks()
    recipes = load_recipes(options.recipe, options.overrides)
    way = decided(recipes[0], ranks).arithmetic
    recipes = [replace(recipe, arithmetic=way) for recipe in recipes]
    if options.students:
        recipes = [recipe for recipe in recipes if Path(recipe.out).name in options.students]
    first = recipes[0]
    ids = torch.randint(1000, 30000, (first.batch // ranks.world, first.length))
    samples = Inputs(ids).to(ranks.device)
    works = {"together": updates(recipes, ranks, samples)}
    works |= {recipe.out: updates([recipe], ranks, samples) for recipe in recipes}
    times = interleaved_times(works, options.repeats, ranks.device)
    alone = summed(*(times[recipe.out] for recipe in recipes))
    if ranks.first:
        number = threads(ranks.local_world).number
        print(
            f"{first.batch} × {first.length} tokens, {ranks.world} rank(s) on {ranks.device.type}, {number} thread(s)"
        )
        for name, seconds in times.items():
            print(f"{statistics.median(seconds):8.3f} s  {name}")
        ratio = median_ratio(times["together"], alone)
        print(
            f"{statistics.median(alone):8.3f} s  each alone, summed; together / alone = {ratio:.3f} (target: {TARGET})"
        )


if __name__ == "__main__":
    run_command(main)
