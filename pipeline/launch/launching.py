"""One launch, from its first check to its exit code."""

import argparse
import json
import secrets
import time
from pathlib import Path
from typing import Any

from pipeline.artifacts import checkpoints
from pipeline.artifacts.run_folder import EARLY, ENDED, STOP, root_of
from pipeline.engines.ds_config import load_ds_config
from pipeline.launch.following import MARK, follow, say
from pipeline.launch.places import choose_place
from pipeline.processes import TIMEOUT
from pipeline.settings.recipe import Recipe


def launch(options: argparse.Namespace, environment: dict[str, str], stages: list[list[Recipe]]) -> int:
    """Run the ``stages`` as the command's ``options`` ask for, and return its exit code; ``environment`` is the user's."""
    # A mistake costs no time on a cluster: whatever can be checked from here is checked before anything starts.
    recipes = [recipe for stage in stages for recipe in stage]
    for recipe in recipes:
        for name in (recipe.teacher.ds_config, recipe.student.ds_config):
            load_ds_config(name, recipe)
    place = choose_place(options, environment)
    for recipe in recipes:
        recipe.accumulation(place.ranks)

    token = secrets.token_hex(8)
    command = place.command("pipeline.distill", arguments_of_ranks(options, token))
    root = root_of(recipes)
    previous = read_record(root / ENDED)
    patience = (options.timeout or TIMEOUT) + 10
    code = follow(command, place.environment | {MARK: token}, token, root / STOP, patience)

    # The launcher's own code is not believed: it is 0 if a signal has killed it, and of several hosts the largest. What
    # counts is the record that rank 0 leaves. Its token is that of the first node; other nodes see that it is a new one.
    deadline = time.monotonic() + (10 if code in (0, EARLY) else 0)  # a network's file system may take a moment
    while True:
        record = read_record(root / ENDED)
        is_new = (
            record is not None and record != previous and (record.get("launch") == token or bool(options.node_rank))
        )
        if is_new or time.monotonic() >= deadline:
            break
        time.sleep(0.2)

    if record is not None and is_new and record.get("code") in (0, 2, EARLY):
        recorded: int = record["code"]
        return recorded
    if not is_new and code == 2:
        return 2
    say(f"error: the run has ended early; {progress(recipes)}; the same command continues from there")
    return 1


def arguments_of_ranks(options: argparse.Namespace, token: str) -> list[str]:
    """The arguments of pipeline.distill in each process."""
    arguments = [options.recipe, *options.overrides, "--launch", token]
    for name in ("stop_at", "max_hours", "timeout"):
        value = getattr(options, name)
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return arguments


def read_record(path: Path) -> dict[str, Any] | None:
    """The content of ROOT/.ended, or None."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record


def progress(recipes: list[Recipe]) -> str:
    """How far the runs are: their newest whole checkpoints, in words."""
    found = []
    for recipe in recipes:
        newest = checkpoints.latest(Path(recipe.out))
        found.append(f"{recipe.out} has {f'step {newest.step}' if newest else 'no checkpoint yet'}")
    return ", ".join(found)
