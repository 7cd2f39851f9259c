"""Tiny runs with the teacher's next pass begun ahead, and without: `python -m tests.parts.ahead_ranks FOLDER`, as a rank.

The runs are FOLDER/CASE-ahead and FOLDER/CASE-plain. The first rank writes FOLDER/passes.json: for each run where the teacher's
passes were made, in order, "m" in the main thread, "b" beside it, "|" between two starts; evaluations are left out. And
FOLDER/traffic.json: for each stage and precision the bytes received in a step's last backward until ``before_averaging`` works,
those from there to the end of the step, and how often it worked in two micro-batches.
"""

import json
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import torch

from pipeline.artifacts.run_folder import EARLY
from pipeline.distill import distill
from pipeline.engines.averaging import before_averaging
from pipeline.engines.ranks import Ranks, start_ranks
from pipeline.engines.student import student_engine
from pipeline.models.fit import student_config_of, teacher_config_of
from pipeline.models.students import build_student
from pipeline.settings.reading import load_recipe, load_recipes
from pipeline.training import ahead as ahead_module
from pipeline.training import loop
from pipeline.training.ahead import Ahead
from pipeline.training.start import trained_part
from tests.parts import launching
from tests.parts.runs import engine_options
from tests.parts.traffic import Counter

CASES: dict[str, tuple[str, ...]] = {
    "doc": ("layout=doc", "student.dropout=0.1"),
    "accumulated": ("layout=doc", "micro_batch=1", "teacher.micro_batch=2", "precision=bf16"),
    "zero2": ("student.ds_config=student_zero2.json", "micro_batch=1"),
    "zero3": ("student.ds_config=student_zero3.json", "layout=doc"),
    "sharded": ("teacher.hosting=zero3",),
    "compiled": ("compile=all", "layout=doc"),
    "several": ("layout=doc",),
    "left": (),
}


def main() -> None:
    launching.be_on_host()
    folder, ranks, passes = Path(sys.argv[1]), start_ranks(), {}
    torch.compile = partial(torch.compile, backend="eager")  # Inductor would take a minute
    for case, overrides in CASES.items():
        for way, ahead_of in (("ahead", ahead_module.ahead_of), ("plain", lambda _, teacher: Ahead(teacher))):
            made: list[str] = []

            def noting(run, teacher, ahead_of=ahead_of, made=made, case=case):
                ahead = ahead_of(run, teacher)
                teach = ahead._teach

                def noted(*inputs, **told):
                    if case == "left" and not made and ranks.first:
                        os.kill(os.getpid(), signal.SIGUSR1)
                    made.append("m" if threading.current_thread() is threading.main_thread() else "b")
                    return teach(*inputs, **told)

                ahead._teach = noted
                return ahead

            loop.ahead_of = noting
            recipe = folder / ("several.toml" if case == "several" else "tiny.toml")
            options = ["steps=4", "warmup_steps=1", "eval_every=2", "checkpoint_every=2", *overrides]
            recipes = load_recipes(str(recipe), [f"out={folder / f'{case}-{way}'}", *options])
            while distill(recipes) == EARLY:
                made.append("|")
            passes[f"{case}-{way}"] = "".join(made)
    counter = Counter(ranks)
    cases = [(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")]
    traffic = {
        f"{stage} {precision}": traffic_of(folder, stage, precision, ranks, counter) for stage, precision in cases
    }
    if ranks.first:
        (folder / "passes.json").write_text(json.dumps(passes))
        (folder / "traffic.json").write_text(json.dumps(traffic))


def traffic_of(folder: Path, stage: int, precision: str, ranks: Ranks, counter: Counter) -> tuple[float, float, int]:
    options = engine_options("replicate", stage, precision)
    recipe = load_recipe(str(folder / "tiny.toml"), [*options, "micro_batch=2"])
    teacher = teacher_config_of(recipe)
    student, _, _ = trained_part(recipe, build_student(student_config_of(recipe, teacher), 1), teacher.hidden_size)
    engine, until = student_engine(recipe, ranks, student), []
    for _ in range(recipe.accumulation(ranks.world)):
        output = engine(torch.arange(5, 21).repeat(recipe.micro_batch, 1))
        began = counter.received
        with before_averaging(engine, lambda: until.append(counter.received)):
            engine.backward(sum(x.float().square().sum() for x in output))
        engine.step()
    return until[-1] - began, counter.received - until[-1], len(until)


if __name__ == "__main__":
    main()
