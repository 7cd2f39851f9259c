"""Turn a run's newest checkpoint into a plain Hugging Face folder, reloaded and compared before it is called done.

    python -m pipeline.export RUN_DIR OUT_DIR
    python -m pipeline.export RUN_DIR OUT_DIR --to onnx,openvino --int8     and in these forms, in onnx/ and openvino/
    python -m pipeline.export RUN_DIR OUT_DIR --push ORG/NAME               and put the folder on the hub
    python -m pipeline.export --untrained RECIPE OUT_DIR [key=value …]      the student before its first step, to compare with

OUT_DIR receives config.json, model.safetensors (fp32), the tokenizer and a model card; AutoModel and AutoTokenizer load it. If
the teacher's folder is one of sentence-transformers, so is the student's: it pools in the same way.
Other forms (an extra: pip install --editable '.[forms]') are compared with the folder's own outputs on texts of the run.
The run's last held-out loss is computed again from what was written: if it is another, OUT_DIR stays as it was.
distillation.json records its provenance: checkpoint, recipe, corpus and hashes, preceded by the teacher's if that was
distilled too.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from data_prep.cli import Parser, UserError, run_command
from data_prep.files import new_folder, write_text
from pipeline.artifacts import checkpoints
from pipeline.artifacts.card import CARD, card_text, read_metadata, student_metadata, with_scores_of
from pipeline.artifacts.checkpoints import Checkpoint
from pipeline.artifacts.distillation import DISTILLATION, distillation_of, is_export_of
from pipeline.artifacts.metrics import heldout_rows
from pipeline.artifacts.upload import check_upload, upload
from pipeline.forms.files import RUNTIMES
from pipeline.forms.making import Wanted, check_libraries, make_forms, versions
from pipeline.forms.texts import sample_texts
from pipeline.models.counting import count_parameters
from pipeline.models.fit import (
    check_teacher,
    student_tokenizer,
    teacher_config_of,
    tokenizer_origin,
    untrained_student,
    with_segments,
)
from pipeline.models.loading import load_folder_config, load_folder_tokenizer, weights_of
from pipeline.models.pooling import DENSE, DENSE_WEIGHTS, MODULES, POOLING_FILES, dense_weights, pooling_files
from pipeline.models.portable import TOKENIZER_FILES, add_older_keys, loads_in, write_tokenizer
from pipeline.pairs import VECTOR_MAP, loss_note
from pipeline.settings.reading import load_recipe
from pipeline.settings.recipe import INITS, Recipe
from pipeline.settings.values import recipe_of
from pipeline.training.progress import Progress
from pipeline.training.recomputing import NOT_RECOMPUTED, recompute

# What an export may hold, and so what it may replace.
_FILES = {CARD, DISTILLATION, "config.json", "model.safetensors", *TOKENIZER_FILES, *RUNTIMES}
_FILES |= {name.partition("/")[0] for name in (*POOLING_FILES, DENSE)}

_EMBEDS = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
_PLACE = "path/to/this/folder"  # in the card; the hub's id where it is put there
_BY_TRANSFORMERS = """```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModel.from_pretrained("path/to/this/folder")
```
"""
_BY_SENTENCE_TRANSFORMERS = """
As vectors of texts, pooled as the teacher's:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
vectors = model.encode(["The student is small.", "It is a small student."])
```
"""

_RELATIONS = """trained by deep self-attention distillation (MiniLM, arXiv
2002.10957; MiniLMv2, arXiv 2012.15828). It is a pretrained encoder: fine-tune it for your task."""
_VECTORS = """trained to give the
vectors of texts that its teacher gives."""

transformers_logging.disable_progress_bar()


def export(
    run: Path, out: Path, recomputes: bool = True, progress: Progress | None = None, wanted: Wanted | None = None
) -> Checkpoint:
    """Write the student of ``run`` to ``out``, which must be new, empty, or an earlier export; returns its checkpoint.

    If it ``recomputes``, the folder's held-out loss is compared with the run's before it is put in place, and so are the
    outputs of all ``wanted`` forms. Raises UserError if there is no whole checkpoint, ``out`` holds something else, or the loss
    or an output is another. ``progress`` is the watchdog's, in a run.
    """
    checkpoint = checkpoints.newest_of(run)
    checkpoint.check()
    out = out.resolve()
    if out.exists() and not _may_be_replaced(out, run):
        raise UserError(f"{out}: exists and is not an exported student of {run.name}; choose a new folder")
    model = load_student(run, checkpoint)
    chain = distillation_of(checkpoint)

    def files(written: Path) -> dict[str, str | bytes]:
        pools = {name: run / "student" / name for name in (*POOLING_FILES, DENSE) if (run / "student" / name).is_file()}
        said = recompute(run, checkpoint, written, progress) if recomputes else NOT_RECOMPUTED
        card = model_card(run, checkpoint, model, chain, said)
        card += _forms(written, wanted, recipe_of(checkpoint.info["recipe"], str(checkpoint.path)))
        if is_export_of(out, checkpoint):
            card = with_scores_of(card, out / CARD)
        own: dict[str, str | bytes] = {name: path.read_text(encoding="utf-8") for name, path in pools.items()}
        tensors = checkpoint.tensors()
        own |= {DENSE_WEIGHTS: dense_weights(tensors[VECTOR_MAP])} if VECTOR_MAP in tensors else {}
        return own | {DISTILLATION: json.dumps(chain, indent=1) + "\n", CARD: card}

    tokenizer = run / "student"
    paired = checkpoint.info["recipe"].get("segments") == "pairs"
    _write(out, model, load_folder_tokenizer(tokenizer), (str(tokenizer), "main"), files, paired)
    return checkpoint


def export_untrained(recipe: Recipe, out: Path, wanted: Wanted | None = None) -> None:
    """Write to ``out``, which must be new or empty, the student as a run of ``recipe`` starts it, also in ``wanted`` forms."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists; choose a new folder")
    config = teacher_config_of(recipe)
    check_teacher(recipe, config)
    teacher = recipe.teacher.model, recipe.teacher.revision
    model = untrained_student(recipe, config, weights_of(*teacher, config)).eval()
    origin = recipe.student.init if recipe.student.init in INITS else Path(recipe.student.init).name
    start = f"{recipe.student.layers} layers × {recipe.student.hidden}, {origin} weights, not trained"
    metadata = student_metadata(recipe)
    card = f"# {recipe.source}: {start}\n\nLoads in {loads_in(model.config)}. License: {_license(metadata)}.\n"
    pools = pooling_files(*teacher, model.config)

    def files(written: Path) -> dict[str, str | bytes]:
        return {**pools, CARD: card_text(metadata, f"\n{card}{_forms(written, wanted, recipe)}")}

    tokenizer = student_tokenizer(recipe)
    paired = with_segments(recipe, config, tokenizer).segments == "pairs"
    _write(out, model, tokenizer, tokenizer_origin(recipe), files, paired)


def _write(
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    origin: tuple[str, str],
    files: Callable[[Path], Mapping[str, str | bytes]],
    paired: bool,
) -> None:
    """Write a model's folder, reload and compare it, add what ``files`` makes of it, and then put it in ``out``'s place."""
    with new_folder(out) as written:
        model.save_pretrained(written)
        add_older_keys(written / "config.json", model.config)
        write_tokenizer(tokenizer, origin, model.config, written, paired)
        check_export(written, model)
        for name, content in files(written).items():
            (written / name).parent.mkdir(exist_ok=True)
            (written / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _forms(written: Path, wanted: Wanted | None, recipe: Recipe) -> str:
    """Make the wanted forms of a written folder, print what became of them, and return the card's section on them."""
    if wanted is None or not wanted.kinds:
        return ""
    texts, what = sample_texts(recipe.data, recipe.teacher.model, recipe.teacher.revision)
    print(f"Comparing {', '.join(RUNTIMES[kind] for kind in wanted.kinds)} with the folder on {what} …", flush=True)
    made = make_forms(written, wanted, texts)
    for form in made:
        print(form, flush=True)
    rows = [
        f"| {form.file} | {form.runtime} | {form.precision} | {form.bytes / 1e6:.1f} | {form.nearness} |"
        for form in made
    ]
    loads = [
        f'SentenceTransformer("{_PLACE}", backend="{form.file.partition("/")[0]}", model_kwargs={{"file_name": "{form.file}"}})'
        for form in made
    ]
    usage = ["", "```python", *loads, "```"] if (written / MODULES).is_file() else []
    lines = ["", f"Other forms, compared with model.safetensors on {what}:", ""]
    lines += [
        "| file | runs in | weights | MB | compared |",
        "|---|---|---|---:|---|",
        *rows,
        "",
        f"Made with {versions(wanted.kinds)}.",
    ]
    return "\n".join([*lines, *usage]) + "\n"


def _may_be_replaced(out: Path, run: Path) -> bool:
    """Whether ``out`` is an empty folder or holds an earlier export of this run and nothing else."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else {""}
    return not names or (names <= _FILES and CARD in names and _mark(run) in (out / CARD).read_text())


def _mark(run: Path) -> str:
    return f"<!-- written by pipeline.export from the run {run.resolve().name} -->"


def load_student(run: Path, checkpoint: Checkpoint) -> PreTrainedModel:
    """The student of a checkpoint as a transformers model, fp32, in eval mode."""
    config = load_folder_config(run / "student")
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
    probe = load_folder_tokenizer(folder)(["The student is small.", "Read back."], padding=True, return_tensors="pt")
    with torch.no_grad():
        ours, theirs = (m(**probe).last_hidden_state for m in (model, reloaded))
    if not torch.equal(ours, theirs):
        raise RuntimeError(f"{folder}: the reloaded student computes something else")


def model_card(
    run: Path, checkpoint: Checkpoint, model: PreTrainedModel, chain: list[dict], recomputed: str = NOT_RECOMPUTED
) -> str:
    """The model card: teacher, method, data and numbers, all from the run's own files."""
    info, recipe = checkpoint.info, checkpoint.info["recipe"]
    metadata, count = _metadata(run, checkpoint), count_parameters(model.config)
    teacher = metadata.get("base_model", recipe["teacher"]["model"])
    whole = recipe_of(recipe, str(checkpoint.path))
    heldout = heldout_rows(run, checkpoint.step)
    names = ["loss", *whole.parts] if heldout else []
    students = _students(chain)
    shapes = [f"{student['layers']} × {student['hidden']}" for student in students]
    way = " → ".join([chain[0]["recipe"]["teacher"]["model"], *shapes])
    rows = [" | ".join([str(row["step"]), *(f"{row[name]:.4f}" for name in names)]) for row in heldout]
    table = "\n".join(f"| {row} |" for row in rows)
    body = f"""{_mark(run)}

# {run.name}: {recipe["student"]["layers"]} layers × {recipe["student"]["hidden"]}, distilled from {teacher}

A {model.config.model_type} encoder of {count["total"] / 1e6:.2f} M parameters ({count["embeddings"] / 1e6:.1f} M word
embeddings, {count["transformer"] / 1e6:.1f} M Transformer layers), {_VECTORS if whole.embeds else _RELATIONS}

| | |
|---|---|
| teacher | {recipe["teacher"]["model"]}, layer {recipe["teacher"]["layer"]}, weights {info["teacher"]["weights"]} |
{_what(whole)}
| chain | {way}{" (by a teacher assistant)" if len(students) > 1 else ""} |
| initialisation | {chain[-1]["recipe"]["student"]["init"]} |
| data | {", ".join(f"{name}: {tokens:,} tokens" for name, tokens in info["tokens"].items())}; corpus {info["corpus"]} |
| training | {info["step"]} of {recipe["steps"]} steps × {recipe["batch"]} sequences × {recipe["length"]} tokens |
| layout | {recipe.get("layout", "full")}, {recipe.get("segments", "single")} |
| optimizer | Adam, learning rate {recipe["learning_rate"]}, {recipe["warmup_steps"]} warm-up steps, {_decay(info)} |
| precision | {recipe["precision"]} |
| loads in | {loads_in(model.config)} |
| license | {_license(metadata)} |
| versions | {", ".join(f"{name} {version}" for name, version in info["versions"].items())} |

{_measured(whole)} by step:

| step | {" | ".join(names)} |
|{"---|" * (len(names) + 1)}
{table}

{recomputed}

{_usage(run)}"""
    return card_text(metadata, body, run / "student" / CARD)


def _students(chain: list[dict]) -> list[dict]:
    """The students of a chain that are models of their own: one that another went on from is that one."""
    students = [made["recipe"]["student"] for made in chain]
    followers = [student["init"] for student in students[1:]] + ["random"]
    return [student for student, next_init in zip(students, followers, strict=True) if next_init in INITS]


def _what(recipe: Recipe) -> str:
    """The card's rows on what was learnt."""
    if recipe.embeds:
        return "| learnt | pooled vectors of texts: cosine, and similarities within a micro-batch of " + (
            f"{recipe.micro_batch} {'rows' if recipe.layout == 'packed' else 'texts'} |"
        )
    layers = "each from one of the teacher's" if recipe.transfer == "layer-to-layer" else "the last"
    return f"| relations | {', '.join(recipe.pairs)}; {recipe.relation_heads} relation heads |\n| layers | {layers} |"


def _measured(recipe: Recipe) -> str:
    """What the card's losses are."""
    if recipe.embeds:
        return f"Held-out loss ({loss_note(recipe.parts)})"
    return f"Held-out relation loss (KL divergence of teacher ‖ student in {loss_note(recipe.parts)})"


def _decay(info: dict) -> str:
    """How the learning rate fell, of a run that was given more steps on its way too."""
    parts = [f", until step {step} as for {steps} steps" for step, steps in info.get("earlier_steps", [])]
    return "linear decay" + "".join(parts)


def _metadata(run: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """The metadata that the run wrote at its start; of an old run, what its teacher says now."""
    found = read_metadata(run / "student" / CARD)
    found = found or student_metadata(recipe_of(checkpoint.info["recipe"], str(checkpoint.path)))
    return found | (_EMBEDS if (run / "student" / MODULES).is_file() else {})


def _usage(run: Path) -> str:
    return _BY_TRANSFORMERS + (_BY_SENTENCE_TRANSFORMERS if (run / "student" / MODULES).is_file() else "")


def _license(metadata: dict[str, Any]) -> str:
    return metadata.get("license", "not said by the teacher's card; look it up before you publish the student")


def parser() -> Parser:
    """The command line of ``python -m pipeline.export``."""
    made = Parser(
        prog="python -m pipeline.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "run", type=Path, metavar="RUN_DIR", help="a folder that distill wrote; with --untrained a recipe"
    )
    made.add_argument("out", type=Path, metavar="OUT_DIR", help="the student's new folder")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    made.add_argument(
        "--no-recompute",
        action="store_true",
        help="do not compute the held-out loss again, from the exported folder; with a large teacher that takes a while",
    )
    made.add_argument(
        "--untrained", action="store_true", help="the student with which a run of the recipe RUN_DIR starts"
    )
    made.add_argument(
        "--to", type=_kinds, default=(), metavar="FORM[,FORM]", help=f"also in these forms: {', '.join(RUNTIMES)}"
    )
    made.add_argument("--int8", action="store_true", help="each of these forms also with weights of 8 bits")
    made.add_argument("--push", metavar="ORG/NAME", help="put the folder on the Hugging Face hub as this model")
    made.add_argument("--private", action="store_true", help="with --push: as a private model, if it is a new one")
    return made


def _kinds(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in RUNTIMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no form; forms are {', '.join(RUNTIMES)}")
    return names


def _check(options: argparse.Namespace) -> None:
    """Raise UserError for options that clash, and for what forms and upload need and is not there."""
    if options.overrides and not options.untrained:
        raise UserError(f"{options.overrides[0]}: a run has been made with its recipe; key=value goes with --untrained")
    if options.int8 and not options.to:
        raise UserError(f"--int8: of which form? --to {','.join(RUNTIMES)} --int8; the folder itself stays fp32")
    if options.private and not options.push:
        raise UserError("--private: goes with --push ORG/NAME")
    check_libraries(options.to, options.int8)
    if options.push:
        check_upload(options.push)


def main() -> None:
    options = parser().parse_intermixed_args()
    _check(options)
    wanted = Wanted(options.to, options.int8)
    if options.untrained:
        export_untrained(load_recipe(options.run, options.overrides), options.out, wanted)
        what = f"the student with which {options.run} starts"
    else:
        checkpoint = export(options.run, options.out, not options.no_recompute, wanted=wanted)
        steps = checkpoint.info["recipe"]["steps"]
        state = "finished" if checkpoint.step == steps else f"step {checkpoint.step} of {steps}"
        what = f"the student of {options.run} ({state})"
    print(f"{options.out}: {what}, reloaded and verified identical, bit for bit")
    if options.push:
        card = options.out / CARD
        write_text(card, card.read_text(encoding="utf-8").replace(_PLACE, options.push))
        print(f"{options.out}: uploaded to {upload(options.out, options.push, options.private)}")


if __name__ == "__main__":
    run_command(main)
