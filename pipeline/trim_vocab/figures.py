"""The figures of a trimming: those of trimming.json, and their lines for a person."""

import numpy as np

from data_prep.cli import some
from pipeline.trim_vocab.pieces import covering

_SHOWN = 20  # most frequent dropped pieces in the report


def language_figures(counts: np.ndarray, needed: np.ndarray, new: np.ndarray) -> dict:
    """A language's tokens, the pieces that it needs for its coverage, and the share of tokens that all kept pieces cover."""
    total = int(counts.sum())
    return {"tokens": total, "pieces": len(needed), "covered": int(counts[new >= 0].sum()) / max(total, 1)}


def dropped(counts: dict[str, np.ndarray], pieces: dict[int, str], new: np.ndarray) -> dict:
    """The number of dropped pieces, the number of the languages' tokens that they were, and the most frequent of them."""
    total = np.sum(list(counts.values()), axis=0)
    lost = np.where(new < 0, total, 0)
    most = [int(i) for i in covering(lost, 1.0)[:_SHOWN]]
    return {
        "pieces": int((new < 0).sum()),
        "tokens": int(lost.sum()),
        "share_of_tokens": int(lost.sum()) / max(int(total.sum()), 1),
        "most_frequent": [[pieces.get(i, ""), int(lost[i])] for i in most],
    }


def lines_of(report: dict) -> list[str]:
    """The content of trimming.json in lines for a person."""
    size, parameters, words = report["bytes"], report["parameters"], report["vocabulary"]
    lines = [
        f"size on disk   {_change(size, 1e6, ' MB')}",
        f"parameters     {_change(parameters, 1e6, ' M')}",
        f"vocabulary     {words['before']:,} → {words['after']:,} pieces, {report['tokenizer']}",
        f"cut by rows    {', '.join(report['cut'])}",
    ]
    if report["left_out"]:
        lines.append(f"left behind    {some(report['left_out'], 6)} (weights in a form that is not read here)")
    if report["rewritten"]:
        lines.append(f"rewritten too  {', '.join(report['rewritten'])}")
    head = f"{'language':16} {'tokens':>13} {'needs':>8} {'kept':>9} {'held-out texts':>15} {'unknown':>18}"
    lines += ["", f"{head} {'cut otherwise':>14} {'tokens a text':>16}"]
    lines += [_language_line(name, figures) for name, figures in report["languages"].items()]
    gone = report["dropped"]
    most = " ".join(f"{piece} ({count:,})" for piece, count in gone["most_frequent"])
    lines += ["", f"dropped: {gone['pieces']:,} pieces, {gone['share_of_tokens']:.4%} of the languages' tokens"]
    return [*lines, f"most frequent of them: {most}"] if most else lines


def _language_line(name: str, figures: dict) -> str:
    row = f"{name:16} {figures['tokens']:13,} {figures['pieces']:8,} {figures['covered']:9.4%}"
    text = figures["heldout"]
    if text is None:
        return f"{row}   none: more text of it, or a larger --heldout in `prepare`, shows how it is cut"
    unknown = f"{text['unknown']['before']:.4%} → {text['unknown']['after']:.4%}"
    length = " → ".join(f"{text['tokens'][side] / text['texts']:.1f}" for side in ("before", "after"))
    return f"{row} {text['texts']:15,} {unknown:>18} {text['cut_otherwise']:14.2%} {length:>16}"


def _change(pair: dict, unit: float, name: str) -> str:
    before, after = pair["before"], pair["after"]
    return f"{before / unit:,.2f} → {after / unit:,.2f}{name} ({after / before - 1:+.1%})"
