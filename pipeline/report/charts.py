"""The report's charts: scores with their spread, quality against size and speed, the losses of a run.

The same input gives the same bytes.
"""

import io
import textwrap
import warnings
from typing import Any, NamedTuple

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.artifacts.results import shown_mean

# In the order of their use; readable in grey, and distinct for the colour-blind (Okabe and Ito, 2008).
_COLOURS = ("#1a1a1a", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_TEACHER, _OTHER = "#5f6570", "#0069a6"
_WIDTH = 4.5  # inches, so that text keeps its size on a telephone
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "report",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
}


class Bar(NamedTuple):
    """A model in a chart of scores."""

    name: str
    value: float | None  # None: missing
    spread: float | None
    is_teacher: bool


def bars(title: str, unit: str, rows: list[Bar]) -> bytes:
    """A bar for each model, its sample standard deviation as a whisker; a dashed line at the teacher's."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.75 + 0.3 * len(rows)), layout="constrained")
        axis = figure.subplots()
        for place, row in enumerate(rows):
            _bar(axis, place, row)
        axis.set_yticks(range(len(rows)))
        axis.set_yticklabels([_short(row.name) for row in rows], parse_math=False)
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        ends = [(row.value, row.spread or 0) for row in rows if row.value is not None]
        left = min(0, *(1.1 * (value - spread) for value, spread in ends))
        right = max(1, *(1.05 * (value + spread) for value, spread in ends))
        axis.set_xlim(left, right)
        axis.axvline(0, color="#1a1a1a", linewidth=0.6)
        axis.set_title(title, fontsize=10, fontweight="bold", loc="left", parse_math=False)
        axis.set_xlabel(unit, fontsize=8)
        return _svg(figure)


def _bar(axis: Axes, place: int, row: Bar) -> None:
    """The bar with its figure written at the foot, so that no whisker or line crosses it."""
    if row.value is None:
        axis.annotate("–", (0, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        return
    axis.barh(place, row.value, height=0.66, color=_TEACHER if row.is_teacher else _OTHER)
    if row.spread is not None:
        axis.errorbar(row.value, place, xerr=row.spread, color="#1a1a1a", linewidth=1.1, capsize=2.5)
    if row.is_teacher:
        axis.axvline(row.value, color=_TEACHER, linewidth=0.9, linestyle="--", zorder=0)
    start, colour = 0.0, "#fff"
    if row.value <= 10:  # percent: no room for the words inside
        start, colour = max(0, row.value + (row.spread or 0)), "#1a1a1a"
    text = shown_mean(row.value, row.spread)
    axis.annotate(text, (start, place), (4, 0), textcoords="offset points", va="center", fontsize=8, color=colour)


def losses(title: str, unit: str, rows: list[dict]) -> bytes:
    """Losses of one run by step: held out as points on a line, training as a faint line, a colour for each relation.

    ``rows``: the run's metrics.jsonl. The total is black.
    """
    names = [name for name in ("loss", *relations(rows)) if any(name in row for row in rows)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.1), layout="constrained")
        axis = figure.subplots()
        for number, name in enumerate(names):
            label: str | None = "total" if name == "loss" else name
            for kind, look in (
                ("heldout", {"marker": "o", "markersize": 3, "zorder": 3}),
                ("train", {"linewidth": 0.9, "alpha": 0.4}),
            ):
                own = [(row["step"], row[name]) for row in rows if row.get("kind") == kind and name in row]
                if own:
                    line: dict[str, Any] = {"linewidth": 1.4, "color": _COLOURS[number % len(_COLOURS)], "label": label}
                    axis.plot(*zip(*own, strict=True), **line | look)
                    label = None  # once for both lines
        return _of_losses(figure, axis, title, unit)


def losses_of_several(title: str, unit: str, lines: dict[str, list[tuple[int, float]]]) -> bytes:
    """Held-out losses (step, loss) of several students, by name, as points on a line each."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.1 + 0.1 * len(lines)), layout="constrained")
        axis = figure.subplots()
        for number, (name, points) in enumerate(lines.items()):
            colour, dashes = _COLOURS[number % len(_COLOURS)], ("-", "--", ":")[number // len(_COLOURS) % 3]
            if points:
                steps, found = zip(*points, strict=True)
                axis.plot(
                    steps, found, dashes, color=colour, marker="o", markersize=3, linewidth=1.4, label=_short(name)
                )
        return _of_losses(figure, axis, title, unit, columns=3)


def _of_losses(figure: Figure, axis: Axes, title: str, unit: str, columns: int = 5) -> bytes:
    """The chart, once its lines are drawn: labels, and a legend of so many columns."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(ticker.NullLocator())
    axis.grid(axis="y", linewidth=0.4, color="#ddd")
    axis.set_title(_short(title, 48), fontsize=10, fontweight="bold", loc="left", parse_math=False)
    axis.set_xlabel("step", fontsize=8)
    axis.set_ylabel(textwrap.fill(f"loss [{unit}], log scale", 40), fontsize=8)
    legend = figure.legend(frameon=False, fontsize=8, ncols=columns, loc="outside lower center")
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _svg(figure)


class Point(NamedTuple):
    """A model or one of its forms in a chart of quality."""

    folder: str  # the model's name; its forms have the same colour
    runtime: str
    precision: str
    quality: float
    places: tuple[float | None, ...]  # on each axis; None: not measured
    is_teacher: bool


_MARKERS = {"PyTorch": "o", "ONNX Runtime": "s", "OpenVINO": "^"}


def tradeoff(title: str, unit: str, axes: list[str], points: list[Point]) -> tuple[bytes, bytes]:
    """Quality against other figures, a panel for each of ``axes`` (log scale), as SVG and PNG; a dashed line at the teacher's.

    A colour for each model, a mark for each runtime, which is hollow in int8.
    """
    folders = list(dict.fromkeys(point.folder for point in points))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH * (0.25 + 0.75 * len(axes)), 3.2 + 0.16 * len(folders)), layout="constrained")
        panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
        for number, (panel, label) in enumerate(zip(panels, axes, strict=True)):
            for point in points:
                if (place := point.places[number]) is not None:
                    colour = _COLOURS[folders.index(point.folder) % len(_COLOURS)]
                    panel.scatter(place, point.quality, s=42, zorder=3, **_mark(point.runtime, point.precision, colour))
                if point.is_teacher:
                    panel.axhline(point.quality, color=_TEACHER, linewidth=0.9, linestyle="--", zorder=0)
            panel.set_xscale("log")
            panel.margins(x=0.15)
            panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            panel.xaxis.set_minor_locator(ticker.NullLocator())
            panel.grid(linewidth=0.4, color="#ddd")
            panel.set_xlabel(label, fontsize=8, parse_math=False)
        panels[0].set_ylabel(unit, fontsize=8)
        panels[0].set_title(title, fontsize=10, fontweight="bold", loc="left", parse_math=False)
        kinds = list(dict.fromkeys((point.runtime, point.precision) for point in points))
        colours = [("PyTorch", "fp32", _COLOURS[n % len(_COLOURS)], _short(f)) for n, f in enumerate(folders)]
        marks = [(*kind, "#1a1a1a", ", ".join(filter(None, kind))) for kind in kinds if len(kinds) > 1]
        handles = [Line2D([], [], linestyle="", label=name, **_line_mark(*mark)) for *mark, name in (*colours, *marks)]
        legend = figure.legend(handles=handles, frameon=False, fontsize=8, ncols=2, loc="outside lower center")
        for text in legend.get_texts():
            text.set_parse_math(False)
        return _svg(figure), _png(figure)


def _mark(runtime: str, precision: str, colour: str) -> dict[str, Any]:
    fill = "none" if precision == "int8" else colour
    return {"marker": _MARKERS.get(runtime, "D"), "edgecolors": colour, "facecolors": fill}


def _line_mark(runtime: str, precision: str, colour: str) -> dict[str, Any]:
    mark = _mark(runtime, precision, colour)
    return {"marker": mark["marker"], "markeredgecolor": colour, "markerfacecolor": mark["facecolors"]}


def relations(rows: list[dict]) -> list[str]:
    """The relations that a run's rows have losses of, in their order: names of two of q, k, v, or a loss's own name."""
    heldout = next((row for row in rows if row.get("kind") == "heldout"), None)
    if heldout is not None:
        return [name for name in heldout if name not in ("step", "kind", "loss")]
    first = next((row for row in rows if row.get("kind") == "train"), {})
    return [name for name in first if len(name) == 2 and set(name) <= set("qkv")]


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(file, format="png", dpi=160, metadata={"Software": None})
    return file.getvalue()


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font lacks are drawn as boxes
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
