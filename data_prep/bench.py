"""``bench``: the speed of preparing, compared with the tokenizer alone, and the memory of a worker, on this machine.

Every comparison is made in one run, turn by turn, and reported as a median of ratios; times of different runs say little.
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_prep.cli import UserError
from data_prep.encode import Encoder, load_encoder, tokenizer_file
from data_prep.formats.by_name import open_format
from data_prep.inputs import describe_file, local_files
from data_prep.plan import MIB
from data_prep.units import Job, UnitReader, cut, prepare_unit
from data_prep.workers import Progress, run_units

CASES = ("tokenizer", "workers", "memory")

Run = Callable[[], Any]  # what is measured


@dataclass(frozen=True)
class Settings:
    """``text``: a glob; ``mib`` of it are read; ``memory_mib``: size of the largest file of the memory case."""

    text: str | None
    mib: float
    workers: int
    repeats: int
    memory_mib: int


@dataclass(frozen=True)
class Row:
    """A measurement: ``value`` in ``unit``, and its ``ratio`` to what ``beside`` names, if it is compared with anything."""

    name: str
    value: float
    unit: str
    ratio: float | None = None
    beside: str = ""

    def __str__(self) -> str:
        compared = f"   {self.ratio:.2f} x {self.beside}" if self.ratio is not None else ""
        return f"{self.name:58} {self.value:8.2f} {self.unit:5}{compared}"


def read_texts(pattern: str | None, mib: float) -> list[str]:
    """Documents of the files that match, the same amount from each, up to ``mib`` MiB in UTF-8.

    Raises UserError if there are none.
    """
    if pattern is None:
        raise UserError("--text: none is named; give text files, as 'cc100/*.txt.xz'")
    files = local_files(pattern, "--text")
    form = open_format("text")
    texts, limit = [], mib * MIB / len(files)
    for file in files:
        taken = 0
        for _, raw in form.split(file.path, 0):
            if text := form.clean(raw).text:
                texts.append(text)
                taken += len(text.encode())
            if taken >= limit:
                break
    if not texts:
        raise UserError(f"--text {pattern}: holds no text")
    return texts


def tokenizer_rows(texts: list[str], tokenizer: Path, repeats: int) -> Iterator[Row]:
    """The whole work of a worker, from .txt.xz to shards, compared with ``encode_batch`` of the ``tokenizers`` library
    alone on the same documents, both with one thread."""
    encoder, twin = load_encoder(tokenizer), library_twin(tokenizer)
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        path = _packed(Path(folder) / "text.txt.xz", texts)
        job = Job(Path(folder) / "data", tokenizer, encoder.fingerprint(), 0.01)

        def whole_work() -> None:
            _prepare_here(path, job, encoder)

        def library() -> None:
            twin.encode_batch(texts, add_special_tokens=False)

        ours, theirs, ratio = alternating(whole_work, library, repeats)
    kind = job.tokenizer["backend"]
    yield Row(
        f"{tokenizer.name} ({kind}), .txt.xz to shards, one worker", size / ours, "MB/s", ratio, "the library alone"
    )
    yield Row("  tokenizers' encode_batch alone, one thread", size / theirs, "MB/s")
    yield from _agreement(texts, encoder, twin)


def library_twin(tokenizer: Path) -> Tokenizer:
    """The same tokenizer in the ``tokenizers`` library: tokenizer.json, or what ``transformers`` makes of the file."""
    from transformers import BertTokenizer, PreTrainedTokenizerFast, XLMRobertaTokenizer  # takes seconds

    file = tokenizer_file(tokenizer)
    if (whole := file.with_name("tokenizer.json")).is_file():
        found = Tokenizer.from_file(str(whole))
    else:
        kinds: dict[str, tuple[type[PreTrainedTokenizerFast], str]] = {
            ".txt": (BertTokenizer, "vocab.txt"),
            ".model": (XLMRobertaTokenizer, "sentencepiece.bpe.model"),
        }
        kind, name = kinds[file.suffix]
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(file, Path(folder) / name)
            if (config := file.with_name("tokenizer_config.json")).is_file():
                shutil.copy(config, folder)
            found = kind.from_pretrained(folder).backend_tokenizer
    found.no_truncation()
    found.no_padding()
    return found


def _agreement(texts: list[str], encoder: Encoder, twin: Tokenizer) -> Iterator[Row]:
    """The share of lines that get the same ids from both."""
    lines = [line for text in texts for line in text.split("\n") if line]
    theirs = twin.encode_batch(lines, add_special_tokens=False)
    same = sum(np.array_equal(ours, other.ids) for ours, other in zip(encoder.encode_batch(lines), theirs, strict=True))
    yield Row(f"  lines with the same ids as the library's ({same:,} of {len(lines):,})", 100 * same / len(lines), "%")


def worker_rows(texts: list[str], tokenizer: Path, workers: int, repeats: int) -> Iterator[Row]:
    """``workers`` processes compared with one, on the same files."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        for part in range(2 * workers):
            _packed(Path(folder) / f"{part}.txt.xz", texts[part :: 2 * workers])

        def run(count: int) -> Callable[[], float]:
            return lambda: _prepare_there(Path(folder), tokenizer, count)

        many, one, ratio = alternating(run(workers), run(1), repeats, lambda prepare: prepare())
    yield Row(
        f"{tokenizer.name}, {workers} workers, from the first tokens on", size / many, "MB/s", ratio, "one worker"
    )
    yield Row("  one worker", size / one, "MB/s")


def memory_rows(tokenizer: Path, mib: int) -> Iterator[Row]:
    """The peak memory of any process of ``prepare`` on inputs that are made to be hard."""
    word = b"lorem ipsum dolor sit amet "
    cases = {
        f"a file of {mib} MiB in a single line": (word for _ in range(mib * MIB // len(word))),
        f"the same without a space, {mib} MiB": (b"loremipsumdolorsit" for _ in range(mib * MIB // 18)),
        f"a document of {mib // 5} MiB in lines": (word + b"\n" for _ in range(mib // 5 * MIB // len(word))),
    }
    for name, blocks in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            with path.open("wb") as file:
                while block := b"".join(islice(blocks, 40_000)):
                    file.write(block)
            yield Row(f"{tokenizer.name}, {name}, one worker", _peak(path, Path(folder) / "data", tokenizer), "MB")


def _peak(path: Path, data: Path, tokenizer: Path) -> float:
    """MB at the peak of the largest process of a prepare."""
    script = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, text=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if not done.returncode else done.stderr)"
    )
    prepare = [sys.executable, "-m", "data_prep", "prepare", "--out", str(data), "--tokenizer", str(tokenizer)]
    options = ["--source", f"s=text:{path}", "--workers", "1", "--heldout", "0"]
    done = subprocess.run(
        [sys.executable, "-c", script, *prepare, *options], capture_output=True, text=True, check=True
    )
    if not done.stdout.strip().isdecimal():
        raise UserError(f"{path}: could not be prepared ({done.stdout.strip()})")
    return int(done.stdout) * 1024 / 1e6


def seconds_of(run: Run) -> float:
    """The time that ``run`` takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def alternating(
    first: Run, second: Run, repeats: int, seconds: Callable[[Run], float] = seconds_of
) -> tuple[float, float, float]:
    """The median seconds of each, and the median over turns of second / first."""
    times = [[seconds(run) for run in (first, second)] for _ in range(repeats)]
    return median(a for a, _ in times), median(b for _, b in times), median(b / a for a, b in times)


def _packed(path: Path, texts: list[str]) -> Path:
    path.write_bytes(lzma.compress("\n\n".join(texts).encode()))
    return path


def _prepare_here(path: Path, job: Job, encoder: Encoder) -> None:
    """All units of a file, in this process."""
    reader = UnitReader()
    for unit in cut("s", "cc100", None, [describe_file(path)], 64):
        prepare_unit(job, unit, reader, encoder, lambda tokens: None)


class _Stopwatch(Progress):
    """Begins when a worker first reports tokens: tokenizers are loaded by then, which takes seconds and is done once."""

    begin = 0.0

    def add(self, size: int, tokens: int) -> None:
        self.begin = self.begin or time.perf_counter()
        super().add(size, tokens)


def _prepare_there(folder: Path, tokenizer: Path, workers: int) -> float:
    """All units of a folder's files, by worker processes. Returns seconds."""
    files = [describe_file(path) for path in sorted(folder.glob("*.xz"))]
    job = Job(folder / "data", tokenizer, load_encoder(tokenizer).fingerprint(), 0.01)
    stopwatch = _Stopwatch(0, 0, quiet=True)
    run_units(job, cut("s", "cc100", None, files, 8), workers, stopwatch)
    return time.perf_counter() - stopwatch.begin


def run(cases: Iterable[str], tokenizers: list[Path], settings: Settings) -> Iterator[Row]:
    """The rows of the chosen CASES for each tokenizer."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    texts = [] if cases == ("memory",) else read_texts(settings.text, settings.mib)
    for tokenizer in tokenizers:
        if "tokenizer" in cases:
            yield from tokenizer_rows(texts, tokenizer, settings.repeats)
        if "workers" in cases:
            yield from worker_rows(texts, tokenizer, settings.workers, settings.repeats)
        if "memory" in cases:
            yield from memory_rows(tokenizer, settings.memory_mib)


def as_json(row: Row) -> str:
    """One line for machines."""
    return json.dumps(asdict(row))
