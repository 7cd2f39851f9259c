"""The run folder: who may write to it, what a run goes on from, and what it holds for export and a reader.

RUN/recipe.json, ds_config.student.json   the resolved settings of the newest start
RUN/student/                              the student's config and the teacher's tokenizer
RUN/checkpoints/                          see checkpoints.py
RUN/metrics.jsonl, log.txt, tensorboard/  see monitor.py
RUN/COMPLETE                              written last: the run reached its last step

The root of a run is its `out` as the recipe file gives it: RUN, or for several students or stages what holds theirs.

ROOT/STOP                                 made by anyone: write a checkpoint and leave (see watchdog.EarlyStop)
ROOT/.ended                               how the newest launch ended, for the launcher that waits for it
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from importlib.metadata import version
from pathlib import Path

from data_prep.errors import UserError
from data_prep.locks import sole_process
from data_prep.shards import Corpus
from pipeline import checkpoints
from pipeline.checkpoints import Checkpoint
from pipeline.ranks import Ranks, on_first_rank
from pipeline.recipe import Recipe, recipe_of
from pipeline.worker import is_alive

COMPLETE, STOP, ENDED = "COMPLETE", "STOP", ".ended"
EARLY = 75  # exit code of a run that has more to do: EX_TEMPFAIL of sysexits.h, "try again"

# What a run may change when it goes on: where and how it runs, not what it computes.
_FREE = {
    "out", "data", "micro_batch", "log_every", "eval_every", "eval_samples", "checkpoint_every", "keep_checkpoints",
    "keep_every",
    "compile", "teacher.model", "teacher.micro_batch", "teacher.hosting", "teacher.shard_group", "teacher.ds_config",
    "student.ds_config",
}  # fmt: skip


@contextlib.contextmanager
def sole_writer(runs: list[Path], ranks: Ranks, patience: float | None = None):
    """Hold the folders of ``runs`` against any other process, on all ranks, or raise UserError naming the first taken."""
    for run in runs:
        on_first_rank(ranks, lambda run=run: _refuse_foreign(run))
    with contextlib.ExitStack() as held:
        for run in runs:
            on_first_rank(ranks, lambda run=run: held.enter_context(sole_process(run, print, patience)))
        yield


def _refuse_foreign(run: Path) -> None:
    """Raise UserError if ``run`` holds something, but not a run."""
    own = {".lock", ENDED, f"{ENDED}.writing", STOP}
    names = sorted(path.name for path in run.iterdir() if path.name not in own) if run.is_dir() else []
    if names and not {"recipe.json", "checkpoints"} & set(names):
        raise UserError(f"{run}: holds {names[0]} and no recipe.json; name a new or an empty folder with out=")
    if (run.parent / "recipe.json").is_file():
        raise UserError(f"{run.parent}: holds the run of a single student; name another folder with out=")


def root_of(recipes: list[Recipe]) -> Path:
    """Where a launch's own files lie: the run folder, or what holds those of several students and stages."""
    return Path(recipes[0].root or recipes[0].out)


def are_complete(recipes: list[Recipe]) -> bool:
    return all((Path(recipe.out) / COMPLETE).exists() for recipe in recipes)


def record_end(root: Path, launch: str | None, code: int) -> None:
    """Write ROOT/.ended: the launch's token and its exit code."""
    aside = root / f"{ENDED}.writing"
    aside.write_text(json.dumps({"launch": launch, "code": code}) + "\n")
    aside.replace(root / ENDED)


@contextlib.contextmanager
def failure_on_record(root: Path, ranks: Ranks, launch: str | None):
    """Record what ends the block with an error. Of its own folder alone: enter when it is held."""
    try:
        yield
    except Exception as error:
        if ranks.first:
            record_end(root, launch, 2 if isinstance(error, UserError) else 1)
        raise


def newest_checkpoint(run: Path, recipe: Recipe, corpus: Corpus) -> Checkpoint | None:
    """The checkpoint to go on from. Raises UserError if recipe or corpus no longer describe the run that made it."""
    checkpoint = checkpoints.latest(run)
    if checkpoint is None:
        if (run / COMPLETE).exists():
            raise UserError(
                f"{run}: marked {COMPLETE}, but no checkpoint is whole; use another out or delete the folder"
            )
        return None
    checkpoint.check()
    before, now = (_flat(one.to_dict()) for one in (recipe_of(checkpoint.info["recipe"], str(run)), recipe))
    for key in now:
        if key not in _FREE and before[key] != now[key]:
            raise UserError(
                f"{recipe.source}: {key} = {now[key]!r}, but {checkpoint.path} was made with {before[key]!r}; "
                "use another out, or the former value"
            )
    if checkpoint.info["corpus"] != corpus.id:
        raise UserError(
            f"{recipe.data}: not the corpus that {checkpoint.path} was trained on ({corpus.id[:12]} is not "
            f"{checkpoint.info['corpus'][:12]}); use another out, or the former data"
        )
    return checkpoint


def check_same_teacher(checkpoint: Checkpoint, teacher_hash: str, recipe: Recipe) -> None:
    if checkpoint.info["teacher"]["weights"] != teacher_hash:
        raise UserError(
            f"{recipe.teacher.model}: not the teacher that {checkpoint.path} was trained on (weights {teacher_hash} "
            f"instead of {checkpoint.info['teacher']['weights']}); use another out, or the former teacher"
        )


def check_same_vocabulary(checkpoint: Checkpoint, recipe: Recipe) -> None:
    if checkpoint.info.get("student_ids") != _ids_hash(recipe):
        raise UserError(
            f"{recipe.student.vocab}: not the vocabulary that {checkpoint.path} was trained with; use another out, or the "
            "former one"
        )


def _ids_hash(recipe: Recipe) -> str | None:
    ids = recipe.student_ids()
    return None if ids is None else hashlib.sha256(ids.tobytes()).hexdigest()[:16]


def checkpoint_info(
    recipe: Recipe, corpus: Corpus, ranks: Ranks, step: int, teacher_hash: str, history: list[dict]
) -> dict:
    """What state.json says beside the hash: where the run stands, what made it, and (``history``) its teacher."""
    return {
        "step": step,
        "samples": step * recipe.batch,
        "corpus": corpus.id,
        "tokens": {name: source.tokens for name, source in corpus.sources.items()},
        "recipe": recipe.to_dict(),
        "teacher": {
            "model": recipe.teacher.model,
            "revision": recipe.teacher.revision,
            "weights": teacher_hash,
            "distillation": history,
        },
        "student_ids": _ids_hash(recipe),
        "ranks": ranks.world,
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
    }


def prepare_folder(run: Path, recipe: Recipe, ds_config: dict, student_config, tokenizer) -> None:
    """Write what export and a reader need."""
    (run / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=1) + "\n")
    (run / "ds_config.student.json").write_text(json.dumps(ds_config, indent=1) + "\n")
    student_config.save_pretrained(run / "student")
    save_tokenizer(tokenizer, run / "student")


def save_tokenizer(tokenizer, folder: Path) -> None:
    """Write a tokenizer's files, without what transformers adds on how it was loaded: that is something else offline."""
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def die_with(parent: int) -> None:
    """Leave when process ``parent`` is gone, so that killing a script that started this run ends the run too."""

    def watch() -> None:
        while is_alive(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def what_decides(recipe: dict) -> dict:
    """Of a recipe's values those that decide a run's result, and what no recipe lacks: data and run by their names alone."""
    names = {key: Path(recipe[key]).name for key in ("data", "out")}
    decisive = {key: value for key, value in recipe.items() if key not in _FREE | {"teacher", "student"}}
    tables = {
        table: {key: value for key, value in recipe[table].items() if f"{table}.{key}" not in _FREE - {"teacher.model"}}
        for table in ("teacher", "student")
    }
    if tables["student"].get("vocab"):
        tables["student"]["vocab"] = Path(tables["student"]["vocab"]).name
    return names | {"micro_batch": recipe["micro_batch"]} | decisive | tables


def _flat(recipe: dict) -> dict:
    tables = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    flat = {key: value for key, value in recipe.items() if key not in tables}
    return flat | {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}
