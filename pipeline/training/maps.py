"""Pictures of what is being learnt: teacher next to student, one row for each relation, for one sentence."""

from pathlib import Path

import torch
from torch import Tensor

from pipeline.relations import QKV, relation

SENTENCE = "The small student learns where its large teacher looks."

_TITLES = {
    "qk": "attention (q·k)",
    "vv": "value relation (v·v)",
    "qq": "query relation (q·q)",
    "kk": "key relation (k·k)",
}


def relation_maps(teacher: QKV, student: QKV, pairs: tuple[str, ...], heads: int) -> list[tuple[Tensor, Tensor]]:
    """For each pair the teacher's and the student's map [T, T] of one sentence ([1, T, width]), averaged over heads."""

    def mean_map(qkv: QKV, pair: str) -> Tensor:
        first, second = (getattr(qkv, letter) for letter in pair)
        return relation(first, second, heads)[0].mean(0).cpu()

    return [(mean_map(teacher, pair), mean_map(student, pair)) for pair in pairs]


def relation_image(maps: list[tuple[Tensor, Tensor]], cell: int = 16) -> Tensor:
    """The maps as one grey image, uint8 [height, width]: a row for each pair, teacher left, student right, 0 black."""
    rows = []
    for pair in maps:
        top = max(float(m.max()) for m in pair)
        left, right = (
            (m / top * 255).to(torch.uint8).repeat_interleave(cell, 0).repeat_interleave(cell, 1) for m in pair
        )
        rows.append(torch.cat([left, torch.full((len(left), cell), 255, dtype=torch.uint8), right], 1))
        rows.append(torch.full((cell, rows[-1].shape[1]), 255, dtype=torch.uint8))
    return torch.cat(rows[:-1])


def save_figure(path: Path, maps: list[tuple[Tensor, Tensor]], pairs: tuple[str, ...], tokens: list[str]) -> None:
    """The maps as a labelled PNG."""
    import matplotlib  # takes a second, and training draws without it

    matplotlib.use("Agg")
    from matplotlib.pyplot import close, subplots

    figure, axes = subplots(len(pairs), 2, figsize=(9, 4.2 * len(pairs)), squeeze=False, layout="constrained")
    for row, name, pair in zip(axes, pairs, maps, strict=True):
        top = max(float(m.max()) for m in pair)
        for axis, values, who in zip(row, pair, ("teacher", "student"), strict=True):
            image = axis.imshow(values.numpy(), vmin=0, vmax=top, cmap="viridis")
            axis.set_title(f"{who}: {_TITLES.get(name, name)}", fontsize=10)
            axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
            axis.set_yticks(range(len(tokens)), tokens, fontsize=7)
        figure.colorbar(image, ax=row, shrink=0.8, label="probability, mean over heads")
    figure.savefig(path, dpi=110)
    close(figure)
