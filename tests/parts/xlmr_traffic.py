"""What ranks of 8 × 512 tokens send each other in a step of a 6 × 384 student with XLM-R's vocabulary.

`python -m torch.distributed.run --standalone --nproc-per-node 4 -m tests.parts.xlmr_traffic STAGE…` prints for each ZeRO stage
the megabytes that a rank receives, counted at DeepSpeed's collectives, with the word embedding sent whole and as it is.
"""

import sys

import torch
import torch.distributed as dist

from pipeline.engines import rows
from pipeline.engines.both import release
from pipeline.engines.ranks import Ranks, start_ranks
from pipeline.engines.student import student_engine
from pipeline.models.configs import planned_config
from pipeline.models.fit import student_config_of
from pipeline.models.students import build_student
from pipeline.plan.sizes import cut_of
from pipeline.plan.times import gradient_bytes
from pipeline.settings.reading import load_recipe
from pipeline.settings.recipe import Recipe
from pipeline.training.start import trained_part
from tests.parts.traffic import Counter

UPDATES = 2  # the second is as all others


def recipe_of(stage: int, ranks: int) -> Recipe:
    config = f"student.ds_config=student_zero{stage}.json"
    overrides = [config, "student.layers=6", f"batch={8 * ranks}", "micro_batch=8", "length=512", "compile=none"]
    return load_recipe("minilm_multilingual_12x384", overrides)


def received(recipe: Recipe, ranks: Ranks, counter: Counter) -> float:
    config = student_config_of(recipe, planned_config(recipe.teacher.model))
    cut, _, _ = trained_part(recipe, build_student(config, 1), 768)
    engine = student_engine(recipe, ranks, cut)
    sampler = torch.Generator().manual_seed(ranks.rank)
    for _ in range(UPDATES):
        counter.received = 0.0
        ids = torch.randint(5, config.vocab_size, (recipe.micro_batch, recipe.length), generator=sampler)
        engine.backward(sum(x.float().square().mean() for x in engine(ids)))
        engine.step()
    del engine, cut
    release()
    return counter.received


def main() -> None:
    ranks, sends_rows = start_ranks(), rows.sends_rows
    counter = Counter(ranks)
    for stage in map(int, sys.argv[1:]):
        recipe = recipe_of(stage, ranks.world)
        rows.sends_rows = lambda *_: False
        whole = received(recipe, ranks, counter)
        rows.sends_rows = sends_rows
        found = received(recipe, ranks, counter)
        if ranks.first:
            shape = cut_of(student_config_of(recipe, planned_config(recipe.teacher.model)), recipe.student.layers)
            planned = gradient_bytes(recipe, shape, ranks.world)
            print(
                f"stage {stage}: {whole / 1e6:.1f} MB with the word embedding whole, {found / 1e6:.1f} MB as rows "
                f"({found / whole:.2f}); planned {planned / 1e6:.1f} MB",
                flush=True,
            )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
