"""The scores of an exported student in its own model card, as the Hugging Face hub reads them (model-index)."""

import statistics
from pathlib import Path

from huggingface_hub import EvalResult

from data_prep.files import write_text
from pipeline.artifacts.card import CARD, with_scores
from pipeline.artifacts.distillation import DISTILLATION
from pipeline.artifacts.results import Cell, Results, at, best
from pipeline.evaluate.tasks import MTEB, TASKS

_GLUE = "nyu-mll/glue"
_METRICS = {"matthews": "matthews_correlation", "spearman": "spearmanr", "pearson": "pearsonr"}  # the hub's names


def record_scores(folder: Path, name: str, weights: str, results: Results) -> str:
    """Put the scores of the model ``name`` of these weights into the card of ``folder``, if it was distilled here.

    Returns a line on what became of them, empty for another folder.
    """
    card = folder / CARD
    if not all(file.is_file() for file in (card, folder / DISTILLATION)):
        return ""
    names = [*TASKS, *(task for task in results.tasks if task.startswith(MTEB))]
    cells = {task: [cell for cell in results.of(name, task) if cell.weights == weights] for task in names}
    scored = {task: own for task, own in cells.items() if own}
    scores = [score for task, own in scored.items() for score in model_index(task, own)]
    if not scores:
        return ""
    try:
        text = card.read_text(encoding="utf-8")
        if (updated := with_scores(text, name, scores)) != text:
            write_text(card, updated)
    except (OSError, ValueError) as error:  # of a folder that is read-only, of a card that was edited
        return f"note: {card}: the scores cannot be written to it ({error})"
    return f"{card}: has the scores of {', '.join(scored)}"


def model_index(name: str, cells: list[Cell]) -> list[EvalResult]:
    """The scores of a task's best setting, each the mean over its seeds, in percent."""
    chosen = best(cells)
    runs = at(cells, chosen.setting)
    how, scored = "not fine-tuned", list(runs[0].scores)
    if TASKS[name].embeds and TASKS[name].languages:
        scored = [score for score in scored if "/" not in score]  # its languages may be hundreds
    if not TASKS[name].embeds:
        rate, epochs = chosen.setting["learning_rate"], chosen.setting["epochs"]
        seeds = "seed" if chosen.n == 1 else "seeds"
        how = f"fine-tuned at {rate:g}, {epochs} epochs, mean of {chosen.n} {seeds}"
    return [
        _score(name, score, runs[0].split, how, statistics.fmean(run.scores[score] for run in runs)) for score in scored
    ]


def _score(name: str, score: str, split: str, how: str, value: float) -> EvalResult:
    """One score; ``score`` is its name in results: accuracy, accuracy_mm, or accuracy/de."""
    task = TASKS[name]
    kind, _, language = score.removesuffix("_mm").partition("/")
    if task.embeds:
        return EvalResult(
            task_type="sentence-similarity",
            dataset_type=task.hub or name,
            dataset_name=name,
            dataset_config=language or None,
            metric_type=_METRICS.get(kind, kind),
            metric_name=f"{score.replace('_', ' ')} in percent, {how}",
            metric_value=round(value, 2),
        )
    config = name if task.hub == _GLUE else None
    return EvalResult(
        task_type="question-answering" if task.answers else "text-classification",
        dataset_type=task.hub,
        dataset_name=task.folders[0],
        dataset_config=language or config,
        dataset_split=split if split == "test" else task.hub_splits["mm" if score.endswith("_mm") else ""],
        metric_type=_METRICS.get(kind, kind),
        metric_name=f"{score.replace('_', ' ')} in percent, {how}",
        metric_value=round(value, 2),
    )
