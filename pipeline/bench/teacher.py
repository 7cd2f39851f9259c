"""``python -m pipeline.bench teacher``: the memory that a sharded teacher takes of a rank, in loading and at work.

The model has XLM-R-XL's shape but for the number of layers and the vocabulary, and random weights in several safetensors
files. Its parameters are sharded over ``--ranks`` processes of this machine; the output is compared with a whole replica's.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from data_prep.cli import UserError
from pipeline.bench.tools import Row
from pipeline.engines.agreeing import decided
from pipeline.engines.hosting import Hosting
from pipeline.engines.memory import choose_hosting
from pipeline.engines.ranks import Ranks, start_ranks
from pipeline.engines.teacher import Teach, host_teacher
from pipeline.launch.places import this_machine
from pipeline.measuring import free_memory, process_status, return_freed_memory
from pipeline.models.cut import empty_encoder
from pipeline.models.loading import load_folder_config, weights_of
from pipeline.models.precision import DTYPES
from pipeline.settings.recipe import Recipe, Student, Teacher

SEED = 42
_FILE = 2**29  # bytes of one safetensors file
_MIB = 2**20


def teacher(options: Namespace) -> Iterator[Row]:
    """Rows for the first rank. Without a launcher this starts one, and the ranks that it starts print the rows."""
    if options.width % 80:
        raise UserError(f"--width {options.width}: must be a multiple of 80, the width of an attention head")
    if "RANK" not in os.environ:
        with tempfile.TemporaryDirectory(prefix="bench-teacher-") as folder:
            config = AutoConfig.for_model(
                "xlm-roberta-xl", hidden_size=options.width, num_hidden_layers=options.layers, vocab_size=options.vocabulary,
                num_attention_heads=options.width // 80, intermediate_size=4 * options.width, max_position_embeddings=514,
            )  # fmt: skip
            make_model(Path(folder), config)
            place = this_machine(options.ranks, dict(os.environ), {})
            command = place.command("pipeline.bench", [*sys.argv[1:], "--folder", folder])
            ended = subprocess.run(command, env=place.environment)
        sys.exit(ended.returncode)
    return_freed_memory()
    yield from _Measurement(options, start_ranks()).rows()


def make_model(folder: Path, config: PreTrainedConfig) -> None:
    """Write random bf16 weights of this shape, in files of about 512 MiB with an index, as the hub stores large models."""
    cut, names = empty_encoder(config, config.num_hidden_layers)
    generator = torch.Generator().manual_seed(SEED)
    pending: dict[str, torch.Tensor] = {}
    files: list[list[str]] = []

    def write() -> None:
        save_file(pending, folder / f"part-{len(files)}.safetensors", {"format": "pt"})
        files.append(list(pending))
        pending.clear()

    for name, parameter in cut.named_parameters():
        weight = torch.randn(parameter.shape, generator=generator).mul_(0.02)
        if "norm" in name.lower() and weight.dim() == 1:
            weight = weight + 1
        pending[names[name]] = weight.bfloat16()
        if sum(tensor.nbytes for tensor in pending.values()) > _FILE:
            write()
    write()
    places: dict[str, str] = {}
    for number, held in enumerate(files):
        final = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (folder / f"part-{number}.safetensors").rename(folder / final)
        places |= dict.fromkeys(held, final)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config.save_pretrained(folder)


class _Measurement:
    """One measurement of a sharded teacher: its sizes in bytes, and its parts, which give their rows."""

    def __init__(self, options: Namespace, ranks: Ranks):
        self.options, self.ranks = options, ranks
        self.config = load_folder_config(options.folder)
        self.layer = self.config.num_hidden_layers
        self.recipe = Recipe(
            data="", out="teacher", steps=1, batch=ranks.world, micro_batch=1, learning_rate=1e-4, warmup_steps=0,
            teacher=Teacher(options.folder, self.layer, hosting="zero3", ds_config=options.ds_config),
            student=Student(1, 16, 4), precision=options.precision, compile="none", source="python -m pipeline.bench teacher",
        )  # fmt: skip
        self.recipe = decided(self.recipe, ranks)
        self.cut, self.names = empty_encoder(self.config, self.layer)
        self.weights = weights_of(options.folder, "main", self.config)
        self.hosting = choose_hosting(self.recipe, ranks, self.cut)
        size = DTYPES[options.precision].itemsize
        parameters = [parameter.numel() * size for parameter in self.cut.body.layers[0].parameters()]
        self.of_layer, self.largest = sum(parameters), max(parameters)
        self.layers = sum(parameter.numel() for parameter in self.cut.body.parameters()) * size
        self.embeddings = self.hosting.parameters * size - self.layers
        self.case = {
            "parameters": self.hosting.parameters, "layers": self.layer, "width": self.config.hidden_size,
            "ranks": ranks.world, "precision": options.precision, "ds_config": options.ds_config,
        }  # fmt: skip

    def rows(self) -> Iterator[Row]:
        self._warm_up()
        teach, after, rows = self._loading()
        yield from rows
        yield from self._forward(teach, after)

    def _row(self, measure: str, value: float, unit: str, note: str) -> Row:
        return Row(measure, value, unit, note, self.case)

    def _measured(self, work: Callable[[], Any]) -> tuple[Any, int, int]:
        """The result of ``work``, and bytes by which memory rose at its peak and after it, on the worst rank."""
        before = _resident()
        with _Peak() as peak:
            result = work()
        rise = torch.tensor([peak.highest - before, _resident() - before], device=self.ranks.device)
        dist.all_reduce(rise, dist.ReduceOp.MAX)
        return result, *rise.tolist()

    def _warm_up(self) -> None:
        """Host and run a tiny teacher first, so that imports and what is allocated once do not count."""
        tiny = AutoConfig.for_model(
            "xlm-roberta-xl", hidden_size=80, num_hidden_layers=3, num_attention_heads=1, vocab_size=8
        )
        small, _ = empty_encoder(tiny, 3)
        weights = {name: torch.zeros(parameter.shape) for name, parameter in small.named_parameters()}
        teach, _ = host_teacher(self.recipe, self.ranks, small, self.hosting, weights.__getitem__)
        teach(torch.tensor([[5, 6, 7]], device=self.ranks.device))

    def _loading(self) -> tuple[Teach, int, list[Row]]:
        """Load the teacher: its function, bytes that it takes of the worst rank, and the rows."""
        read = []

        def reader(name: str) -> Tensor:
            read.append(name)
            return self.weights.tensor(self.names[name])

        begin = time.perf_counter()
        (teach, _), peak, after = self._measured(
            lambda: host_teacher(self.recipe, self.ranks, self.cut, self.hosting, reader)
        )
        seconds = time.perf_counter() - begin
        world = self.ranks.world
        readers = [0] * world
        dist.all_gather_object(readers, len(read))
        bound = 1.1 * (self.layers / world + self.of_layer)
        rise = peak - self.embeddings
        return (
            teach,
            after,
            [
                self._row("layers / ranks", self.layers / world / _MIB, "MiB", "a rank's share"),
                self._row("a layer", self.of_layer / _MIB, "MiB", ""),
                self._row("embeddings", self.embeddings / _MIB, "MiB", "whole on each rank"),
                self._row("loading", seconds, "s", f"by {sum(map(bool, readers))} of {world} ranks"),
                self._row("peak of loading", rise / _MIB, "MiB", "rise without the embeddings, worst rank"),
                self._row("after loading", (after - self.embeddings) / _MIB, "MiB", "the same"),
                self._row("peak / bound", rise / bound, "×", "bound: 1.1 × (share + a layer)"),
            ],
        )

    def _forward(self, teach: Teach, after: int) -> Iterator[Row]:
        """The rows of a forward, whose memory and output are compared with those of a whole replica."""
        ranks, length = self.ranks, self.options.length
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(5, self.config.vocab_size, (1, length), generator=generator).to(ranks.device)
        for _ in range(2):  # the second pass knows the order of the layers
            output, risen, _ = self._measured(lambda: teach(ids))
        same, alone = torch.tensor(1, device=ranks.device), torch.tensor(0, device=ranks.device)
        if ranks.first and free_memory(ranks.device) > 3 * (self.layers + self.embeddings):
            wanted, rise = self._replicas_forward(ids)
            alone.fill_(rise)
            same.fill_(all(map(torch.equal, output, wanted)))
        dist.broadcast(alone, 0)
        dist.broadcast(same, 0)

        # gloo receives a tensor in a copy, two at a time, and NCCL in its place. That is before a layer's products, and not
        # at the same time as what a replica needs for them: the larger of both counts.
        staged = 2 * self.largest if ranks.device.type == "cpu" else 0  # gloo
        held = after - self.embeddings + risen
        more = max(float(alone), staged)
        bound = 1.1 * (self.layers / ranks.world + self.of_layer)
        copies = "of received tensors, two of the largest matrices; NCCL: none"
        yield self._row("peak of a forward", held / _MIB, "MiB", f"1 × {length} tokens, as above")
        yield self._row("a replica's forward", float(alone) / _MIB, "MiB", "its rise: activations and temporary copies")
        yield self._row("gloo's copies", staged / _MIB, "MiB", copies)
        yield self._row("forward / bound", (held - more) / bound, "×", "without the larger of these two")

        with _received() as count:
            teach(ids)
        gathered = count[0] * DTYPES[self.options.precision].itemsize
        formula = self.layers * (ranks.world - 1) / ranks.world
        yield self._row("gathered", gathered / _MIB, "MiB", "received by a rank in a forward")
        if formula:  # one rank receives nothing
            yield self._row("gathered / formula", gathered / formula, "×", "formula: (ranks − 1) / ranks of the layers")
        yield self._row("exact", float(same), "", "1: q, k, v are a replica's, bit for bit")

    def _replicas_forward(self, ids: Tensor) -> tuple[Any, int]:
        """The output of a whole replica on this rank alone, and bytes by which memory rises in its forward."""
        replica, _ = empty_encoder(self.config, self.layer)
        teach, _ = host_teacher(
            self.recipe, Ranks(0, 1, 1, self.ranks.device), replica, Hosting("replicate", "", 0, 0),
            lambda name: self.weights.tensor(self.names[name]),
        )  # fmt: skip
        for _ in range(2):  # the first warms up
            before = _resident()
            with _Peak() as peak:
                output = teach(ids)
        return output, peak.highest - before


def _resident() -> int:
    """Bytes of memory that this process holds; on a GPU those that torch has allocated."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return process_status("VmRSS")


class _Peak:
    """The highest value of ``_resident`` while the block runs, read each millisecond."""

    def __enter__(self) -> "_Peak":
        self.highest, self._done = _resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self.highest = max(self.highest, _resident())


@contextlib.contextmanager
def _received() -> Iterator[list[int]]:
    """[numbers that this rank receives in all-gathers], by torch's own profiler."""
    count = [0]
    with torch.profiler.profile(record_shapes=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield count
    for event in profile.events():
        if event.name == "c10d::_allgather_base_":
            (whole,), (own,) = event.input_shapes[:2]
            count[0] += whole - own
