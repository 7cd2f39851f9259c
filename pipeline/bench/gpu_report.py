"""The page of ``bench gpu``: gpu.json as Markdown, and tables that put its parts next to each other."""

from collections.abc import Iterable, Sequence
from typing import Any

_SHAPE = ("pairs", "heads", "length", "widths")
_NUMBERS = {"measure", "value", "unit", "note", "bench", "parts", "command"}
_MIB = 2**20


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    machine, parts = document["machine"], document["parts"]
    verdict = "all parts passed" if document["passed"] else "not all parts passed"
    skipped = sum(part["state"] == "skipped" for part in parts)
    lines = [
        "# The first hour on a GPU",
        "",
        f"{machine['name']} ({machine['device']}), torch {machine['torch']}; {document['date']}, size {document['size']}: "
        f"{verdict}{f', {skipped} skipped' if skipped else ''}, in {seconds_of(document['seconds'])} of "
        f"{document['minutes']} minutes.",
        "",
        *table(("part", "", "result", "time", "reason"), (_part_row(part) for part in parts)),
    ]
    for title, head, rows in (
        ("The loss, ms", (_SHAPE_OF, *_LOSSES), side_by_side(document, "loss", _LOSSES)),
        ("An update, ms", (_SHAPE_OF, *_UPDATES), updates(document)),
        ("The fused loss: prediction and measurement", _PREDICTION, predictions(document)),
        ("Memory: plan and measurement", _MEMORY, memory(document)),
    ):
        if rows:
            lines += ["", f"## {title}", "", *table(head, rows)]
    for part in parts:
        lines += ["", f"## {part['part']}", ""]
        lines += ["```sh", *part["commands"], "```"] if part["commands"] else [f"Not run: {part['reason']}."]
        lines += _tables(part["rows"])
    return "\n".join(lines) + "\n"


def _part_row(part: dict[str, Any]) -> tuple[str, ...]:
    return part["part"], part["about"], part["state"], seconds_of(part["seconds"]), part["reason"]


# --- parts next to each other -----------------------------------------------------------------------------------------

_SHAPE_OF = "shape"
_LOSSES = ("literal", "ours", "ours, not compiled", "fused", "products")
_UPDATES = ("literal", "torch", "auto", "triton")
_PREDICTION = (_SHAPE_OF, "GPU", "predicted, µs a sequence", "measured", "measured / predicted")
_MEMORY = ("recipe and moment", "plan, MiB", "measured, MiB", "plan / measured")


def side_by_side(document: dict[str, Any], part: str, measures: Sequence[str]) -> list[tuple[str, ...]]:
    """Of each shape in a part, the values of these measures."""
    found: dict[str, dict[str, str]] = {}
    for measure in measures:
        for row in _rows(document, part, measure):
            found.setdefault(_shape(row), {})[measure] = f"{row['value']:.3f}"
    return [(shape, *(values.get(measure, "") for measure in measures)) for shape, values in found.items()]


def updates(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of each setting of the steps, the time by what computes the loss."""
    found: dict[str, dict[str, str]] = {}
    for row in _rows(document, "step", "step"):
        shape = f"{_shape(row)}, teacher {row['teacher']}, students {_shown(row['students'])}, batch {row['batch']}"
        found.setdefault(shape, {})[row.get("loss_kernel", "auto")] = f"{1e3 * row['value']:.2f}"
    return [(shape, *(times.get(kernel, "") for kernel in _UPDATES)) for shape, times in found.items()]


def predictions(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of each shape of the loss: what --static predicts, and what was measured."""
    measured = {_shape(row): row["value"] for row in _rows(document, "loss", "fused, a sequence")}
    found: list[tuple[str, ...]] = []
    for row in _rows(document, "static", "predicted"):
        if (own := measured.get(_shape(row))) is not None:
            numbers = f"{row['value']:.1f}", f"{own:.1f}", f"{own / row['value']:.2f}"
            found.append((_shape(row), row["gpu"], *numbers))
    return found


def memory(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """The memory model's numbers and a run's."""
    found: list[tuple[str, ...]] = []
    for part in document["parts"]:
        for row in part["rows"] if part["part"] == "memory" else []:
            recipe = part["commands"][row["command"]].split()[3]  # python -m pipeline.plan RECIPE
            ratio = row["model"] / max(1, row["run"])
            numbers = f"{row['model'] / _MIB:.1f}", f"{row['run'] / _MIB:.1f}", f"{ratio:.2f}"
            found.append((f"{recipe}: {row['what']}", *numbers))
    return found


def _rows(document: dict[str, Any], part: str, measure: str) -> Iterable[dict[str, Any]]:
    for each in document["parts"]:
        if each["part"] == part:
            yield from (row for row in each["rows"] if row.get("measure") == measure)


def _shape(row: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_shown(row[key])}" for key in _SHAPE if key in row)


# --- tables -----------------------------------------------------------------------------------------------------------


def _tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of a measurement as a table for each case; the doctor's findings as one table."""
    lines: list[str] = []
    findings = [(row["level"], row["check"], row["text"]) for row in rows if "check" in row]
    if findings:
        lines += ["", *table(("", "check", ""), findings)]
    cases: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        if "measure" in row:
            case = ", ".join(f"{key} {_shown(value)}" for key, value in row.items() if key not in _NUMBERS)
            cases.setdefault(case, []).append((row["measure"], f"{row['value']:.4g}", row["unit"], row["note"]))
    for case, measured in cases.items():
        lines += ["", f"{case}:" if case else "All cases:", "", *table(("measure", "value", "unit", "note"), measured)]
    return lines


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    cells = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (head, ["---"] * len(head), *rows)]
    return [f"| {row} |" for row in cells]


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def seconds_of(seconds: float) -> str:
    """Seconds, or minutes and seconds, as people write them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
