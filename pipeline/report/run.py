"""The report of one run, which `python -m pipeline.report RUN_DIR STUDENT_FOLDER` makes.

It writes RUN_DIR/report.md with RUN_DIR/losses.svg and RUN_DIR/relations.png, and RUN_DIR/report.html, one file with both
pictures inside: sizes, measured speed-up, held-out losses before and after, their chart, and the next commands.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from data_prep.cli import UserError
from data_prep.files import write_atomic, write_text
from pipeline.artifacts import checkpoints
from pipeline.artifacts.metrics import heldout_rows, read_metrics, source_rows
from pipeline.measuring import device_here, device_name, forward_seconds, made_up_batches
from pipeline.models.counting import count_parameters
from pipeline.models.cut import cut_encoder
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.pairs import PAIRS, loss_note
from pipeline.report import charts
from pipeline.report.kept import kept
from pipeline.report.page import html
from pipeline.settings.values import recipe_of
from pipeline.training.maps import SENTENCE, relation_maps, save_figure

transformers_logging.disable_progress_bar()

LOSSES = "losses.svg"


def report(run: Path, student_folder: Path, scores: Path | None = None, reference: str | None = None) -> str:
    """The report's Markdown text, which is also written to the run folder with its pictures, and as HTML.

    ``scores``: a results folder whose models are compared in it; ``reference``: the teacher's name there, if it is not clear.
    """
    checkpoint = checkpoints.newest_of(run)
    recipe = checkpoint.info["recipe"]
    student = load_student_of(run, checkpoint, student_folder)
    teacher = load_model(recipe["teacher"]["model"], recipe["teacher"]["revision"], torch.float32)
    learnt = recipe_of(recipe, str(checkpoint.path))
    if not learnt.embeds:
        draw(run / "relations.png", recipe, teacher, student, student_folder)
    lines = [
        f"# {escape(run.resolve().name, quote=False)}: {checkpoint.step} of {recipe['steps']} steps",
        "",
        *sizes(teacher, student),
        "",
        speed_line(teacher, student, recipe["length"]),
        "",
        *([] if scores is None else kept(scores, reference)),
        *losses(run, checkpoint.step, learnt.parts),
        "",
        *linked_chart(run, checkpoint.step, learnt.parts),
        *sources(run, checkpoint.step),
        *([] if learnt.embeds else ["![Relations of teacher and student for one sentence](relations.png)", ""]),
        "## Next",
        "",
        f"    tensorboard --logdir {run / 'tensorboard'}        # curves and relation maps of this run",
        f"    python -c 'from transformers import AutoModel; print(AutoModel.from_pretrained(\"{student_folder}\"))'",
        "    ./run.sh prep --help                           # your own text",
        "    ./run.sh distill my_recipe.toml                # your own teacher; start from pipeline/recipes/demo.toml",
    ]
    text = "\n".join(lines) + "\n"
    pictures = {path.name: path.read_bytes() for path in (run / LOSSES, run / "relations.png") if path.exists()}
    write_text(run / "report.html", html(f"{run.resolve().name}: the report of a run", text, pictures))
    write_text(run / "report.md", text)
    return text


def load_student_of(run: Path, checkpoint: checkpoints.Checkpoint, folder: Path) -> PreTrainedModel:
    """The exported student, which must be that of this run's newest checkpoint."""
    remedy = f"make it with ./run.sh export {run} {folder}"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no exported student there; {remedy}")
    student = load_model(str(folder), "main", torch.float32)
    own, weights = student.state_dict(), checkpoint.weights()
    if own.keys() != weights.keys() or not all(torch.equal(own[name], weights[name]) for name in own):
        raise UserError(f"{folder}: not the student of {run} at step {checkpoint.step}; {remedy}")
    return student


def sizes(teacher: PreTrainedModel, student: PreTrainedModel) -> list[str]:
    """A table of both models' parameters, counted as in the papers."""
    rows = [
        "| | layers | width | word embeddings | Transformer | all parameters |",
        "|---|---|---|---|---|---|",
    ]
    for name, model in (("teacher", teacher), ("student", student)):
        count = count_parameters(model.config)
        millions = " | ".join(f"{count[key] / 1e6:.2f} M" for key in ("embeddings", "transformer", "total"))
        rows.append(f"| {name} | {model.config.num_hidden_layers} | {model.config.hidden_size} | {millions} |")
    return rows


def speed_line(
    teacher: PreTrainedModel, student: PreTrainedModel, length: int, sequences: int = 8, batches: int = 7
) -> str:
    """One sentence: the student's measured speed-up over the teacher, medians of interleaved forwards of made-up ids."""
    device = device_here()
    models = {"teacher": teacher, "student": student}
    for model in models.values():
        model.to(device)  # type: ignore[arg-type]  # the decorator of transformers hides its signature
    seconds = forward_seconds(models, made_up_batches(models, batches, sequences, length), device)
    slow, fast = seconds["teacher"], seconds["student"]
    return (
        f"Speed on {device_name(device, torch.float32)}, batches of {sequences} × {length}: teacher "
        f"{slow * 1e3:.0f} ms, student {fast * 1e3:.0f} ms, **{slow / fast:.2f} times faster**."
    )


def losses(run: Path, step: int, parts: Sequence[str]) -> list[str]:
    """A table of held-out losses by part, first and last."""
    heldout = heldout_rows(run, step)
    if not heldout:
        return ["No held-out documents: no held-out losses."]
    first, last = heldout[0], heldout[-1]
    rows = [
        f"| held-out loss ({loss_note(parts)}) | step {first['step']} | step {last['step']} | remaining |",
        "|---|---|---|---|",
    ]
    for name in ("loss", *parts):
        rows.append(f"| {name} | {first[name]:.4f} | {last[name]:.4f} | {100 * last[name] / first[name]:.0f} % |")
    return rows


def linked_chart(run: Path, step: int, parts: Sequence[str]) -> list[str]:
    """Draw RUN/losses.svg, the losses up to ``step``; returns the lines that show it: none without losses."""
    rows = [row for row in read_metrics(run) if row["step"] <= step and row["kind"] in ("train", "heldout")]
    if not rows:
        (run / LOSSES).unlink(missing_ok=True)
        return []
    write_atomic(run / LOSSES, charts.losses(run.resolve().name, loss_note(parts), rows))
    return [f"![Losses by step: points held out, faint lines training]({LOSSES})", ""]


def sources(run: Path, step: int) -> list[str]:
    """A table of the tokens read of each source, and its held-out loss first and last; nothing for a single source."""
    found = source_rows(run, step)
    if not found:
        return []
    (begin, first), (end, last) = found[0], found[-1]
    packed = any("a_row" in row for row in last.values())
    more = ["pieces a row", "not padding"] if packed else []
    columns = [
        "source",
        "tokens read",
        "share",
        "planned",
        "epochs",
        *more,
        f"held-out loss, step {begin}",
        f"step {end}",
    ]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, row in sorted(last.items(), key=lambda named: -named[1].get("tokens", 0)):
        read = ["–"] * (4 + len(more))
        if "tokens" in row:
            read = [f"{row['tokens']:,}", f"{row['share']:.2%}", f"{row['planned']:.2%}", f"{row['epochs']:.2f}"]
            read += [f"{row['a_row']:.1f}", f"{row['filled']:.1%}"] if packed else []
        shown = [f"{each[name]['loss']:.4f}" if "loss" in each.get(name, {}) else "–" for each in (first, last)]
        rows.append(f"| {' | '.join([name, *read, *shown])} |")
    return [*rows, ""]


@torch.inference_mode()
def draw(path: Path, recipe: dict, teacher: PreTrainedModel, student: PreTrainedModel, student_folder: Path) -> None:
    """Draw the relation maps of teacher and student for one sentence, in the student's pieces."""
    tokenizer = load_tokenizer(str(student_folder))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(SENTENCE)["input_ids"])
    of_teacher = load_tokenizer(recipe["teacher"]["model"], recipe["teacher"]["revision"])  # has all its pieces
    ids_of_teacher, ids = (torch.tensor([own.convert_tokens_to_ids(tokens)]) for own in (of_teacher, tokenizer))
    projections = (
        cut_encoder(teacher, recipe["teacher"]["layer"])(ids_of_teacher),
        cut_encoder(student, student.config.num_hidden_layers)(ids),
    )
    pairs = tuple(pair for pair in recipe["pairs"] if pair in PAIRS)
    save_figure(path, relation_maps(*projections, pairs, recipe["relation_heads"]), pairs, tokens)
