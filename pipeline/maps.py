"""A picture of what is being learnt: teacher beside student, one row for each relation, for one sentence."""

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure
from matplotlib.pyplot import close, subplots

from pipeline.relations import QKV, relation

SENTENCE = "The small student learns where its large teacher looks."

_TITLES = {
    "qk": "attention (q·k)",
    "vv": "value relation (v·v)",
    "qq": "query relation (q·q)",
    "kk": "key relation (k·k)",
}


def relation_maps(
    teacher: QKV, student: QKV, pairs: tuple[str, ...], heads: int, tokens: list[str]
) -> Figure:
    """A figure of each relation averaged over its heads; ``teacher`` and ``student`` are [1, T, width], one sentence."""
    figure, axes = subplots(
        len(pairs),
        2,
        figsize=(9, 4.2 * len(pairs)),
        squeeze=False,
        layout="constrained",
    )
    for row, pair in zip(axes, pairs, strict=True):
        maps = [
            relation(getattr(m, pair[0]), getattr(m, pair[1]), heads)[0].mean(0).cpu()
            for m in (teacher, student)
        ]
        top = max(float(m.max()) for m in maps)
        for axis, values, who in zip(row, maps, ("teacher", "student"), strict=True):
            image = axis.imshow(values, vmin=0, vmax=top, cmap="viridis")
            axis.set_title(f"{who}: {_TITLES.get(pair, pair)}", fontsize=10)
            axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
            axis.set_yticks(range(len(tokens)), tokens, fontsize=7)
        figure.colorbar(
            image, ax=row, shrink=0.8, label=f"mean probability over {heads} heads"
        )
    return figure


def save_maps(figure: Figure, path) -> None:
    """Write the figure as PNG and forget it."""
    figure.savefig(path, dpi=110)
    close(figure)
