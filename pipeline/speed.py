"""How much faster a student is than its teacher, and how much smaller, beside the paper's figures.

    python -m pipeline.speed REFERENCE STUDENT ... [--data QNLI/dev.tsv] [--out results/]

Whole encoders in inference mode run the same 100 batches turn by turn, so that a machine whose speed changes alters ratios
little, and medians count. The batches are QNLI's dev set (MiniLM, arXiv 2002.10957, measures 100 batches of it) or, without
--data, made-up ids of full length. fp32 on CPUs and on GPUs without bf16 units, bf16 on other GPUs.
With --out, RESULTS/STUDENT/speed.json receives each student's figures for the report.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from data_prep.errors import Parser, UserError, run_command, whole_number
from data_prep.shards import write_json
from pipeline import encoders, paper, results
from pipeline.precision import has_bf16_gpu
from pipeline.scored_model import describe_model, name_of
from pipeline.task_data import read_tsv
from pipeline.tasks import TASKS

_FIRST_ORDINARY = 1000  # made-up ids begin here where the vocabulary is large enough: below are special and unused ones

Batch = dict[str, Tensor]


@torch.inference_mode()
def measure(models: dict[str, Callable], batches: dict[str, Sequence[Batch]], device: torch.device) -> dict[str, float]:
    """Median seconds of a forward by each model: batch 1 by one after the other, then batch 2, …

    ``batches`` holds each model's inputs (its own ids of the same text). A forward of the first batch by each warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    for name, model in models.items():
        _timed(model, batches[name][0], device)
    turns = range(len(next(iter(batches.values()))))
    for turn in tqdm(turns, unit="batch", disable=not sys.stderr.isatty() or len(turns) < 20, leave=False):
        for name, model in models.items():
            times[name].append(_timed(model, batches[name][turn], device))
    return {name: statistics.median(each) for name, each in times.items()}


def _timed(model: Callable, batch: Batch, device: torch.device) -> float:
    inputs = {key: tensor.to(device) for key, tensor in batch.items()}
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    model(**inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def usual_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usual_dtype(device: torch.device) -> torch.dtype:
    """bf16 where a GPU computes in it, else fp32."""
    return torch.bfloat16 if device.type == "cuda" and has_bf16_gpu() else torch.float32


def device_name(device: torch.device, dtype: torch.dtype) -> str:
    """What a figure is of: device, threads, precision."""
    kind = "bf16" if dtype == torch.bfloat16 else "fp32"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {kind}"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'' if threads == 1 else 's'}), {kind}"


# --- batches ----------------------------------------------------------------------------------------------------------


def made_up_batches(
    models: dict[str, PreTrainedModel], batches: int, batch: int, length: int
) -> dict[str, list[Batch]]:
    """Random ids of full length that every model's vocabulary holds; each model gets the same ones."""
    vocabulary = min(model.config.vocab_size for model in models.values())
    low = min(_FIRST_ORDINARY, vocabulary // 2)
    ids = torch.randint(low, vocabulary, (batches, batch, length), generator=torch.Generator().manual_seed(0))
    made = [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]
    return dict.fromkeys(models, made)


def qnli_batches(path: Path, models: dict[str, str], batches: int, batch: int, length: int) -> dict[str, list[Batch]]:
    """The first question–sentence pairs of a QNLI file by each model's own tokenizer, padded to the longest of a batch.

    ``models`` names each model's folder or hub id. Raises UserError if the file is not QNLI's or too short.
    """
    pairs = _read_qnli(path, batches * batch)
    made = {}
    for name, model in models.items():
        tokenizer = encoders.load_tokenizer(model)
        chunks = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
        made[name] = [_encoded(tokenizer, chunk, length) for chunk in chunks]
    return made


def _encoded(tokenizer, pairs: list[tuple[str, str]], length: int) -> Batch:
    questions, sentences = map(list, zip(*pairs, strict=True))
    encoded = tokenizer(questions, sentences, truncation=True, max_length=length, padding=True, return_tensors="pt")
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def _read_qnli(path: Path, count: int) -> list[tuple[str, str]]:
    rows = read_tsv(path, "qnli", TASKS["qnli"].layout, [])
    if len(rows) < count:
        raise UserError(f"{path}: {len(rows)} rows, {count} are wanted; lower --batches or --batch")
    first = rows[:count]
    return list(zip(first["first"], first["second"], strict=True))


# --- the command ------------------------------------------------------------------------------------------------------


def describe(models: list[str], out: Path | None) -> list[dict]:
    """Each model's description (model.json), under the name that the results folder ``out`` knows its weights by.

    Raises UserError for two models of one name, or if ``out`` holds results of other weights under a model's name.
    """
    known = results.read_results(out).models if out and out.exists() else {}
    abouts = []
    for model in models:
        name = name_of(model)
        about = describe_model(model, name)
        same = sorted(
            (other for other in known if known[other]["weights"] == about["weights"]), key=lambda n: n != name
        )
        about["name"] = same[0] if same else name
        if not same and name in known:
            weights = known[name]["weights"]
            raise UserError(
                f"{out / name}: of the weights {weights}, {model} has {about['weights']}; use another --out"
            )
        abouts.append(about)
    names = [about["name"] for about in abouts]
    if len(set(names)) < len(names):
        raise UserError(f"{', '.join(models)}: two are named {max(names, key=names.count)}; rename a folder")
    return abouts


def compare(abouts: list[dict], data: Path | None, shape: tuple[int, int, int]) -> list[dict]:
    """Measure the first model and the others; the content of each other's speed.json.

    ``shape``: batches, sequences in each, tokens at most. Raises UserError for a length beyond a model's positions.
    """
    device = usual_device()
    dtype = usual_dtype(device)
    paths = {about["name"]: about["path"] for about in abouts}
    batches = qnli_batches(data, paths, *shape) if data else None
    models = {name: encoders.load_model(path, "main", dtype).to(device) for name, path in paths.items()}
    for name, model in models.items():
        if shape[2] > (longest := encoders.longest_input(model.config)):
            raise UserError(f"--length {shape[2]}: {name} has {longest} positions; use at most that")
    seconds = measure(models, batches or made_up_batches(models, *shape), device)
    reference, *students = paths
    text = f"{data.resolve().parent.name}/{data.name}" if data else results.MADE_UP
    where = device_name(device, dtype)
    return [_record(student, reference, seconds, where, shape, text) for student in students]


def _record(student: str, reference: str, seconds: dict, device: str, shape: tuple[int, int, int], text: str) -> dict:
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
    """RESULTS/MODEL/model.json where there is none, and each student's speed.json; every file whole or not at all."""
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
    rows = [("", "size", "embeddings", "Transformer", "a batch", "times as fast", "paper")]
    rows.append((*_columns(reference), f"{1e3 * records[0]['reference_seconds']:.1f} ms", "", ""))
    for about, record in zip(students, records, strict=True):
        theirs = paper.speedup(_size(about), _size(reference))
        figures = f"{1e3 * record['seconds']:.1f} ms", f"{record['speedup']:.2f}", f"{theirs:.2f}" if theirs else "-"
        rows.append((*_columns(about), *figures))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_aligned(row, widths)).rstrip() for row in rows]


def _columns(about: dict) -> tuple[str, ...]:
    millions = (f"{about['parameters'][key] / 1e6:.1f} M" for key in ("embeddings", "transformer"))
    return (about["name"], _size(about), *millions)


def _size(about: dict) -> str:
    return paper.size(about["layers"], about["hidden"])


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True))]


def main() -> None:
    parser = Parser(
        prog="python -m pipeline.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reference", metavar="REFERENCE", help="the teacher: a folder or hub id")
    parser.add_argument("students", metavar="STUDENT", nargs="+", help="folders or hub ids")
    parser.add_argument("--data", type=Path, metavar="FILE", help="QNLI's dev.tsv (default: made-up ids)")
    count = whole_number(1)
    parser.add_argument("--batches", type=count, default=100, metavar="N", help="default: 100, as in the paper")
    parser.add_argument("--batch", type=count, default=32, metavar="N", help="sequences in a batch (default: 32)")
    parser.add_argument("--length", type=count, default=128, metavar="N", help="tokens at most (default: 128)")
    parser.add_argument("--out", type=Path, metavar="RESULTS", help="a results folder, for the report")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    abouts = describe([options.reference, *options.students], options.out)
    if options.out:
        results.make_folder(options.out)
    records = compare(abouts, options.data, (options.batches, options.batch, options.length))
    print(f"{results.measured_on(records[0])}:")
    print("\n".join(table(abouts, records)))
    print("paper: MiniLM, arXiv 2002.10957, its figures over 12x768; - where it has no model of this shape")
    if options.out:
        write(options.out, abouts, records)
        print(f"written to {options.out}; the report shows them: python -m pipeline.report {options.out}")


if __name__ == "__main__":
    run_command(main)
