"""``python -m pipeline.bench step``: a whole update against what it cannot do without.

The *floor* of an update is the teacher's pass and, in plain torch without DeepSpeed, the students' passes, backward of a
trivial loss, and the optimizer. Models have random weights and BERT's shape; nothing is downloaded.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertConfig

from data_prep.shards import open_corpus
from pipeline import batches, checkpoints, encoders, engines
from pipeline.bench_data import make_corpus
from pipeline.bench_tools import Row, Setting, added, interleaved, ratio, settings_of
from pipeline.precision import DTYPES
from pipeline.ranks import Ranks, start_ranks
from pipeline.recipe import Recipe, Student, Teacher
from pipeline.relations import QKV
from pipeline.step import Clock, Trainee, divergence_of, update

SEED = 42
_SHARE_STEPS = 3
_CORPUS = 1_000_000  # tokens
_INTERVAL = Recipe.checkpoint_every  # steps


def step(options) -> Iterator[Row]:
    """Measure an update of the students under each setting; rows are meant for the first rank."""
    widths = {"teacher": options.teacher[1]} | {f"student {_shown(size)}": size[1] for size in options.student}
    settings = settings_of(options.heads, options.pairs, widths)
    ranks = start_ranks()
    bench = Bench(options, settings, ranks)
    times = interleaved(bench.works(), options.repeats, ranks.device)
    students = range(len(options.student))
    plain, under = (added(*(times[f"{kind} {i}"] for i in students)) for kind in ("plain", "engine"))
    floor = added(times["teacher"], plain)
    for number, setting in enumerate(settings):
        case = bench.case | setting.case
        whole = times[f"step {number}"]
        target = 0.95 if setting.pairs == ("qk", "vv") else 0.92
        yield Row("step", statistics.median(whole), "s", "an update of every student", case)
        yield Row("floor", statistics.median(floor), "s", "teacher's pass, and students in plain torch", case)
        yield Row("floor / step", ratio(floor, whole), "×", f"target: at least {target}", case)
        yield Row(
            "model speed",
            bench.flops / statistics.median(whole) / 1e9,
            "GFLOP/s",
            "teacher's + 3 × students' forward",
            case,
        )
        for part, share in shares(bench.trainees[number], bench.teach, ranks).items():
            yield Row(f"share of {part}", 100 * share, "%", "of the time of a step", case)
        if ranks.world > 1:
            spent = communication(lambda n=number: bench.update(bench.trainees[n]), ranks)
            yield Row("communication", spent, "s", f"in collectives of a step, {ranks.world} ranks", case)
        if options.embeddings:
            spent = 100 * (1 - ratio(times[f"frozen {number}"], whole))
            yield Row("word embeddings", spent, "%", "of a step, their gradient and optimizer; target: under 25", case)
        if len(students) > 1:
            alone = added(*(times[f"alone {number} {i}"] for i in students))
            yield Row("each alone, summed", statistics.median(alone), "s", "an update of each student by itself", case)
            yield Row("together / alone", ratio(whole, alone), "×", "target: at most 0.55", case)
    saved = statistics.median(save_times(bench, options.repeats))
    shared = 100 * saved / (saved + _INTERVAL * statistics.median(times["step 0"]))
    yield Row("checkpoint", saved, "s", "gathered and written whole, of every student", bench.case)
    yield Row("checkpoint's share", shared, "%", f"of the time, once in {_INTERVAL} steps; target: under 2", bench.case)
    yield Row("plain torch", statistics.median(plain), "s", "students with a trivial loss", bench.case)
    yield Row("DeepSpeed", statistics.median(under), "s", "the same under its engine", bench.case)
    yield Row(
        "DeepSpeed's own", 100 * (ratio(under, plain) - 1), "%", "on top of plain torch; target: under 5", bench.case
    )


class Bench:
    """The models of one measurement: the teacher, and each student under DeepSpeed and in plain torch.

    ``trainees`` has a list for each setting; the engines of all settings are the same. ``frozen`` has, if that is asked
    for, the same students with word embeddings that are not trained.
    """

    def __init__(self, options, settings: list[Setting], ranks: Ranks):
        self.ranks = ranks
        config = _bert(options)
        recipes = [[_recipe(options, size, setting, ranks.world) for size in options.student] for setting in settings]
        for recipe in (one for each in recipes for one in each):
            recipe.check()
            recipe.check_teacher(config)
        first = recipes[0][0]
        teacher = encoders.cut_encoder(encoders.build_student(config, SEED), first.teacher.layer)
        hosting, weights = engines.choose_hosting(first, ranks, teacher), dict(teacher.named_parameters())
        self.teach, _ = engines.host_teacher(first, ranks, teacher, hosting, weights.__getitem__)
        self.plain = [Plain(_student(one, config), one, ranks) for one in recipes[0]]
        self.engines = [engines.student_engine(one, ranks, _student(one, config)) for one in recipes[0]]
        divergence = divergence_of(first)

        def trainees(of_students: list) -> list[list[Trainee]]:
            return [[Trainee(*pair, divergence) for pair in zip(each, of_students, strict=True)] for each in recipes]

        self.trainees, self.frozen = trainees(self.engines), None
        if options.embeddings:
            still = [_student(one, config, trains_words=False) for one in recipes[0]]
            self.frozen = trainees(
                [engines.student_engine(one, ranks, student) for one, student in zip(recipes[0], still, strict=True)]
            )
        generator = torch.Generator().manual_seed(SEED + ranks.rank)
        self.samples = torch.randint(1000, config.vocab_size, (options.batch, options.length), generator=generator)
        self.ids = self.samples.to(ranks.device)
        shapes = [(config, first.teacher.layer, 1)]
        shapes += [(one.student_config(config), one.student.layers, 3) for one in recipes[0]]
        self.flops = first.batch * sum(
            times * encoders.forward_flops(shape, layer, options.length) for shape, layer, times in shapes
        )
        self.case = {
            "teacher": _shown(options.teacher), "layer": first.teacher.layer,
            "students": [_shown(size) for size in options.student], "batch": first.batch, "length": options.length,
            "vocabulary": options.vocabulary, "compile": options.compile, "ranks": ranks.world,
        }  # fmt: skip

    def works(self) -> dict[str, Callable]:
        """What is timed, by name; numbers are those of settings and students."""
        works: dict[str, Callable] = {"teacher": lambda: self.teach(self.ids)}
        for student in range(len(self.engines)):
            works[f"plain {student}"] = lambda i=student: self.plain[i](self.ids)
            works[f"engine {student}"] = lambda i=student: self.trivial_update(i)
        for number in range(len(self.trainees)):
            works[f"step {number}"] = lambda n=number: self.update(self.trainees[n])
            if self.frozen:
                works[f"frozen {number}"] = lambda n=number: self.update(self.frozen[n])
            for student in range(len(self.engines)) if len(self.engines) > 1 else ():
                works[f"alone {number} {student}"] = lambda n=number, i=student: self.update([self.trainees[n][i]])
        return works

    def update(self, trainees: list[Trainee]) -> None:
        """An update of these students."""
        update(trainees, self.teach, self.samples, 0, self.ranks, None, Clock(self.ranks.device))

    def trivial_update(self, student: int) -> None:
        engine = self.engines[student]
        engine.train()
        engine.backward(trivial_loss(engine(self.ids)))
        engine.step()


class Plain:
    """A student in plain torch: mixed precision with fp32 master weights, clipping of the global norm, fused AdamW."""

    def __init__(self, student: encoders.CutEncoder, recipe: Recipe, ranks: Ranks):
        dtype, self._clip = DTYPES[recipe.precision], recipe.gradient_clipping
        self._student = student.to(ranks.device).train()
        self._masters = list(student.parameters())
        if dtype != torch.float32:
            self._masters = [p.detach().clone() for p in self._masters]
        self._weights = list(student.to(dtype).parameters())
        engines.fit(student, recipe, ranks, "plain student")
        groups = engines.decay_groups(self._masters, recipe.weight_decay)
        adam = {"lr": recipe.learning_rate, "betas": recipe.adam_betas, "eps": recipe.adam_eps, "fused": True}
        self._optimizer = torch.optim.AdamW(groups, **adam)

    def __call__(self, ids: Tensor) -> None:
        """One update by the trivial loss of ids [B, T]."""
        trivial_loss(self._student(ids)).backward()
        mixed = self._masters[0].dtype != self._weights[0].dtype
        if mixed:
            for master, weight in zip(self._masters, self._weights, strict=True):
                master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self._masters, self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if mixed:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, self._masters)


def trivial_loss(output: QKV) -> Tensor:
    """The sum of the mean squares of q, k and v."""
    return torch.stack([x.float().square().mean() for x in output]).sum()


def save_times(bench: "Bench", repeats: int) -> list[float]:
    """Seconds of a checkpoint of every student: read from the engines, hashed, written and synced."""
    times = []
    with tempfile.TemporaryDirectory(prefix="bench-step-") as folder:
        for number in range(repeats):
            begin = time.perf_counter()
            for student, engine in enumerate(bench.engines):
                names = {name: name for name, _ in engine.module.named_parameters()}
                state = engines.read_state(engine, names, bench.ranks.first)
                if bench.ranks.first:
                    checkpoints.save(Path(folder, str(student)), {"step": number + 1}, state, 1)
            times.append(time.perf_counter() - begin)
    return times


# --- where the time goes ----------------------------------------------------------------------------------------------


def shares(trainees: list[Trainee], teach: engines.Teach, ranks: Ranks) -> dict[str, float]:
    """Each part's share of the time of updates in a row that read a random corpus; the wait for data is one."""
    recipe, clock, waited = trainees[0].recipe, Clock(ranks.device), 0.0
    clock.running = True
    with tempfile.TemporaryDirectory(prefix="bench-step-") as folder:
        make_corpus(Path(folder), 5, max(_CORPUS, 100 * recipe.length))
        windows = batches.training_windows(open_corpus(Path(folder)), recipe.length)
        order = batches.order_of(windows, 1.0, SEED)
        reading = batches.steps(windows, order, 0, _SHARE_STEPS + 1, recipe.batch, ranks.rank, ranks.world)
        ready = batches.read_ahead(reading, ranks.device)
        for number in range(_SHARE_STEPS + 1):
            begin = time.perf_counter()
            samples = next(ready)
            waited += time.perf_counter() - begin
            update(trainees, teach, samples, 0, ranks, None, clock)
            if ranks.device.type == "cuda":
                torch.cuda.synchronize(ranks.device)
            if not number:  # the first is the warm-up
                clock.seconds()
                waited = 0.0
        ready.close()
    spent = clock.seconds() | {"data wait": waited}
    return {part: time / sum(spent.values()) for part, time in spent.items()}


_COLLECTIVES = (
    "all_reduce", "all_reduce_coalesced", "reduce", "broadcast", "all_gather", "all_gather_into_tensor",
    "all_gather_coalesced", "reduce_scatter_tensor",
)  # fmt: skip


def communication(work: Callable, ranks: Ranks) -> float:
    """Seconds that ``work`` spends in DeepSpeed's collectives, each waited for."""
    spent = 0.0
    backend = engines.deepspeed.comm.comm.cdb

    def timed(collective: Callable) -> Callable:
        def call(*arguments, **options):
            nonlocal spent
            _synchronize(ranks)
            begin = time.perf_counter()
            handle = collective(*arguments, **options)
            if hasattr(handle, "wait"):
                handle.wait()
            _synchronize(ranks)
            spent += time.perf_counter() - begin
            return handle

        return call

    with contextlib.ExitStack() as stack:
        for name in _COLLECTIVES:
            setattr(backend, name, timed(getattr(backend, name)))
            stack.callback(delattr, backend, name)
        work()
    return spent


def _synchronize(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


# --- models -----------------------------------------------------------------------------------------------------------


def _bert(options) -> BertConfig:
    layers, width = options.teacher
    return BertConfig(
        vocab_size=options.vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=_attention_heads(width),
        intermediate_size=4 * width, max_position_embeddings=max(512, options.length),
    )  # fmt: skip


def _recipe(options, size: tuple[int, int], setting: Setting, ranks: int) -> Recipe:
    layers, width = size
    return Recipe(
        data="random", out=f"student {_shown(size)}", steps=10**6, batch=options.batch * ranks, micro_batch=options.batch,
        teacher=Teacher("random", options.layer or options.teacher[0], hosting="replicate"),
        student=Student(layers, width, _attention_heads(width), dropout=options.dropout),
        learning_rate=1e-6, warmup_steps=0, length=options.length, pairs=setting.pairs, relation_heads=setting.heads,
        precision=options.precision, compile=options.compile, source="python -m pipeline.bench step",
    )  # fmt: skip


def _student(recipe: Recipe, teacher_config: BertConfig, trains_words: bool = True) -> encoders.CutEncoder:
    model = encoders.build_student(recipe.student_config(teacher_config), SEED)
    model.get_input_embeddings().requires_grad_(trains_words)
    return encoders.split(model)[0]


def _attention_heads(width: int) -> int:
    return 12 if width % 12 == 0 else max(1, width // 64)


def _shown(size: tuple[int, int]) -> str:
    return "{}x{}".format(*size)
