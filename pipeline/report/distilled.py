"""The distillation of students: losses of the runs, and the stages on record in a model's results."""

from pathlib import Path

from data_prep.cli import UserError
from pipeline.artifacts.metrics import read_metrics
from pipeline.artifacts.results import inner_runs
from pipeline.pairs import VECTORS, loss_note, value_mse_note
from pipeline.paper import size
from pipeline.report.page import NONE, Section, linked, table, words
from pipeline.settings.recipe import INITS

_OF_VECTORS = "; of vectors: 1 − cosine, and squared differences of the texts' similarities"


def runs_section(runs: list[Path]) -> Section:
    """A chart and a row for each run; nothing without runs."""
    if not runs:
        return [], {}
    from pipeline.report import charts  # matplotlib takes a second

    drawn: dict[str, bytes] = {}
    rows: list[list[str]] = []
    names: list[str] = []
    for number, run in enumerate(runs, 1):
        metrics = _metrics(run)
        name = run.resolve().name
        relations = charts.relations(metrics)
        drawn[f"report-losses-{number}.svg"] = charts.losses(name, loss_note(relations), metrics)
        rows += _first_and_last(name, metrics, relations)
        names += relations

    of_vectors = _OF_VECTORS if {*names} & {*VECTORS} else ""
    lines = [
        "## Distillation",
        "",
        "Relation losses: KL divergence of teacher and student, averaged over heads and positions, in "
        f"nats{value_mse_note(names)}{of_vectors}. Points are held-out documents, faint lines are training.",
        "",
        *linked(drawn, "Losses"),
    ]
    if rows:
        lines += [*table(["run", "held-out loss", "first", "last", "remaining"], rows, left=2), ""]
    return lines, drawn


def _metrics(run: Path) -> list[dict]:
    """The rows of a run's metrics. Raises UserError if there are none."""
    metrics = [row for row in read_metrics(run) if isinstance(row, dict) and {"step", "kind"} <= row.keys()]
    if not metrics:
        inner = " ".join(inner_runs(run))
        hint = f"{inner} are its students or stages" if inner else "takes folders that pipeline.distill wrote"
        raise UserError(f"{run}: no rows in metrics.jsonl; --runs {hint}")
    return metrics


def _first_and_last(run: str, metrics: list[dict], relations: list[str]) -> list[list[str]]:
    """Table rows with the first and the last held-out loss of each relation."""
    heldout = [row for row in metrics if row["kind"] == "heldout"]
    if not heldout:
        return []
    first, last = heldout[0], heldout[-1]
    rows = []
    for name in ("loss", *relations):
        if name in first and name in last:
            place, label = "", words(name)
            if name == "loss":
                place, label = words(f"{run}, step {last['step']}"), "total"
            left = f"{100 * last[name] / first[name]:.0f} %" if first[name] else NONE
            rows.append([place, label, f"{first[name]:.4f}", f"{last[name]:.4f}", left])
    return rows


# --- stages on record -------------------------------------------------------------------------------------------------


def stages_of(model: dict) -> list[str]:
    """The stages of a model's distillation, a line each, by the content of its model.json."""
    try:
        return [words(_stage(stage)) for stage in model.get("distillation") or []]
    except (AttributeError, KeyError, TypeError, ValueError):
        return ["by a record that is not a recipe's"]


def _stage(stage: dict) -> str:
    recipe = stage.get("recipe", stage)
    student = recipe["student"]
    shape, start = size(student["layers"], student["hidden"]), student.get("init", "random")
    begun = f"{shape} ({start} start)" if start in INITS else f"{shape} (going on)"
    if recipe.get("transfer") == "embedding":
        return f"{begun} by its teacher's vectors of texts, {_budget(stage)}, learning rate {recipe['learning_rate']:g}"
    where = ", layer to layer up to layer" if recipe.get("transfer") == "layer-to-layer" else " of layer"
    return (
        f"{begun} by {', '.join(recipe['pairs'])} in {recipe['relation_heads']} relation heads"
        f"{where} {recipe['teacher']['layer']}, {_budget(stage)}, learning rate {recipe['learning_rate']:g}"
    )


def budget_of(model: dict) -> str:
    """The steps and tokens that a student was trained on, stage by stage."""
    try:
        return "; then ".join(words(_budget(stage)) for stage in model["distillation"])
    except (KeyError, TypeError, ValueError):
        return "steps that are not on record"


def _budget(stage: dict) -> str:
    recipe = stage.get("recipe", stage)
    tokens = f"{recipe['batch']:,} × {recipe['length']:,} tokens"
    return f"{recipe['steps']:,} steps of {tokens} from {recipe['teacher']['model']}"
