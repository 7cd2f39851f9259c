"""The report's section on quality against size and speed: a chart of each task, as far as sizes and speeds are on record."""

from collections import Counter

from pipeline.report.page import Section, linked
from pipeline.report.scores import Scores, metric_name, title

_SIZE, _SPEED = "size on disk [MB]", "times as fast as {}"


def quality_section(scores: Scores) -> Section:
    """A chart for each task in which two models or forms have a score and a size, or a score and a speed.

    Each is also there as PNG.
    """
    from pipeline.report import charts  # matplotlib takes a second

    drawn: dict[str, bytes] = {}
    for task in scores.tasks:
        if axes := _axes(scores, task):
            points = []
            for model in scores.models:
                figure = scores.figure(model, task)
                places = tuple(values.get(model) for values in axes.values())
                if figure is not None and any(place is not None for place in places):
                    form = scores.form(model)
                    kind = form.get("runtime", "PyTorch"), form.get("precision", "")
                    points.append(
                        charts.Point(scores.folder(model), *kind, figure.mean, places, scores.is_teacher(model))
                    )
            unit = f"{metric_name(scores.primary(task))} [%]"
            svg, png = charts.tradeoff(title(task), unit, list(axes), points)
            drawn |= {f"report-quality-{task}.svg": svg, f"report-quality-{task}.png": png}
    if not drawn:
        return [], {}
    intro = "A dashed line is the teacher's score. Sizes are those of the weights; speeds were measured as said above."
    shown = {name: chart for name, chart in drawn.items() if name.endswith(".svg")}
    return ["## Quality against size and speed", "", intro, "", *linked(shown, "Quality")], drawn


def _axes(scores: Scores, task: str) -> dict[str, dict[str, float]]:
    """{what an axis shows: {model: its place}}, of those axes on which two models with a score have one."""
    scored = [model for model in scores.models if scores.figure(model, task)]
    models, speeds = scores.results.models, scores.results.speeds
    sizes = {name: models[name]["bytes"] / 1e6 for name in scored if isinstance(models[name].get("bytes"), int)}
    found = {_SIZE: sizes}
    references = Counter(record["reference"] for name, record in speeds.items() if name in scored)
    if references:
        (reference, _), *_ = references.most_common(1)
        faster = {name: 1.0 for name in scored if name == reference}
        faster |= {name: speeds[name]["speedup"] for name in scored if _is_over(speeds.get(name), reference)}
        found[_SPEED.format(reference)] = faster
    return {axis: places for axis, places in found.items() if len(places) > 1}


def _is_over(record: dict | None, reference: str) -> bool:
    return record is not None and record["reference"] == reference
