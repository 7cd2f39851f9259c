"""Hosts a teacher in every way on the ranks of a launch: `python -m tests.parts.teacher_ranks RECIPE OUT` with RANK set.

OUT.RANK.json: for each way, the hash of q, k, v, the names that this rank read, and how many parameters of the body it keeps.
"""

import hashlib
import json
import sys

import torch

from pipeline.engines.memory import choose_hosting, memory_per_rank
from pipeline.engines.ranks import start_ranks
from pipeline.engines.teacher import host_teacher
from pipeline.models.cut import empty_encoder
from pipeline.models.loading import load_config, weights_of
from pipeline.models.weights import Weights
from pipeline.settings.reading import load_recipe
from tests.parts import launching

WAYS = {
    "replicate": ["teacher.hosting=replicate"],
    "world": ["teacher.hosting=zero3"],
    "node": ["teacher.hosting=zero3", "teacher.shard_group=node"],
    "prefetch": ["teacher.hosting=zero3", "teacher.ds_config=teacher_zero3_prefetch.json"],
    "offload": ["teacher.hosting=zero3", "teacher.ds_config=teacher_zero3_offload.json"],
}


def noting(read: list[str], weights: Weights, names: dict[str, str]):
    """Reads tensors by their names in the cut, and notes which."""

    def tensor(name: str) -> torch.Tensor:
        read.append(name)
        return weights.tensor(names[name])

    return tensor


def main() -> None:
    launching.be_on_host()
    path, out = sys.argv[1:3]
    ranks, result = start_ranks(), {}
    for way, overrides in WAYS.items():
        for precision in ("fp32", "bf16"):
            recipe = load_recipe(path, [*overrides, f"precision={precision}"])
            config = load_config(recipe.teacher.model)
            cut, names = empty_encoder(config, recipe.teacher.layer)
            weights = weights_of(recipe.teacher.model, "main", config)
            read: list[str] = []
            hosting = choose_hosting(recipe, ranks, cut)
            teach, digests = host_teacher(recipe, ranks, cut, hosting, noting(read, weights, names))
            ids = torch.arange(5, 45, device=ranks.device).view(4, 10)
            output = b"".join(x.float().numpy().tobytes() for _ in range(2) for x in teach(ids))
            kept = sum(getattr(p, "ds_tensor", p).numel() for p in cut.body.parameters())
            result[f"{way} {precision}"] = {
                "output": hashlib.sha256(output).hexdigest(), "read": len(read), "kept": kept,
                "weights": digests[recipe.teacher.layer],
                "shards": hosting.shards, "memory": memory_per_rank(ranks), "finite": bool(torch.isfinite(teach(ids).q).all()),
            }  # fmt: skip
    with open(f"{out}.{ranks.rank}.json", "w") as file:  # noqa: PTH123
        json.dump(result, file)


if __name__ == "__main__":
    main()
