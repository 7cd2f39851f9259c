"""Turn a run's newest checkpoint into a plain Hugging Face folder, reloaded and compared before it is called done.

    python -m pipeline.export RUN_DIR OUT_DIR
    python -m pipeline.export --untrained RECIPE OUT_DIR [key=value …]      the student before its first step, to compare with

OUT_DIR receives config.json, model.safetensors (fp32), the tokenizer and a model card; AutoModel and AutoTokenizer load it.
distillation.json there says how it was made: a list with what its checkpoint says of itself (recipe, step, corpus, hashes),
after the list of its teacher if that was a student too.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from data_prep.errors import Parser, UserError, run_command
from pipeline import checkpoints, encoders, runs
from pipeline.checkpoints import Checkpoint
from pipeline.monitor import heldout_rows
from pipeline.recipe import Recipe, load_recipe, recipe_of
from pipeline.relations import value_mse_note
from pipeline.weights import Weights

DISTILLATION = "distillation.json"
# What an export may hold, and so what it may replace.
_FILES = {
    "README.md", DISTILLATION, "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "sentencepiece.bpe.model",
}  # fmt: skip

transformers_logging.disable_progress_bar()


def export(run: Path, out: Path) -> Checkpoint:
    """Write the student of ``run`` to ``out``, which must be new, empty, or an earlier export; returns its checkpoint.

    Raises UserError if there is no whole checkpoint or ``out`` holds something else.
    """
    checkpoint = checkpoints.newest_of(run)
    checkpoint.check()
    out = out.resolve()
    if out.exists() and not _may_be_replaced(out, run):
        raise UserError(f"{out}: exists and is not an exported student of {run.name}; choose a new folder")
    model = load_student(run, checkpoint)
    chain = distillation_of(checkpoint)
    files = {DISTILLATION: json.dumps(chain, indent=1) + "\n", "README.md": model_card(run, checkpoint, model, chain)}
    _write(out, model, encoders.load_folder_tokenizer(run / "student"), files)
    return checkpoint


def export_untrained(recipe: Recipe, out: Path) -> None:
    """Write to ``out``, which must be new or empty, the student as a run of ``recipe`` starts it."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists; choose a new folder")
    config = recipe.teacher_config()
    recipe.check_teacher(config)
    teacher = recipe.teacher.model, recipe.teacher.revision
    model = untrained_student(recipe, config, encoders.weights_of(*teacher, config)).eval()
    start = f"{recipe.student.layers} layers × {recipe.student.hidden}, {recipe.student.init} weights, not trained"
    _write(out, model, student_tokenizer(recipe), {"README.md": f"# {recipe.source}: {start}\n"})


def untrained_student(recipe: Recipe, teacher_config, teacher: Weights) -> PreTrainedModel:
    """The whole student, fp32, as it starts."""
    student = encoders.build_student(recipe.student_config(teacher_config), recipe.seed)
    initialise(student, recipe, teacher_config, teacher)
    return student


def initialise(student: PreTrainedModel, recipe: Recipe, teacher_config, teacher: Weights) -> None:
    """Put in the place of its random numbers what ``student.init`` takes of ``teacher``."""
    if recipe.student.init == "teacher":
        encoders.copy_every_kth_layer(teacher, student, recipe.teacher.layer, recipe.student_ids())
    elif recipe.student.init == "pca":
        encoders.project_embeddings(teacher, teacher_config, student, recipe.student_ids())


def student_tokenizer(recipe: Recipe):
    """The tokenizer that the student is exported with: the teacher's, or that of its own smaller vocabulary."""
    if recipe.student.vocab:
        return encoders.load_tokenizer(recipe.student.vocab)
    return encoders.load_tokenizer(recipe.teacher.model, recipe.teacher.revision)


def _write(out: Path, model: PreTrainedModel, tokenizer, files: dict[str, str]) -> None:
    """A model's folder, written aside, reloaded and compared, in the place of ``out``."""
    aside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        model.save_pretrained(aside)
        runs.save_tokenizer(tokenizer, aside)
        for name, text in files.items():
            (aside / name).write_text(text, encoding="utf-8")
        check_export(aside, model)
        former = out.with_name(f".{out.name}.former")
        shutil.rmtree(former, ignore_errors=True)
        if out.exists():
            out.rename(former)
        aside.rename(out)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_distillation(folder: Path) -> list[dict]:
    """How the model of ``folder`` was made, the first teacher's student first; empty if it was not distilled here.

    Raises UserError if the file is not what export writes.
    """
    path = folder / DISTILLATION
    if not path.is_file():
        return []
    try:
        chain = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); export the model again") from None
    return _checked(chain, path)


def distillation_of(checkpoint: Checkpoint) -> list[dict]:
    """How its student was made: what the checkpoint says of its teacher, and then of itself, without this machine's paths."""
    own = {key: value for key, value in checkpoint.info.items() if key != "id"} | {
        "teacher": dict(checkpoint.info["teacher"]),
        "recipe": runs.what_decides(checkpoint.info["recipe"]),
    }
    return [*_checked(own["teacher"].pop("distillation", []), checkpoint.path), own]


def _checked(chain: object, path: Path) -> list[dict]:
    if not isinstance(chain, list) or not all(
        isinstance(one, dict) and {"sha256", "recipe"} <= one.keys() for one in chain
    ):
        raise UserError(f"{path}: not what export writes; export the model again")
    for one in chain:
        recipe_of(one["recipe"], str(path))
    return chain


def is_export_of(out: Path, checkpoint: Checkpoint) -> bool:
    """Whether ``out`` holds the student of this very checkpoint."""
    return [one["sha256"] for one in read_distillation(out)[-1:]] == [checkpoint.info["sha256"]]


def _may_be_replaced(out: Path, run: Path) -> bool:
    """Whether ``out`` is an empty folder or holds an earlier export of this run and nothing else."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else {""}
    return not names or (names <= _FILES and "README.md" in names and _mark(run) in (out / "README.md").read_text())


def _mark(run: Path) -> str:
    return f"<!-- written by pipeline.export from the run {run.resolve().name} -->"


def load_student(run: Path, checkpoint: Checkpoint) -> PreTrainedModel:
    """The student of a checkpoint as a transformers model, fp32, in eval mode."""
    config = encoders.load_folder_config(run / "student")
    model = AutoModel.from_config(config, dtype=torch.float32)
    checkpoint.load_into(model)
    return model.eval()


def check_export(folder: Path, model: PreTrainedModel) -> None:
    """Reload the folder as a user would: every weight and the output on a probe must be the same, bit for bit."""
    reloaded = AutoModel.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
    for (name, ours), theirs in zip(model.state_dict().items(), reloaded.state_dict().values(), strict=True):
        if not torch.equal(ours, theirs):
            raise RuntimeError(f"{folder}: {name} changed on the way to disk and back")
    probe = encoders.load_folder_tokenizer(folder)(
        ["The student is small.", "Read back."], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        ours, theirs = (m(**probe).last_hidden_state for m in (model, reloaded))
    if not torch.equal(ours, theirs):
        raise RuntimeError(f"{folder}: the reloaded student computes something else")


def model_card(run: Path, checkpoint: Checkpoint, model: PreTrainedModel, chain: list[dict]) -> str:
    """What this model is: teacher, method, data and numbers, all from the run's own files."""
    info, recipe = checkpoint.info, checkpoint.info["recipe"]
    count = encoders.count_parameters(model.config)
    pairs = ", ".join(recipe["pairs"])
    heldout = heldout_rows(run, checkpoint.step)
    names = ["loss", *recipe["pairs"]] if heldout else []
    shapes = [f"{one['recipe']['student']['layers']} × {one['recipe']['student']['hidden']}" for one in chain]
    way = " → ".join([chain[0]["recipe"]["teacher"]["model"], *shapes])
    table = "\n".join(
        f"| {row['step']} | " + " | ".join(f"{row[name]:.4f}" for name in names) + " |" for row in heldout
    )
    return f"""---
library_name: transformers
tags: [minilm, distillation]
---
{_mark(run)}

# {run.name}: {recipe["student"]["layers"]} layers × {recipe["student"]["hidden"]}, distilled from {recipe["teacher"]["model"]}

A {model.config.model_type} encoder of {count["total"] / 1e6:.2f} M parameters ({count["embeddings"] / 1e6:.1f} M word
embeddings, {count["transformer"] / 1e6:.1f} M Transformer layers), trained by deep self-attention distillation (MiniLM, arXiv
2002.10957; MiniLMv2, arXiv 2012.15828). It is a pretrained encoder: fine-tune it for your task.

| | |
|---|---|
| teacher | {recipe["teacher"]["model"]}, layer {recipe["teacher"]["layer"]}, weights {info["teacher"]["weights"]} |
| relations | {pairs}; {recipe["relation_heads"]} relation heads |
| chain | {way}{" (by a teacher assistant)" if len(chain) > 1 else ""} |
| layers | {"each from one of the teacher's" if recipe.get("transfer") == "layer-to-layer" else "the last"} |
| initialisation | {recipe["student"]["init"]} |
| data | {", ".join(f"{name}: {tokens:,} tokens" for name, tokens in info["tokens"].items())}; corpus {info["corpus"]} |
| training | {info["step"]} of {recipe["steps"]} steps × {recipe["batch"]} sequences × {recipe["length"]} tokens |
| layout | {recipe.get("layout", "full")} |
| optimizer | Adam, learning rate {recipe["learning_rate"]}, {recipe["warmup_steps"]} warm-up steps, linear decay |
| precision | {recipe["precision"]} |
| versions | {", ".join(f"{name} {version}" for name, version in info["versions"].items())} |

Held-out relation loss (KL divergence of teacher ‖ student in nats{value_mse_note(recipe["pairs"])}) by step:

| step | {" | ".join(names)} |
|{"---|" * (len(names) + 1)}
{table}

```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModel.from_pretrained("path/to/this/folder")
```
"""


def main() -> None:
    parser = Parser(
        prog="python -m pipeline.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a folder that pipeline.distill wrote, or a recipe")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="the student's new folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    parser.add_argument(
        "--untrained", action="store_true", help="the student with which a run of the recipe RUN_DIR starts"
    )
    options = parser.parse_intermixed_args()
    if options.untrained:
        export_untrained(load_recipe(options.run, options.overrides), options.out)
        print(f"{options.out}: the student with which {options.run} starts, reloaded and found the same, bit for bit")
        return
    if options.overrides:
        raise UserError(f"{options.overrides[0]}: a run has been made with its recipe; key=value goes with --untrained")
    checkpoint = export(options.run, options.out)
    steps = checkpoint.info["recipe"]["steps"]
    state = "finished" if checkpoint.step == steps else f"step {checkpoint.step} of {steps}"
    print(f"{options.out}: the student of {options.run} ({state}), reloaded and found the same, bit for bit")


if __name__ == "__main__":
    run_command(main)
