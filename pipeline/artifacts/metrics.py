"""The rows of RUN/metrics.jsonl, read back. Without torch."""

import json
from pathlib import Path

from data_prep.files import write_text


def read_metrics(run: Path) -> list[dict]:
    """The rows of RUN/metrics.jsonl; a half-written last line (a killed run) is left out."""
    path = run / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def source_rows(run: Path, step: int) -> list[tuple[int, dict[str, dict[str, float]]]]:
    """(step, readings and losses by the name of each source) up to ``step``."""
    rows = read_metrics(run)
    return [(row["step"], row["sources"]) for row in rows if row["kind"] == "sources" and row["step"] <= step]


def heldout_rows(run: Path, step: int) -> list[dict]:
    """The held-out losses up to ``step``."""
    return [row for row in read_metrics(run) if row["kind"] == "heldout" and row["step"] <= step]


def keep_until(path: Path, step: int) -> None:
    """Drop the rows after ``step``, which are about to be made again."""
    kept = [row for row in read_metrics(path.parent) if step and row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
