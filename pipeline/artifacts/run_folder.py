"""The run folder: its files, and what a run may change when it is resumed. Without torch.

RUN/recipe.json, ds_config.student.json   the resolved settings of the newest start
RUN/student/                              the student's config and tokenizer
RUN/checkpoints/                          see checkpoints.py
RUN/metrics.jsonl, log.txt, tensorboard/  see training/monitor.py
RUN/COMPLETE                              written last: the run reached its last step; gone while it is extended

The root of a run is its `out` as the recipe file gives it: RUN, or for several students or stages what holds theirs.

ROOT/STOP                                 made by anyone: write a checkpoint and leave (see training/early_stop.py)
ROOT/.ended                               how the newest launch ended, for the launcher that waits for it
"""

import itertools
import json
from fnmatch import fnmatch
from pathlib import Path

from data_prep.cli import UserError
from data_prep.files import write_text
from pipeline.settings.recipe import INITS, Recipe

COMPLETE, STOP, ENDED = "COMPLETE", "STOP", ".ended"


EARLY = 75  # exit code of a run that has more to do: EX_TEMPFAIL of sysexits.h, "try again"


# What a run may change when it is resumed: where and how it runs, not what it computes. A teacher is known by the hash of
# its weights and by its config (training/resuming.py), not by its name, so that it may be a hub id first and a folder then.
FREE = {
    "out", "data", "micro_batch", "log_every", "eval_every", "eval_samples", "checkpoint_every", "keep_checkpoints",
    "cache", "cache_gb", "keep_every", "deterministic", "loss_kernel", "arithmetic",
    "compile", "teacher.model", "teacher.revision", "teacher.micro_batch", "teacher.hosting", "teacher.shard_group",
    "teacher.ds_config", "student.ds_config",
}  # fmt: skip


def refuse_foreign(run: Path) -> None:
    """Raise UserError if ``run`` holds something, but not a run."""
    inside = [path.name for path in run.iterdir()] if run.is_dir() else []
    own = (".lock", STOP, ENDED, f"{ENDED}.writing")
    names = sorted(name for name in inside if name not in own and not fnmatch(name, ".*.tmp"))
    if names and not {"recipe.json", "checkpoints"} & set(names):
        raise UserError(f"{run}: holds {names[0]} and no recipe.json; name a new or an empty folder with out=")
    if (run.parent / "recipe.json").is_file():
        raise UserError(f"{run.parent}: holds the run of a single student; name another folder with out=")


def root_of(recipes: list[Recipe]) -> Path:
    """Where a launch's own files lie: the run folder, or what holds those of several students and stages."""
    return Path(recipes[0].root or recipes[0].out)


def complete_text(recipe: Recipe) -> str:
    """The content of COMPLETE."""
    return f"{recipe.steps} steps\n"


def are_complete(recipes: list[Recipe]) -> bool:
    """Whether all have reached the last step of their recipe as it now is."""
    marks = [Path(recipe.out) / COMPLETE for recipe in recipes]
    return all(
        mark.exists() and mark.read_text() == complete_text(recipe) for mark, recipe in zip(marks, recipes, strict=True)
    )


def refuse_other_teacher(stages: list[list[Recipe]]) -> None:
    """Raise UserError if a complete stage is to be extended, and the next one has begun to learn from its student."""
    for earlier, later in itertools.pairwise(stages):
        recipe = earlier[0]
        begun = [each for each in later if (Path(each.out) / "recipe.json").exists()]
        if (Path(recipe.out) / COMPLETE).exists() and not are_complete(earlier) and begun:
            recipe.refuse(
                "steps",
                f"this stage is complete, and {begun[0].out} learns from its student as it is; extend that one by "
                f"stage.{begun[0].stage}.steps, or use another out",
            )


def record_end(root: Path, launch: str | None, code: int) -> None:
    """Write ROOT/.ended: the launch's token and its exit code."""
    write_text(root / ENDED, json.dumps({"launch": launch, "code": code}) + "\n")


_NAMED = {"teacher.model", "teacher.revision"}  # what no description of a run may lack, all the same


def what_decides(recipe: dict) -> dict:
    """A recipe's values that decide a run's result, and what no recipe lacks: data and run by their names alone."""
    names = {key: Path(recipe[key]).name for key in ("data", "out")}
    decisive = {key: value for key, value in recipe.items() if key not in FREE | {"teacher", "student"}}
    tables = {
        table: {key: value for key, value in recipe[table].items() if f"{table}.{key}" not in FREE - _NAMED}
        for table in ("teacher", "student")
    }
    if tables["student"].get("vocab"):
        tables["student"]["vocab"] = Path(tables["student"]["vocab"]).name
    if tables["student"].get("init", "random") not in INITS:
        tables["student"]["init"] = Path(tables["student"]["init"]).name
    return names | {"micro_batch": recipe["micro_batch"]} | decisive | tables


def flat(recipe: dict) -> dict:
    """A recipe's values by key, those of its tables by table.key."""
    tables = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    flat = {key: value for key, value in recipe.items() if key not in tables}
    return flat | {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}


def differing(recipes: list[dict]) -> list[str]:
    """The keys, as ``flat`` names them, in which these recipes differ, but for their run folders."""
    each = [flat(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for own in each for key in own)
    return [key for key in keys if key != "out" and len({json.dumps(own.get(key)) for own in each}) > 1]
