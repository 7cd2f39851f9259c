"""What DeepSpeed sends for a student: `python -m tests.parts.traffic RECIPE`, as a rank; the first one prints JSON.

[[stage, dtype on the way, vocabulary, bytes that a rank receives in a step of two micro-batches], …], counted at DeepSpeed's
collectives.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedConfig

from pipeline.engines.both import release
from pipeline.engines.ds_config import DS_CONFIGS
from pipeline.engines.ranks import Ranks, communication_backend, start_ranks
from pipeline.engines.student import student_engine
from pipeline.models.fit import student_config_of, teacher_config_of
from pipeline.models.students import build_student
from pipeline.settings.reading import load_recipe
from pipeline.settings.recipe import Recipe
from pipeline.training.start import trained_part

ROUNDS = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}  # of a ring
# With the larger vocabulary the word embedding travels as rows, except at stage 3.
CASES = [(stage, sent, 50) for stage in range(4) for sent in ("bf16", "fp32")] + [(s, "bf16", 1000) for s in range(4)]


class Counter:
    """Bytes that a rank receives in DeepSpeed's collectives."""

    def __init__(self, ranks: Ranks):
        self.received, self._share = 0.0, (ranks.world - 1) / ranks.world
        self._backend = communication_backend()
        for name in ROUNDS:
            setattr(self._backend, name, self._counted(name, getattr(self._backend, name)))

    def _counted(self, name: str, collective: Any) -> Any:
        def counted(*tensors: Any, **options: Any) -> Any:
            sizes = [x.numel() * x.element_size() for x in (*tensors, *options.values()) if torch.is_tensor(x)]
            self.received += ROUNDS[name] * max(sizes) * self._share
            return collective(*tensors, **options)

        return counted


def recipe_of_case(path: Path, stage: int, sent: str, ranks: int) -> Recipe:
    """Two micro-batches a step on each of ``ranks``; the student's matrices are none that stage 3 keeps whole."""
    config = path.with_name(f"sent-{stage}-{sent}.json")
    overrides = [
        f"student.ds_config={config}",
        "precision=bf16",
        "student.hidden=128",
        f"batch={4 * ranks}",
        "micro_batch=2",
    ]
    return load_recipe(path, overrides)


def shape_of_case(recipe: Recipe, vocabulary: int) -> PreTrainedConfig:
    """The student's config."""
    config = student_config_of(recipe, teacher_config_of(recipe))
    config.vocab_size = vocabulary
    return config


def received(path: Path, stage: int, sent: str, vocabulary: int, ranks: Ranks, counter: Counter) -> float:
    recipe = recipe_of_case(path, stage, sent, ranks.world)
    student, _, _ = trained_part(recipe, build_student(shape_of_case(recipe, vocabulary), 1), 32)
    engine = student_engine(recipe, ranks, student)
    for _ in range(2):  # the second step is as all others
        counter.received = 0.0
        for _ in range(recipe.accumulation(ranks.world)):
            output = engine(torch.arange(5, 21).repeat(recipe.micro_batch, 1))
            engine.backward(sum(x.float().square().sum() for x in output))
            engine.step()
    return counter.received


def main() -> None:
    path, ranks = Path(sys.argv[1]), start_ranks()
    if ranks.first:
        for stage, sent, _ in CASES:
            config = json.loads((DS_CONFIGS / f"student_zero{stage}.json").read_text())
            changed = json.dumps(config | {"communication_data_type": sent})
            path.with_name(f"sent-{stage}-{sent}.json").write_text(changed)
    dist.barrier()
    counter, rows = Counter(ranks), []
    for case in CASES:
        rows.append((*case, received(path, *case, ranks, counter)))
        release()
    if ranks.first:
        print(json.dumps(rows), flush=True)
    dist.barrier()  # the first rank has the store, which the other one needs until its end
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
