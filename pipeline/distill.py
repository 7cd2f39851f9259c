"""Train a small student on the self-attention relations of a large, frozen teacher.

    python -m pipeline.distill RECIPE.toml [key=value …]                          one process
    deepspeed --num_gpus 8 --module pipeline.distill RECIPE.toml [key=value …]    one process per device
    torchrun --nproc-per-node 8 -m pipeline.distill RECIPE.toml [key=value …]     the same

The run folder `out` (OUT/NAME for each of several students) receives checkpoints/, tensorboard/, metrics.jsonl and, last,
COMPLETE. The same command resumes from the newest checkpoint; with more steps it extends a complete run. SIGTERM, SIGUSR1
or a file out/STOP make it write one and leave with exit code 75. The smallest real run: ./run.sh demo
"""

import argparse
import itertools
import os
import time
from pathlib import Path

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from data_prep.cli import Parser, UserError, run_command
from data_prep.files import write_text
from data_prep.shards import Corpus, open_corpus
from pipeline.artifacts import checkpoints
from pipeline.artifacts.checkpoints import Checkpoint
from pipeline.artifacts.distillation import is_export_of
from pipeline.artifacts.run_folder import (
    COMPLETE,
    EARLY,
    are_complete,
    complete_text,
    record_end,
    refuse_other_teacher,
    root_of,
)
from pipeline.data.fits import about_cache, check_bytes, check_corpus
from pipeline.data.reading import training_windows
from pipeline.data.windows import Windows
from pipeline.engines import slurm
from pipeline.engines.both import release
from pipeline.engines.deterministic import use_deterministic, without_an_algorithm
from pipeline.engines.ds_config import load_ds_config
from pipeline.engines.ranks import Ranks, on_first_rank, start_ranks
from pipeline.export import export
from pipeline.models.fit import check_teacher, pooling_of, student_tokenizer, teacher_config_of, with_segments
from pipeline.models.loading import load_tokenizer
from pipeline.models.origin import check_pieces
from pipeline.models.vocabulary import vocabulary_of
from pipeline.processes import LONGEST, TIMEOUT, die_with
from pipeline.settings.reading import load_stages
from pipeline.settings.recipe import INITS, Recipe
from pipeline.training.deciding import with_arithmetic
from pipeline.training.early_stop import EarlyStop
from pipeline.training.guards import failure_on_record, sole_writer, stop_if_ranks_differ
from pipeline.training.loop import train
from pipeline.training.progress import EXPORT, Progress
from pipeline.training.resuming import newest_checkpoint
from pipeline.training.run import Run
from pipeline.training.start import Pending
from pipeline.training.watchdog import Watchdog


def distill(
    recipes: list[Recipe],
    stop_at: int | None = None,
    max_hours: float | None = None,
    timeout: float = TIMEOUT,
    launch: str | None = None,
    more: bool = False,
    began: float | None = None,
) -> int:
    """Run ``recipes``, which differ in their student only, to their end, or leave after update ``stop_at``.

    Returns the exit code, which is also put on record for ``launch``, unless ``more`` stages follow this one: 0, or EARLY if
    it was asked to stop (see early_stop.py) or ``max_hours`` are over, counted from ``began`` (of time.monotonic) if that is
    given; the same call resumes it. A rank that is silent for ``timeout`` s, or hangs (see progress.py), ends the process. The
    students of a finished stage are exported. Raises UserError for whatever the user can mend, on every rank, with the
    checkpoints so far kept.
    """
    recipes, corpus, windows, tokenizer = check(recipes)  # what can be wrong is said before anything heavy starts
    recipe, root = recipes[0], root_of(recipes)
    use_deterministic(recipe)
    ranks = start_ranks()
    last = min(recipe.steps, stop_at or recipe.steps)
    with (
        EarlyStop(ranks, root, max_hours, began) as early,
        Watchdog(ranks, timeout) as watchdog,
        sole_writer([Path(student.out) for student in recipes], ranks),
        failure_on_record(root, ranks, launch),
    ):
        early.forget()
        stop_if_ranks_differ(ranks, recipes, corpus)
        on_first_rank(ranks, check_bytes, corpus)
        run = Run(recipe, ranks, corpus, windows, tokenizer, last, early, watchdog.progress)
        pending = unfinished(run, recipes)
        with without_an_algorithm(recipe):
            step = train(*with_arithmetic(run, pending)) if pending else last
        if step == recipe.steps:
            finish(ranks, recipes, watchdog.progress)

        code = 0 if step == last else EARLY
        continues = more and step == recipe.steps
        if continues and early.asked():
            code, continues = EARLY, False
            early.forget()
            if ranks.first:
                print(f"Stopped after stage {recipe.stage} ({early.reason}); the same command resumes it.", flush=True)
        if ranks.first and not continues:
            # Before any rank leaves: launchers end the others as soon as one has left with a code.
            record_end(root, launch, code)
        watchdog.leave()
    return code


def check(recipes: list[Recipe]) -> tuple[list[Recipe], Corpus, Windows, PreTrainedTokenizerBase]:
    """The recipes with their segments decided, the corpus, its windows and the teacher's tokenizer.

    Raises UserError unless they fit each other.
    """
    recipe = recipes[0]  # where they agree
    starting = [student for student in recipes if not (Path(student.out) / checkpoints.FOLDER).is_dir()]
    teacher_config = teacher_config_of(recipe)
    for student in recipes:
        check_teacher(student, teacher_config, starts=student in starting)
        read_what_is_named(student)

    corpus = open_corpus(recipe.data, recipe.shards_cache)
    tokenizer = load_tokenizer(recipe.teacher.model, recipe.teacher.revision)
    for student in starting:
        if student.student.init not in INITS:
            check_pieces(student, student_tokenizer(student))
    recipes = [with_segments(student, teacher_config, tokenizer) for student in recipes]
    paired = recipes[0].segments == "pairs"
    windows = training_windows(corpus, recipe.length, recipe.layout, paired)
    check_corpus(corpus, tokenizer, recipe.teacher.model, recipe.layout, teacher_config.vocab_size)
    if why := about_cache(corpus, windows, recipe.shuffle_shards):
        recipe.refuse("cache_gb", why)
    recipe.accumulation(int(os.environ.get("WORLD_SIZE", 1)))
    return recipes, corpus, windows, tokenizer


def read_what_is_named(recipe: Recipe) -> None:
    """Read the ds_configs of ``recipe``, vocabulary, tokenizer and pooling: a process keeps what it reads of them first."""
    for name in (recipe.teacher.ds_config, recipe.student.ds_config):
        load_ds_config(name, recipe)
    if own := vocabulary_of(recipe):
        _ = own.tokenizer
    pooling_of(recipe)


def unfinished(run: Run, recipes: list[Recipe]) -> list[Pending]:
    """The students that have steps to do, each with the checkpoint that it resumes from. Collective."""
    pending = []
    for recipe in recipes:
        found = on_first_rank(run.ranks, newest, Path(recipe.out), recipe, run.corpus)
        checkpoint = Checkpoint(Path(found[0]), found[1]) if found else None
        if not checkpoint or checkpoint.step < run.last:
            pending.append(Pending(recipe, checkpoint))
        elif run.ranks.first:
            more = "; more steps extend it" if checkpoint.step == recipe.steps else ""
            print(f"{recipe.out} already has its checkpoint of step {checkpoint.step}: nothing to do{more}", flush=True)
    return pending


def newest(run: Path, recipe: Recipe, corpus: Corpus) -> tuple[str, dict] | None:
    """``newest_checkpoint``'s folder and content: what a rank can send to others."""
    checkpoint = newest_checkpoint(run, recipe, corpus)
    return (str(checkpoint.path), checkpoint.info) if checkpoint else None


def finish(ranks: Ranks, recipes: list[Recipe], progress: Progress) -> None:
    """Mark runs as complete, each in a phase of its own. Raises its errors on every rank. Collective."""
    for recipe in recipes:
        progress.at(EXPORT)
        on_first_rank(ranks, _finish, recipe, progress)


def _finish(recipe: Recipe, progress: Progress) -> None:
    """Mark a run as complete. The student of a stage is exported, if it is not yet: it is the next one's teacher."""
    run = Path(recipe.out)
    if recipe.stage and not is_export_of(recipe.exported, checkpoints.newest_of(run)):
        export(run, recipe.exported, progress=progress)
        print(f"{recipe.exported}: the student of stage {recipe.stage}, exported", flush=True)
    write_text(run / COMPLETE, complete_text(recipe))


def distill_stages(stages: list[list[Recipe]], options: argparse.Namespace) -> int:
    """Run each stage to its end, or until one is left early. One that is complete is skipped, also by ``--stop-at``."""
    began, code = time.monotonic(), 0
    # What a later one names may move, or be found wrong, while an earlier one trains.
    for recipe in itertools.chain(*stages):
        read_what_is_named(recipe)
        check_teacher(recipe, teacher_config_of(recipe), starts=False)
    refuse_other_teacher(stages)
    for number, recipes in enumerate(stages, 1):
        more, stop_at = number < len(stages), options.stop_at
        if more and stop_at and on_first_rank(start_ranks(), are_complete, recipes):
            stop_at = None
        code = distill(recipes, stop_at, options.max_hours, options.timeout, options.launch, more, began)
        if code or (stop_at or recipes[0].steps) < recipes[0].steps:
            break
        release()
    return code


def parser() -> Parser:
    """The command line of ``python -m pipeline.distill``."""
    made = Parser(
        prog="python -m pipeline.distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("recipe", help="a TOML file, or the name of a shipped recipe")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="as in steps=100 or student.layers=4")
    made.add_argument(
        "--stop-at",
        type=int,
        metavar="STEP",
        help="save a checkpoint after this step, of the first stage that is not complete, and leave",
    )
    made.add_argument(
        "--max-hours",
        type=float,
        metavar="HOURS",
        help=f"save a checkpoint after HOURS hours and leave with code {EARLY}; the same command resumes the run",
    )
    made.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="SECONDS",
        help="give up a rank that is silent for SECONDS, or hangs for five times as long or more, and end the run (default: "
        "%(default)s)",
    )
    made.add_argument("--launch", metavar="TOKEN", help=argparse.SUPPRESS)  # whose launch this is, for OUT/.ended
    made.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the DeepSpeed launcher passes it
    return made


def main() -> int:
    options = parser().parse_intermixed_args()
    if options.stop_at is not None and options.stop_at < 1:
        raise UserError(f"--stop-at {options.stop_at}: must be at least 1")
    if options.max_hours is not None and not options.max_hours > 0:
        raise UserError(f"--max-hours {options.max_hours}: must be above 0")
    if not 5 <= options.timeout <= LONGEST:
        raise UserError(f"--timeout {options.timeout}: must be at least 5 seconds and at most {LONGEST:g}")
    slurm.adopt()
    transformers_logging.disable_progress_bar()
    if "DISTILL_PARENT" in os.environ:
        die_with(int(os.environ["DISTILL_PARENT"]))
    code = distill_stages(load_stages(options.recipe, options.overrides), options)
    if dist.is_initialized():
        dist.destroy_process_group()
    return code


if __name__ == "__main__":
    run_command(main)
