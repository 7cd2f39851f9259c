"""The entry point of every verb: ``python -m pipeline VERB …``, or ``minilm-distil VERB …`` where the package is installed."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from data_prep.cli import DOOR, UserError, run_command

# verb: the module whose ``main`` it is, and what it does; the same verbs as run.sh's
VERBS = {
    "prep": ("data_prep.__main__", "text to token shards: plan, prepare, status, verify, stats, extend, pack, bench"),
    "show": ("pipeline.show", "what a model will read: the samples of a recipe or of prepared data, decoded"),
    "distill": ("pipeline.launch.__main__", "train a student, on this machine or on the hosts of a file"),
    "recipe": ("pipeline.recipe.__main__", "check a recipe and print what follows from it, or write a new one"),
    "plan": ("pipeline.plan.__main__", "estimate a run's memory, traffic, time and disk"),
    "doctor": ("pipeline.doctor.__main__", "check that this machine, or the hosts of a file, are ready"),
    "export": ("pipeline.export", "the student as a Hugging Face folder"),
    "trim-vocab": ("pipeline.trim_vocab.__main__", "remove vocabulary entries that your languages do not need"),
    "evaluate": ("pipeline.evaluate.__main__", "fine-tune and score models: GLUE, SQuAD, XNLI, MLQA, XQuAD"),
    "speed": ("pipeline.speed", "how much faster and smaller students are than their teacher"),
    "report": ("pipeline.report.__main__", "scores next to the teacher's and the papers', or what came out of a run"),
    "rehearse": (
        "pipeline.rehearse",
        "every command of a paper's recipe, from text to report, in small on this machine",
    ),
    "bench": ("pipeline.bench.__main__", "where the time goes, on this machine"),
}


def usage() -> str:
    """The verbs, a line each."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {what}" for verb, (_, what) in VERBS.items()]
    door = os.environ.get(DOOR, "python -m pipeline")
    return "\n".join([f"Usage: {door} VERB [ARGUMENTS]        (VERB --help says more)", "", *lines])


def main() -> int | None:
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(usage())
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"did you mean {near[0]}?" if near else f"verbs are {', '.join(VERBS)}"
        raise UserError(f"{verb}: unknown verb; {hint}")
    if [verb, *arguments[:1]] == ["prep", "show"]:  # of windows, which prep knows nothing of
        verb, *arguments = arguments
    sys.argv[1:] = arguments
    run: Callable[[], int | None] = importlib.import_module(VERBS[verb][0]).main
    return run()


def command() -> None:
    """Run the verb and exit, as the console script does."""
    called = Path(sys.argv[0]).name
    os.environ.setdefault(DOOR, "python -m pipeline" if called == "__main__.py" else called)
    run_command(main)


if __name__ == "__main__":
    command()
