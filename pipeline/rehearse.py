"""Walk a paper's recipe from empty disks to the report on this machine, with every command once.

    python -m pipeline.rehearse minilmv2_bert_base [key=value …] [--out DIR]

Each command is printed as it is typed on a cluster, and run as it is here: the real recipe with 1/10,000 of its steps, four
sequences in a batch, and the demo's text. `teacher.model=DIR` names a teacher on this machine. Without it the hub is asked;
where it does not answer, the teacher is a stand-in of the published shape with random weights, whose scores mean nothing.
A walk that broke off continues with the same command.
"""

import argparse
import os
import random
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from transformers.utils import logging as transformers_logging

from data_prep.cli import Parser, UserError, aligned, as_typed, run_command
from data_prep.files import write_text
from pipeline.models.configs import is_published, planned_config
from pipeline.models.students import build_student
from pipeline.settings.reading import find_recipe, load_stages
from pipeline.settings.recipe import Recipe

SCALE = 10_000
BATCH, MICRO_BATCH, RANKS = 4, 2, 2
TEXTS, MULTILINGUAL = Path(".cache/demo"), Path(".cache/demo-multilingual")
GPUS = "--gpus-per-node 8 --gpu H100"
# A stand-in's tokenizer: (model type, size of the vocabulary): the folder of a package's model that has the same one.
TOKENIZERS = {("bert", 30522): TEXTS / "teacher", ("xlm-roberta", 250002): MULTILINGUAL / "teacher"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Step:
    """A command of the walk: what is typed on a cluster, and what runs here."""

    title: str
    cluster: str
    here: list[str]


@dataclass(frozen=True)
class Walk:
    """What the commands of a recipe are made of."""

    name: str  # of the recipe
    recipes: list[Recipe]  # all students of all stages, as they are trained here
    overrides: list[str]  # that shrink the recipe
    folder: Path  # where all of it is kept here
    teacher: str  # here
    published: str  # its name on the hub
    corpus: str  # a shipped description of a corpus
    data: str  # where the recipe wants it prepared


def walk_of(name: str, overrides: list[str], folder: Path) -> Walk:
    """The walk of a recipe. Raises UserError for one of another corpus, or whose teacher is not to be had."""
    stages = load_stages(name, overrides)
    first, stem = stages[0][0], find_recipe(name).stem
    corpus = next((known for known in ("wikipedia_bookcorpus", "cc100") if Path(first.data).name.startswith(known)), "")
    if not corpus:
        raise UserError(
            f"{name}: its data, {first.data}, are no corpus of the papers; rehearse walks the papers' recipes"
        )
    own = any(override.partition("=")[0].strip() == "teacher.model" for override in overrides)
    teacher = first.teacher.model if own else str(_teacher(first, folder))
    data = folder / "data"
    small = [*overrides, f"data={data}", f"out={folder / 'run'}", f"teacher.model={teacher}"]
    small += [f"batch={BATCH}", f"micro_batch={MICRO_BATCH}", f"eval_samples={BATCH}"]
    for recipe in (stage[0] for stage in stages):
        steps, prefix = max(4, recipe.steps // SCALE), f"stage.{recipe.stage}." if recipe.stage else ""
        often = {"log_every": max(1, steps // 10), "eval_every": steps // 2, "checkpoint_every": steps // 2}
        warmup = max(1, steps * recipe.warmup_steps // recipe.steps)
        small += [f"{prefix}{key}={value}" for key, value in {"steps": steps, "warmup_steps": warmup, **often}.items()]
    recipes = [recipe for stage in load_stages(name, small) for recipe in stage]
    return Walk(stem, recipes, small, folder, teacher, first.teacher.model, corpus, first.data)


def steps_of(walk: Walk) -> list[Step]:
    """Every command from the check of the machine to the report."""
    return [*_beforehand(walk), *_text(walk), *_training(walk), *_scoring(walk)]


def _beforehand(walk: Walk) -> list[Step]:
    plans = [f"plan {walk.name} --nodes {nodes} {GPUS}" for nodes in (1, 4)]
    return [
        Step(
            "Are the machines ready?", "doctor --hostfile hosts --shared runs", ["doctor", "--shared", str(walk.folder)]
        ),
        *(Step("Memory, hours and disk", plan, plan.split()) for plan in plans),
    ]


def _text(walk: Walk) -> list[Step]:
    data, tokenizer = str(walk.folder / "data"), walk.teacher
    full = f"{walk.corpus} --root /corpora --tokenizer {walk.published} --workers 32"
    if walk.corpus == "cc100":
        files = sorted((MULTILINGUAL / "text").glob("*.txt.xz"))
        sources = [f"{file.name.removesuffix('.txt.xz')}=cc100:{file}" for file in files]
    else:
        sources = [f"wikipedia=wikipedia:{TEXTS / 'enwiki-sample.xml.bz2'}"]
    here = ["--tokenizer", tokenizer, "--workers", "2", "--unit-mib", "1", "--heldout", "0.05"]
    here += [word for source in sources for word in ("--source", source)]
    verify = ["prep", "verify", data, "--deep", "--roundtrip", "20"]
    return [
        Step("What the corpus will be", f"prep plan {full}", ["prep", "plan", *here]),
        Step("Text to token shards", f"prep prepare {full} --out {walk.data}", ["prep", "prepare", *here, "--out", data]),
        Step("How far it is", f"prep status {walk.data}", ["prep", "status", data]),
        Step("Is it whole?", f"prep verify {walk.data} --deep --roundtrip 1000", verify),
        Step("What is in it?", f"prep stats {walk.data}", ["prep", "stats", data]),
        Step("What will be read?", f"show {walk.name}", ["show", walk.name, *walk.overrides]),
    ]  # fmt: skip


def _training(walk: Walk) -> list[Step]:
    small, half = [walk.name, *walk.overrides], walk.recipes[0].steps // 2
    begin = ["distill", *small, "--ranks", str(RANKS)]
    several = f"sbatch --nodes 4 distill.sbatch {walk.name}"
    exports = [
        Step(f"The student {_student(recipe)}", f"export {_full(walk, recipe.out)} {_full(walk, _exported(recipe))}",
             ["export", recipe.out, _exported(recipe)])
        for recipe in walk.recipes if not recipe.stage
    ]  # fmt: skip
    return [
        Step("What follows from the recipe?", f"recipe {walk.name}", ["recipe", *small]),
        Step("Half of the training", f"distill {walk.name} --max-hours 2", [*begin, "--stop-at", str(half)]),
        Step("The other half, resumed", f"distill {walk.name}    # or, on several nodes: {several}", begin),
        *exports,
    ]


def _scoring(walk: Walk) -> list[Step]:
    results, glue = str(walk.folder / "results"), str(walk.folder / "glue")
    students = [_exported(recipe) for recipe in walk.recipes]
    models, full = [walk.teacher, *students], [walk.published, *(_full(walk, _exported(one)) for one in walk.recipes)]
    names = " ".join(f"--model {model}" for model in full)
    given = [word for model in models for word in ("--model", model)]
    fine = ["--data", glue, "--seeds", "1", "--epochs", "1", "--batch", "8", "--length", "64"]
    runs = [recipe.out for recipe in walk.recipes]
    named = " ".join(_full(walk, run) for run in runs)
    reports = [
        (f"report {_full(walk, run)} {_full(walk, student)}", ["report", run, student])
        for run, student in zip(runs, students, strict=True)
    ]
    return [
        Step("Scores without fine-tuning", f"evaluate {names} --task lee --out results",
             ["evaluate", *given, "--task", "lee", "--data", str(TEXTS / "lee"), "--out", results]),
        Step("Fine-tuned scores", f"evaluate {names} --task mnli,sst2,qnli,cola,rte,mrpc,qqp,squad2 --grid --out results",
             ["evaluate", *given, "--task", "rte", *fine, "--out", results]),
        Step("Speed", f"speed {' '.join(full)} --data glue/QNLI/dev.tsv --out results",
             ["speed", *models, "--batches", "3", "--batch", "8", "--out", results]),
        *(Step("The report of a run", cluster, here) for cluster, here in reports),
        Step("The report next to the papers", f"report results --all-tables --runs {named}",
             ["report", results, "--all-tables", "--runs", *runs]),
    ]  # fmt: skip


def _student(recipe: Recipe) -> str:
    return Path(recipe.out).name


def _exported(recipe: Recipe) -> str:
    return str(recipe.exported) if recipe.stage else f"{recipe.out}-student"


def _full(walk: Walk, path: str) -> str:
    """Where a path of the walk is on a cluster."""
    return path.replace(str(walk.folder / "run"), f"runs/{walk.name}", 1)


def _teacher(recipe: Recipe, folder: Path) -> str | Path:
    """The hub's teacher if the hub answers, else a stand-in with random weights."""
    name, revision = recipe.teacher.model, recipe.teacher.revision
    if Path(name).is_dir() or _is_on_the_hub(name, revision):
        return name
    config = planned_config(name, revision) if is_published(name) else None
    tokenizer = TOKENIZERS.get((config.model_type, config.vocab_size)) if config else None
    if config is None or tokenizer is None:
        raise UserError(
            f"{name}: the hub does not answer, and no package here has its tokenizer; give teacher.model=DIR, a folder of it"
        )
    _fetch(MULTILINGUAL if tokenizer.parent == MULTILINGUAL else TEXTS)
    stand_in = folder / "teacher"
    print(
        f"note: the hub does not answer: {stand_in} is a stand-in for {name} with random weights; its scores mean nothing"
    )
    if not (stand_in / "config.json").is_file():
        transformers_logging.disable_progress_bar()
        build_student(config, seed=1).save_pretrained(stand_in)
        for file in TOKENIZER_FILES:
            if (tokenizer / file).is_file():
                write_text(stand_in / file, (tokenizer / file).read_text(encoding="utf-8"))
    return stand_in


def _is_on_the_hub(name: str, revision: str) -> bool:
    if isinstance(huggingface_hub.try_to_load_from_cache(name, "model.safetensors", revision=revision), str):
        return True
    try:
        huggingface_hub.model_info(name, revision=revision, timeout=10)
    except Exception:  # no such model, no network, HF_HUB_OFFLINE: the client has a class for each, and changes them
        return False
    return True


def _fetch(folder: Path) -> None:
    module = "pipeline.assets" if folder == TEXTS else "pipeline.multilingual"
    if code := subprocess.run([sys.executable, "-m", module, str(folder)]).returncode:
        sys.exit(code)


def write_rows(documents: Path, folder: Path) -> None:
    """Rows in the layout of GLUE's RTE, of Lee's 50 documents (a line each): do two halves belong to one document?"""
    halves = [
        (line[: len(line) // 2], line[len(line) // 2 :])
        for line in documents.read_text(encoding="latin-1").splitlines()
    ]
    dice, rows = random.Random(1), []
    for number, (begin, end) in enumerate(halves):
        other = halves[(number + dice.randrange(1, len(halves))) % len(halves)][1]
        rows += [(begin, end, "entailment"), (begin, other, "not_entailment")]
    (folder / "RTE").mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[:64]), ("dev", rows[64:])):
        lines = ["index\tsentence1\tsentence2\tlabel"]
        lines += [f"{number}\t{a}\t{b}\t{label}".replace('"', "") for number, (a, b, label) in enumerate(part)]
        write_text(folder / "RTE" / f"{name}.tsv", "\n".join(lines) + "\n")


def rehearse(walk: Walk) -> int:
    """Run every command; the code of the first that fails, or 0."""
    steps, took = steps_of(walk), []
    door = as_typed("python -m pipeline plan").removesuffix(" plan")
    for number, step in enumerate(steps, 1):
        on_cluster = step.cluster if step.cluster.startswith("sbatch") else f"{door} {step.cluster}"
        print(
            f"\n== {number}/{len(steps)} {step.title}\n   cluster: {on_cluster}\n   here:    {door} {shlex.join(step.here)}",
            flush=True,
        )
        began = time.monotonic()
        code = subprocess.run([sys.executable, "-m", "pipeline", *step.here]).returncode
        took.append(time.monotonic() - began)
        if code:
            print(
                f"error: {door} {step.here[0]} ended with code {code}; the same rehearsal continues there",
                file=sys.stderr,
            )
            return code
    rows = [
        ["command", "seconds"],
        *([step.here[0], f"{seconds:.0f}"] for step, seconds in zip(steps, took, strict=True)),
    ]
    print("\n" + "\n".join(aligned(rows)))
    print(f"\n{len(steps)} commands in {sum(took) / 60:.1f} minutes, all ended with 0: {walk.folder}/results/report.md")
    return 0


def parser() -> Parser:
    """The command line."""
    result = Parser(
        prog="python -m pipeline rehearse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("recipe", metavar="RECIPE", help="a shipped recipe of the papers, or a file like it")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    result.add_argument("--out", default="", metavar="DIR", help="for all that is made (default: runs/rehearse/RECIPE)")
    return result


def main() -> int:
    options = parser().parse_args()
    name = find_recipe(options.recipe).stem
    walk = walk_of(options.recipe, options.overrides, Path(options.out or f"runs/rehearse/{name}"))
    _fetch(TEXTS)
    if walk.corpus == "cc100":
        _fetch(MULTILINGUAL)
    write_rows(TEXTS / "lee" / "lee.cor", walk.folder / "glue")
    os.environ.setdefault("DISTILL_PARENT", str(os.getpid()))
    return rehearse(walk)


if __name__ == "__main__":
    run_command(main)
