"""Trains a student with a large vocabulary on the ranks of a launch, its word embedding sent whole and as rows.

`python -m tests.parts.row_ranks RECIPE` with RANK set; the first rank prints JSON: by case, the names of what differs between
the two in any bit. The second run is also stopped and resumed half-way.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.engines import rows
from pipeline.engines.both import release
from pipeline.engines.ds_config import DS_CONFIGS
from pipeline.engines.ranks import Ranks, start_ranks
from pipeline.engines.state import prime_optimizer, read_state, set_learning_rate, write_state
from pipeline.engines.student import student_engine
from pipeline.models.fit import student_config_of, teacher_config_of
from pipeline.models.students import build_student
from pipeline.settings.reading import load_recipe
from pipeline.settings.recipe import Recipe
from pipeline.training.start import trained_part

UPDATES = 4
CASES = [(stage, precision) for stage in range(3) for precision in ("fp32", "bf16")]


def engine_of(recipe: Recipe, ranks: Ranks, state: dict | None = None):
    config = teacher_config_of(recipe)
    model = build_student(student_config_of(recipe, config), 1)
    cut, names, _ = trained_part(recipe, model, config.hidden_size)
    if state:
        for name, parameter in cut.named_parameters():
            parameter.data.copy_(state[names[name]])
    engine = student_engine(recipe, ranks, cut)
    if state:
        prime_optimizer(engine)
        write_state(engine, names, state, UPDATES // 2)
    return engine, names


def trained(recipe: Recipe, ranks: Ranks, resumes: bool = False):
    """The state after some updates, and whether rows were sent; with ``resumes`` by an engine that continued half-way."""
    engine, names = engine_of(recipe, ranks)
    sampler = torch.Generator().manual_seed(ranks.rank)
    vocabulary = engine.module.config.vocab_size
    for update in range(UPDATES):
        if resumes and update == UPDATES // 2:
            state = read_state(engine, names, True)
            release()
            engine, names = engine_of(recipe, ranks, state)
        engine.train()
        set_learning_rate(engine, 0.01)
        for micro in range(recipe.accumulation(ranks.world)):
            width = recipe.length - 2 * ranks.rank * micro  # batches are cut to their longest row
            ids = torch.randint(5, vocabulary // 2, (recipe.micro_batch, width), generator=sampler)
            ids[:, 0] = 2
            torch.manual_seed(update)
            engine.backward(sum(x.float().square().mean() for x in engine(ids)))
            engine.step()
        if update == 1:
            engine.eval()
            with torch.no_grad():
                engine(torch.arange(vocabulary - 8, vocabulary)[None])
    assert float(engine.get_global_grad_norm() or 1) > recipe.gradient_clipping
    state = read_state(engine, names, True)
    table = engine.module.embeddings[0].word_embeddings.weight.detach().float()
    everyones = [torch.empty_like(table) for _ in range(ranks.world)]
    dist.all_gather(everyones, table)
    assert all(torch.equal(table, other) for other in everyones)
    sends = engine.word_rows is not None
    release()
    return state, sends


def main() -> None:
    path, ranks, result = Path(sys.argv[1]), start_ranks(), {}
    sends_rows = rows.sends_rows
    for stage, precision in CASES:
        if ranks.first:
            config = json.loads((DS_CONFIGS / f"student_zero{stage}.json").read_text())
            changed = json.dumps(config | {"communication_data_type": "fp32"} if stage == 1 else config)
            path.with_name(f"rows-{stage}.json").write_text(changed)
        dist.barrier()
        keys = [
            f"precision={precision}",
            f"student.ds_config={path.with_name(f'rows-{stage}.json')}",
            "gradient_clipping=1e-3",
        ]
        recipe = load_recipe(path, keys)
        rows.sends_rows = lambda *_: False
        dense, dense_sends = trained(recipe, ranks)
        rows.sends_rows = sends_rows
        assert not dense_sends
        found, sends = trained(recipe, ranks, resumes=True)
        assert sends and recipe.accumulation(ranks.world) == 2
        result[f"stage {stage}, {precision}"] = [name for name in dense if not torch.equal(dense[name], found[name])]
    if ranks.first:
        print(json.dumps(result), flush=True)
    dist.barrier()  # the first rank has the store, which the other one needs until its end
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
