"""The students of a run side by side, which `python -m pipeline.report OUT` makes: OUT/report.md, its chart, and report.html.

OUT is the folder of several students or stages. What they differ in, their held-out losses first and last, their chart.
"""

import json
from pathlib import Path

from data_prep.cli import UserError
from data_prep.files import read_json
from pipeline.artifacts.metrics import heldout_rows
from pipeline.artifacts.results import inner_runs
from pipeline.artifacts.run_folder import differing, flat
from pipeline.pairs import loss_note
from pipeline.report.kept import kept
from pipeline.report.page import NONE, Section, linked, table, words
from pipeline.settings.recipe import Recipe
from pipeline.settings.values import recipe_of

_SCALE = (
    "The losses of students that learn other relations, with other relation heads, or from another layer of the teacher "
    "are of different scales. Such students are compared by their scores in tasks."
)


def side_by_side(folder: Path, scores: Path | None = None, reference: str | None = None) -> tuple[str, Section]:
    """The title of a report on the runs inside ``folder``, and its lines and charts.

    ``scores``: a results folder whose models are compared in it; ``reference``: the teacher's name there. Raises UserError
    for a run whose recipe.json is missing or torn.
    """
    recipes = {str(Path(run).relative_to(folder)): _recipe(Path(run)) for run in inner_runs(folder)}
    losses = {name: heldout_rows(folder / name, recipe.steps) for name, recipe in recipes.items()}
    drawn: dict[str, bytes] = {}
    if any(losses.values()):
        from pipeline.report import charts  # matplotlib takes a second

        parts = {part for recipe in recipes.values() for part in recipe.parts}
        lines = {name: [(row["step"], row["loss"]) for row in rows] for name, rows in losses.items()}
        drawn["report-losses.svg"] = charts.losses_of_several(folder.resolve().name, loss_note(parts), lines)
    text = [
        *_settings(recipes),
        *_losses(recipes, losses),
        *linked(drawn, "Held-out losses"),
        *([] if scores is None else ["## Scores", "", *kept(scores, reference)]),
        "## Next",
        "",
        *(f"    ./run.sh export {folder / name} {folder / name}-student" for name in recipes),
    ]
    return f"{folder.resolve().name}: {len(recipes)} students side by side", (text, drawn)


def _recipe(run: Path) -> Recipe:
    path = run / "recipe.json"
    if not path.is_file():
        raise UserError(
            f"{path}: missing, so this run cannot be compared with those beside it; resume it, or move it away"
        )
    return recipe_of(read_json(path), str(path))


def _settings(recipes: dict[str, Recipe]) -> list[str]:
    """A table of the keys in which students differ, and a line on what they share."""
    values = {name: recipe.to_dict() for name, recipe in recipes.items()}
    keys = differing(list(values.values()))
    rows = [[words(name), *(_cell(flat(own).get(key)) for key in keys)] for name, own in values.items()]
    first = next(iter(recipes.values()))
    teacher = "" if "teacher.model" in keys else f"Teacher: {words(first.teacher.model)}. "
    return [f"{teacher}All else is the same:", "", *table(["student", *map(words, keys)], rows), ""]


def _cell(value: object) -> str:
    if isinstance(value, list):
        return words(", ".join(map(str, value)))
    return words(value if isinstance(value, str) else json.dumps(value))


def _losses(recipes: dict[str, Recipe], losses: dict[str, list[dict]]) -> list[str]:
    """A table of held-out losses: the total first and last, and each part's last."""
    parts = list(dict.fromkeys(part for recipe in recipes.values() for part in recipe.parts))
    head = ["student", "step", "held-out loss, first", "last", "remaining", *map(words, parts)]
    rows = []
    for name, recipe in recipes.items():
        if not losses[name]:
            rows.append([words(name), *[NONE] * (len(head) - 1)])
            continue
        first, last = losses[name][0], losses[name][-1]
        left = f"{100 * last['loss'] / first['loss']:.0f} %" if first["loss"] else NONE
        shown = [f"{last[part]:.4f}" if part in last else NONE for part in parts]
        step = f"{last['step']} of {recipe.steps}"
        rows.append([words(name), step, f"{first['loss']:.4f}", f"{last['loss']:.4f}", left, *shown])
    scales = {
        (recipe.parts, recipe.relation_heads, recipe.teacher.layer, recipe.transfer) for recipe in recipes.values()
    }
    return [*table(head, rows), "", *([_SCALE, ""] if len(scales) > 1 else [])]
