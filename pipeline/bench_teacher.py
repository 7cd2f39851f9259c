"""``python -m pipeline.bench teacher``: what a rank holds of a sharded teacher, while it is loaded, after, and at work.

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
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import AutoConfig

from data_prep.errors import UserError
from pipeline import encoders, engines, hosts
from pipeline.bench_tools import Row, free_memory, return_at_once
from pipeline.precision import DTYPES
from pipeline.ranks import Ranks, start_ranks
from pipeline.recipe import Recipe, Student, Teacher

SEED = 42
_FILE = 2**29  # bytes of one safetensors file


def teacher(options) -> Iterator[Row]:
    """Rows for the first rank. Without a launcher this starts one, and the rows come from the ranks it starts."""
    if options.width % 80:
        raise UserError(f"--width {options.width}: must be a multiple of 80, the width of an attention head")
    if "RANK" not in os.environ:
        with tempfile.TemporaryDirectory(prefix="bench-teacher-") as folder:
            config = AutoConfig.for_model(
                "xlm-roberta-xl", hidden_size=options.width, num_hidden_layers=options.layers, vocab_size=options.vocabulary,
                num_attention_heads=options.width // 80, intermediate_size=4 * options.width, max_position_embeddings=514,
            )  # fmt: skip
            make_model(Path(folder), config)
            command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus", str(options.ranks)]
            command += ["--master_addr", "127.0.0.1", "--master_port", str(hosts.free_port())]
            ended = subprocess.run([*command, "--module", "pipeline.bench", *sys.argv[1:], "--folder", folder])
        sys.exit(ended.returncode)
    yield from _measure(options)


def make_model(folder: Path, config) -> None:
    """Random bf16 weights of this shape, in files of at most 512 MiB with an index, as the hub stores large models."""
    cut, names = encoders.empty_encoder(config, config.num_hidden_layers)
    generator = torch.Generator().manual_seed(SEED)
    pending: dict[str, torch.Tensor] = {}
    files: list[list[str]] = []

    def write() -> None:
        save_file(pending, folder / f"part-{len(files)}.safetensors", {"format": "pt"})
        files.append(list(pending))
        pending.clear()

    for name, parameter in cut.named_parameters():
        weight = torch.randn(parameter.shape, generator=generator).mul_(0.02)
        pending[names[name]] = (weight + 1 if "norm" in name.lower() and weight.dim() == 1 else weight).bfloat16()
        if sum(tensor.nbytes for tensor in pending.values()) > _FILE:
            write()
    write()
    places = {}
    for number, held in enumerate(files):
        final = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (folder / f"part-{number}.safetensors").rename(folder / final)
        places |= dict.fromkeys(held, final)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config.save_pretrained(folder)


def _measure(options) -> Iterator[Row]:
    ranks = start_ranks()
    return_at_once()
    folder, config = options.folder, encoders.load_folder_config(options.folder)
    layer = config.num_hidden_layers
    recipe = Recipe(
        data="", out="teacher", steps=1, batch=ranks.world, micro_batch=1, learning_rate=1e-4, warmup_steps=0,
        teacher=Teacher(folder, layer, hosting="zero3", ds_config=options.ds_config), student=Student(1, 16, 4),
        precision=options.precision, compile="none", source="python -m pipeline.bench teacher",
    )  # fmt: skip
    cut, names = encoders.empty_encoder(config, layer)
    weights = encoders.weights_of(folder, "main", config)
    hosting = engines.choose_hosting(recipe, ranks, cut)
    size = DTYPES[options.precision].itemsize
    of_layer = sum(p.numel() for p in cut.body.layers[0].parameters()) * size
    largest = max(p.numel() for p in cut.body.layers[0].parameters()) * size
    whole = sum(p.numel() for p in cut.body.parameters()) * size
    embeddings = hosting.parameters * size - whole
    case = {
        "parameters": hosting.parameters, "layers": layer, "width": config.hidden_size, "ranks": ranks.world,
        "precision": options.precision, "ds_config": options.ds_config,
    }  # fmt: skip

    def measured(work: Callable):
        """What ``work`` returns, and bytes by which memory rose at its peak and after it, on the worst rank."""
        before = _resident()
        with _Peak() as peak:
            result = work()
        rise = torch.tensor([peak.highest - before, _resident() - before], device=ranks.device)
        dist.all_reduce(rise, dist.ReduceOp.MAX)
        return result, *rise.tolist()

    # A tiny one first, so that what is imported and allocated once does not count.
    tiny = AutoConfig.for_model(
        "xlm-roberta-xl", hidden_size=80, num_hidden_layers=3, num_attention_heads=1, vocab_size=8
    )
    small, _ = encoders.empty_encoder(tiny, 3)
    shapes = {name: torch.zeros(p.shape) for name, p in small.named_parameters()}
    teach, _ = engines.host_teacher(recipe, ranks, small, hosting, shapes.__getitem__)
    teach(torch.tensor([[5, 6, 7]], device=ranks.device))

    read = []

    def reader(name: str) -> torch.Tensor:
        read.append(name)
        return weights.tensor(names[name])

    begin = time.perf_counter()
    (teach, _), peak, after = measured(lambda: engines.host_teacher(recipe, ranks, cut, hosting, reader))
    seconds = time.perf_counter() - begin
    readers = [None] * ranks.world
    dist.all_gather_object(readers, len(read))
    bound = 1.1 * (whole / ranks.world + of_layer)
    mib = 2**20
    yield Row("layers / ranks", whole / ranks.world / mib, "MiB", "a rank's share", case)
    yield Row("a layer", of_layer / mib, "MiB", "", case)
    yield Row("embeddings", embeddings / mib, "MiB", "whole on each rank", case)
    yield Row("loading", seconds, "s", f"by {sum(map(bool, readers))} of {ranks.world} ranks", case)
    yield Row("peak of loading", (peak - embeddings) / mib, "MiB", "rise without the embeddings, worst rank", case)
    yield Row("after loading", (after - embeddings) / mib, "MiB", "the same", case)
    yield Row("peak / bound", (peak - embeddings) / bound, "×", "bound: 1.1 × (share + a layer)", case)

    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(5, config.vocab_size, (1, options.length), generator=generator).to(ranks.device)
    for _ in range(2):  # the second pass knows the order of the layers
        output, risen, _ = measured(lambda: teach(ids))
    same, alone = torch.tensor(1, device=ranks.device), torch.tensor(0, device=ranks.device)
    if ranks.first and free_memory(ranks.device) > 3 * (whole + embeddings):
        replica, _ = encoders.empty_encoder(config, layer)
        teach_alone, _ = engines.host_teacher(
            recipe, Ranks(0, 1, 1, ranks.device), replica, engines.Hosting("replicate", "", 0, 0),
            lambda name: weights.tensor(names[name]),
        )  # fmt: skip
        for _ in range(2):
            before = _resident()
            with _Peak() as peak_alone:
                wanted = teach_alone(ids)
        alone.fill_(peak_alone.highest - before)
        same.fill_(all(map(torch.equal, output, wanted)))
    dist.broadcast(alone, 0)
    dist.broadcast(same, 0)
    # gloo receives a tensor in a copy, two at a time, and NCCL in its place. That is before a layer's products, and not beside
    # what a replica needs for them: the larger of both counts.
    staged = 2 * largest if ranks.device.type == "cpu" else 0  # gloo
    held = after - embeddings + risen
    yield Row("peak of a forward", held / mib, "MiB", f"1 × {options.length} tokens, as above", case)
    yield Row("a replica's forward", float(alone) / mib, "MiB", "its rise: activations and temporary copies", case)
    yield Row(
        "gloo's copies", staged / mib, "MiB", "of what is received, two of the largest matrices; NCCL: none", case
    )
    more = max(float(alone), staged)
    yield Row("forward / bound", (held - more) / bound, "×", "without the larger of these two", case)
    with _received() as count:
        teach(ids)
    gathered, formula = count[0] * size, whole * (ranks.world - 1) / ranks.world
    yield Row("gathered", gathered / mib, "MiB", "received by a rank in a forward", case)
    yield Row("gathered / formula", gathered / formula, "×", "formula: (ranks − 1) / ranks of the layers", case)
    yield Row("exact", float(same), "", "1: q, k, v are a replica's, bit for bit", case)


def _resident() -> int:
    """Bytes of memory that this process holds; on a GPU those that torch has allocated."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Peak:
    """The highest of ``_resident`` while the block runs, looked at each millisecond."""

    def __enter__(self) -> "_Peak":
        self.highest, self._done = _resident(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.001):
            self.highest = max(self.highest, _resident())


@contextlib.contextmanager
def _received():
    """[bytes that this rank receives in all-gathers], as torch's own profiler sees them."""
    count = [0]
    with torch.profiler.profile(record_shapes=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield count
    for event in profile.events():
        if event.name == "c10d::_allgather_base_":
            (whole,), (own,) = event.input_shapes[:2]
            count[0] += whole - own
