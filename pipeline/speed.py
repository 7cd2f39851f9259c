"""Measure how much faster and smaller students are than their teacher, and compare that with the paper's figures.

    python -m pipeline.speed REFERENCE STUDENT ... [--data QNLI/dev.tsv] [--out results/]

Whole encoders in inference mode run the same 100 batches in turn, so that a machine whose speed changes alters ratios
little, and medians count. The batches are QNLI's dev set (MiniLM, arXiv 2002.10957, measures 100 batches of it) or, without
--data, made-up ids of full length. bf16 where the GPU, or without one the CPU, is faster in it, else fp32.
On CPUs the forms in a folder's onnx/ and openvino/ take their turns too, in ONNX Runtime and OpenVINO: fp32, or int8.
With --out, RESULTS/STUDENT/speed.json receives each student's figures for the report.
"""

import argparse
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from data_prep.cli import Parser, UserError, aligned, as_typed, run_command, whole_number
from data_prep.files import write_json
from pipeline.artifacts import results
from pipeline.evaluate.scored_model import describe_model, name_of
from pipeline.evaluate.task_files import read_tsv
from pipeline.forms.files import folder_of, forms_of, is_form
from pipeline.forms.running import FormEncoder
from pipeline.measuring import Batch, device_here, device_name, forward_seconds, made_up_batches, usual_dtype
from pipeline.models.families import longest_input
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.paper import size, speedup


def qnli_batches(path: Path, models: dict[str, str], batches: int, batch: int, length: int) -> dict[str, list[Batch]]:
    """The first question–sentence pairs of a QNLI file, encoded for each model and padded to the longest of a batch.

    ``models`` names each model's folder or hub id. Raises UserError if the file is not QNLI's or too short.
    """
    pairs = _read_qnli(path, batches * batch)
    made = {}
    for name, model in models.items():
        tokenizer = load_tokenizer(str(folder_of(Path(model))) if is_form(model) else model)
        chunks = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
        made[name] = [_encoded(tokenizer, chunk, length) for chunk in chunks]
    return made


def _encoded(tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], length: int) -> Batch:
    questions, sentences = map(list, zip(*pairs, strict=True))
    encoded = tokenizer(questions, sentences, truncation=True, max_length=length, padding=True, return_tensors="pt")
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def _read_qnli(path: Path, count: int) -> list[tuple[str, str]]:
    rows = read_tsv(path, "qnli", [])
    if len(rows) < count:
        raise UserError(f"{path}: {len(rows)} rows, {count} are needed; lower --batches or --batch")
    first = rows[:count]
    return list(zip(first["first"], first["second"], strict=True))


def with_forms(models: list[str], device: torch.device) -> list[str]:
    """The models, each followed by the forms in its folder; on a GPU by none, which a printed line says."""
    forms = {model: [str(path) for path in forms_of(model)] for model in models}
    if device.type != "cpu" and (found := [name for names in forms.values() for name in names]):
        print(f"note: not measured, as this is a GPU and forms run on CPUs: {', '.join(found)}", flush=True)
        return models
    return list(dict.fromkeys(path for model in models for path in (model, *forms[model])))


def describe(models: list[str], out: Path | None) -> list[dict]:
    """Each model's description (model.json), under the name that the results folder ``out`` has for its weights.

    Raises UserError for two models of one name, or if ``out`` holds results of other weights under a model's name.
    """
    known = results.read_results(out).models if out and out.exists() else {}
    abouts = []
    for model in models:
        name = name_of(model)
        about = describe_model(model, name)
        same = [other for other in known if known[other]["weights"] == about["weights"]]
        if not same and name in known:
            assert out  # it is where the known ones come from
            weights = known[name]["weights"]
            raise UserError(
                f"{out / name}: of the weights {weights}, {model} has {about['weights']}; use another --out"
            )
        if same and name not in same:
            about["name"] = same[0]
        abouts.append(about)

    names = [about["name"] for about in abouts]
    if len(set(names)) < len(names):
        raise UserError(f"{', '.join(models)}: two are named {max(names, key=names.count)}; rename a folder")
    return abouts


def compare(abouts: list[dict], data: Path | None, shape: tuple[int, int, int]) -> list[dict]:
    """Measure the first model and the others. Returns the content of speed.json for each of the others.

    ``shape``: batches, sequences in each, tokens at most. Raises UserError for a length beyond a model's positions.
    """
    device = device_here()
    dtype = usual_dtype(device)
    paths = {about["name"]: about["path"] for about in abouts}
    batches = qnli_batches(data, paths, *shape) if data else {}
    models = {}
    for name, path in paths.items():
        models[name] = model = FormEncoder(Path(path)) if is_form(path) else _loaded(path, dtype, device)
        if shape[2] > (longest := longest_input(model.config)):
            raise UserError(f"--length {shape[2]}: {name} has {longest} positions; use at most that")

    seconds = forward_seconds(models, batches or made_up_batches(models, *shape), device)
    reference, *students = abouts
    text = f"{data.resolve().parent.name}/{data.name}" if data else results.MADE_UP
    where = device_name(device, dtype)
    return [_record(student, reference["name"], seconds, _where(student, where), shape, text) for student in students]


def _loaded(path: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    model = load_model(path, "main", dtype)
    model.to(device)  # type: ignore[arg-type]  # the decorator of transformers hides its signature
    return model


def _where(about: dict, device: str) -> str:
    """`cpu (2 threads), fp32`; of a form `cpu (2 threads), int8 in ONNX Runtime`."""
    form = about.get("form")
    return f"{device.rpartition(', ')[0]}, {form['precision']} in {form['runtime']}" if form else device


def _record(about: dict, reference: str, seconds: dict, device: str, shape: tuple[int, int, int], text: str) -> dict:
    student = about["name"]
    return {
        "format": results.FORMAT,
        "model": student,
        "reference": reference,
        "device": device,
        "batches": shape[0],
        "batch": shape[1],
        "length": shape[2],
        "text": text,
        "seconds": seconds[student],
        "reference_seconds": seconds[reference],
        "speedup": seconds[reference] / seconds[student],
    }


def write(out: Path, abouts: list[dict], records: list[dict]) -> None:
    """Write RESULTS/MODEL/model.json where there is none, and each student's speed.json; each file whole or not at all."""
    for about in abouts:
        folder = out / about["name"]
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / results.MODEL).exists():
            write_json(folder / results.MODEL, about)
    for record in records:
        write_json(out / record["model"] / results.SPEED, record)


def table(abouts: list[dict], records: list[dict]) -> list[str]:
    """Lines of a plain table: sizes, times and speed-ups, and the paper's speed-up of one such shape over the other."""
    reference, *students = abouts
    head = ("", "size", "in", "embeddings", "Transformer", "on disk", "a batch", "times as fast", "paper")
    rows: list[tuple[str, ...]] = [head]
    rows.append((*_columns(reference), f"{1e3 * records[0]['reference_seconds']:.1f} ms", "", ""))
    for about, record in zip(students, records, strict=True):
        theirs = None if about.get("form") else speedup(_size(about), _size(reference))
        figures = f"{1e3 * record['seconds']:.1f} ms", f"{record['speedup']:.2f}", f"{theirs:.2f}" if theirs else "-"
        rows.append((*_columns(about), *figures))
    return aligned(rows)


def _columns(about: dict) -> tuple[str, ...]:
    millions = (f"{about['parameters'][key] / 1e6:.1f} M" for key in ("embeddings", "transformer"))
    form = about.get("form")
    runs_in = f"{form['runtime']}, {form['precision']}" if form else "PyTorch"
    return (about["name"], _size(about), runs_in, *millions, f"{about['bytes'] / 1e6:.1f} MB")


def _size(about: dict) -> str:
    return size(about["layers"], about["hidden"])


def parser() -> Parser:
    made = Parser(
        prog="python -m pipeline.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    count = whole_number(1)
    add = made.add_argument
    add("reference", metavar="REFERENCE", help="the teacher: a folder or hub id")
    add(
        "students",
        metavar="STUDENT",
        nargs="+",
        help="folders, hub ids, or a form in a folder like DIR/onnx/model.onnx",
    )
    add("--data", type=Path, metavar="FILE", help="QNLI's dev.tsv (default: made-up ids)")
    add("--batches", type=count, default=100, metavar="N", help="default: 100, as in the paper")
    add("--batch", type=count, default=32, metavar="N", help="sequences in a batch (default: 32)")
    add("--length", type=count, default=128, metavar="N", help="tokens at most (default: 128)")
    add("--out", type=Path, metavar="RESULTS", help="a results folder, for the report")
    return made


def main() -> None:
    options = parser().parse_args()
    transformers_logging.disable_progress_bar()
    abouts = describe(with_forms([options.reference, *options.students], device_here()), options.out)
    if options.out:
        results.make_folder(options.out)

    records = compare(abouts, options.data, (options.batches, options.batch, options.length))
    device = device_here()
    print(f"{results.measured_on(records[0] | {'device': device_name(device, usual_dtype(device))})}:")
    print("\n".join(table(abouts, records)))
    print("paper: MiniLM, arXiv 2002.10957, its figures over 12x768; - where it has none")
    if options.out:
        write(options.out, abouts, records)
        print(as_typed(f"written to {options.out}; the report shows them: python -m pipeline.report {options.out}"))


if __name__ == "__main__":
    run_command(main)
