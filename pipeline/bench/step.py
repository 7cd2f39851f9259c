"""``python -m pipeline.bench step``: a whole update compared with its indispensable parts.

The *floor* of an update is the teacher's pass and, in plain torch without DeepSpeed, the students' passes, backward of a
trivial loss, and the optimizer. Models have random weights and BERT's shape; nothing is downloaded.
"""

import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, PreTrainedConfig

from data_prep.cli import UserError
from pipeline.artifacts import checkpoints
from pipeline.bench.launches import as_on_gpus, launch_rows
from pipeline.bench.loss import Case, literal_bytes, literal_loss
from pipeline.bench.shares import communication, shares
from pipeline.bench.tools import Row, Setting, settings_of
from pipeline.bounds import Bounds
from pipeline.data.inputs import Inputs
from pipeline.engines.agreeing import decided
from pipeline.engines.both import fit
from pipeline.engines.memory import choose_hosting
from pipeline.engines.ranks import Ranks, start_ranks
from pipeline.engines.state import read_state
from pipeline.engines.student import decay_groups, student_engine
from pipeline.engines.teacher import host_teacher
from pipeline.measuring import free_memory, interleaved_times, median_ratio, summed
from pipeline.models.arithmetic import has_choice
from pipeline.models.counting import forward_flops
from pipeline.models.cut import CutEncoder, Taught, cut_encoder, split
from pipeline.models.fit import check_teacher, student_config_of
from pipeline.models.precision import DTYPES
from pipeline.models.students import build_student
from pipeline.relations import QKV, Divergence
from pipeline.settings.recipe import Recipe, Student, Teacher
from pipeline.training.ahead import Ahead
from pipeline.training.step import Clock, update
from pipeline.training.trainee import Trainee, divergence_of
from pipeline.training.which_loss import takes_kernel

SEED = 42
_INTERVAL = Recipe.checkpoint_every  # steps


def step(options: Namespace) -> Iterator[Row]:
    """Measure an update of the students under each setting; rows are meant for the first rank."""
    widths = {"teacher": options.teacher[1]} | {f"student {_shown(size)}": size[1] for size in options.student}
    settings = [
        replace(setting, by=kernel)
        for setting in settings_of(options.heads, options.pairs, widths)
        for kernel in dict.fromkeys(options.loss_kernel)
    ]
    ranks = start_ranks()
    for setting in [setting for setting in settings if setting.by == "literal"]:
        needed = literal_bytes(Case(setting, options.length, options.batch, (0, 0), compiled=False))
        if needed > free_memory(ranks.device) / 2:  # the models need some too
            settings.remove(setting)
            yield Row("literal needs", needed / 2**20, "MiB", "estimated; not run, it would not fit", setting.case)
    if not settings:
        raise UserError("--loss-kernel literal: its maps do not fit the memory; use a smaller --batch or --length")
    if options.launches:
        yield from _launches(Models(options, settings, ranks, "native"), settings)
        return
    every = {way: Models(options, settings, ranks, way) for way in dict.fromkeys(options.arithmetic)}
    works = {way: models.works() for way, models in every.items()}
    together = {f"{name}, {way}": work for way, own in works.items() for name, work in own.items()}
    times = interleaved_times(together, options.repeats, ranks.device)
    by_way = {way: {name: times[f"{name}, {way}"] for name in own} for way, own in works.items()}
    for way, models in every.items():
        yield from _rows(models, by_way[way], settings, options.repeats)
    first, *others = by_way
    for number, setting in enumerate(settings):
        for other in others:
            ratio = median_ratio(by_way[first][f"step {number}"], by_way[other][f"step {number}"])
            case = every[first].sizes | setting.case
            yield Row(f"{first} / {other}", ratio, "×", f"a step is so many times as fast {other} as {first}", case)


def _rows(models: "Models", times: dict[str, list[float]], settings: list[Setting], repeats: int) -> Iterator[Row]:
    """The rows of one way to take products."""
    plain, engine = (summed(*(times[f"{kind} {i}"] for i in models.students)) for kind in ("plain", "engine"))
    floor = summed(times["teacher"], plain)
    for number, setting in enumerate(settings):
        yield from _rows_of_setting(models, times, floor, number, setting)

    case = models.case
    saved = statistics.median(save_times(models, repeats))
    shared = 100 * saved / (saved + _INTERVAL * statistics.median(times["step 0"]))
    own = 100 * (median_ratio(engine, plain) - 1)
    yield Row("checkpoint", saved, "s", "gathered and written whole, of every student", case)
    yield Row("checkpoint's share", shared, "%", f"of the time, once in {_INTERVAL} steps; target: under 2", case)
    yield Row("plain torch", statistics.median(plain), "s", "students with a trivial loss", case)
    yield Row("DeepSpeed", statistics.median(engine), "s", "the same under its engine", case)
    yield Row("DeepSpeed's own", own, "%", "on top of plain torch; target: under 5", case)


def _launches(models: "Models", settings: list[Setting]) -> Iterator[Row]:
    """What an update of each student launches, under each setting."""
    as_on_gpus(models.teacher)
    for engine in models.engines:
        as_on_gpus(engine.module)
    for setting, trainees in zip(settings, models.trainees, strict=True):
        for size, trainee in zip(models.case["students"], trainees, strict=True):
            case = models.case | {"students": [size], "stage": trainee.engine.zero_optimization_stage()} | setting.case
            yield from launch_rows(trainee, models.teach, models.samples, case)


def _rows_of_setting(
    models: "Models", times: dict[str, list[float]], floor: list[float], number: int, setting: Setting
) -> Iterator[Row]:
    """The rows of an update under the setting of this ``number``."""
    case, trainees = models.case | setting.case, models.trainees[number]
    whole = times[f"step {number}"]
    target = 0.95 if setting.pairs == ("qk", "vv") else 0.92
    speed = models.flops / statistics.median(whole) / 1e9
    note = f"an update of every student; the loss {_computed(trainees[0])}"
    yield Row("step", statistics.median(whole), "s", note, case)
    yield Row("floor", statistics.median(floor), "s", "teacher's pass, and students in plain torch", case)
    yield Row("floor / step", median_ratio(floor, whole), "×", f"target: at least {target}", case)
    yield Row("model speed", speed, "GFLOP/s", "teacher's + 3 × students' forward", case)
    for part, share in shares(trainees, models.teach, models.ranks).items():
        yield Row(f"share of {part}", 100 * share, "%", "of the time of a step", case)
    if models.ranks.world > 1:
        spent = communication(partial(models.update, trainees), models.ranks)
        yield Row("communication", spent, "s", f"in collectives of a step, {models.ranks.world} ranks", case)
    if models.frozen:
        spent = 100 * (1 - median_ratio(times[f"frozen {number}"], whole))
        yield Row("word embeddings", spent, "%", "of a step, their gradient and optimizer; target: under 25", case)
    if len(models.students) > 1:
        alone = summed(*(times[f"alone {number} {i}"] for i in models.students))
        together = median_ratio(whole, alone)
        yield Row("each alone, summed", statistics.median(alone), "s", "an update of each student by itself", case)
        yield Row("together / alone", together, "×", "target: at most 0.55", case)


class Models:
    """The models of one measurement: the teacher, and each student under DeepSpeed and in plain torch.

    ``trainees`` has a list for each setting; the engines of all settings are the same. ``frozen`` has, with --embeddings,
    the same students with word embeddings that are not trained, else nothing.
    """

    def __init__(self, options: Namespace, settings: list[Setting], ranks: Ranks, arithmetic: str = "auto"):
        self.ranks = ranks
        config = _bert(options)
        recipes = [
            [decided(_recipe(options, size, setting, ranks.world, arithmetic), ranks) for size in options.student]
            for setting in settings
        ]
        for of_setting in recipes:
            for recipe in of_setting:
                recipe.check()
                check_teacher(recipe, config)
        first, students = recipes[0][0], recipes[0]

        self.teacher = cut_encoder(build_student(config, SEED), first.teacher.layer)
        hosting, weights = choose_hosting(first, ranks, self.teacher), dict(self.teacher.named_parameters())
        self.teach, _ = host_teacher(first, ranks, self.teacher, hosting, weights.__getitem__)
        self.plain = [Plain(_student(recipe, config), recipe, ranks) for recipe in students]
        self.engines = [student_engine(recipe, ranks, _student(recipe, config)) for recipe in students]
        self.students = range(len(self.engines))
        divergence, width = divergence_of(first), config.hidden_size

        def trainees(engines: list) -> list[list[Trainee]]:
            pairs = zip(settings, recipes, strict=True)
            return [_trainees(setting, each, engines, divergence, width, ranks) for setting, each in pairs]

        self.trainees = trainees(self.engines)
        self.frozen: list[list[Trainee]] = []
        if options.embeddings:
            still = [_student(recipe, config, trains_words=False) for recipe in students]
            pairs = zip(students, still, strict=True)
            engines = [student_engine(recipe, ranks, student) for recipe, student in pairs]
            self.frozen = trainees(engines)

        generator = torch.Generator().manual_seed(SEED + ranks.rank)
        self.samples = Inputs(
            torch.randint(1000, config.vocab_size, (options.batch, options.length), generator=generator)
        ).to(ranks.device)
        self.ids = self.samples.ids
        forwards: list[tuple[PreTrainedConfig, int, int]] = [(config, first.teacher.layer, 1)]
        forwards += [(student_config_of(recipe, config), recipe.student.layers, 3) for recipe in students]
        flops = (times * forward_flops(shape, layer, options.length) for shape, layer, times in forwards)
        self.flops = first.batch * sum(flops)
        self.sizes = {
            "teacher": _shown(options.teacher), "layer": first.teacher.layer,
            "students": [_shown(size) for size in options.student], "batch": first.batch, "length": options.length,
            "vocabulary": options.vocabulary, "compile": options.compile, "ranks": ranks.world,
        }  # fmt: skip
        chosen = {"arithmetic": first.arithmetic} if has_choice(first.precision, ranks.device) else {}
        self.case = self.sizes | chosen

    def works(self) -> dict[str, Callable[[], object]]:
        """The works to be timed, by name; numbers are those of settings and students."""
        works: dict[str, Callable[[], object]] = {"teacher": partial(self.teach, self.ids, **self.samples.told)}
        for student in self.students:
            works[f"plain {student}"] = partial(self.plain[student], self.ids)
            works[f"engine {student}"] = partial(self.trivial_update, student)
        for number, trainees in enumerate(self.trainees):
            works[f"step {number}"] = partial(self.update, trainees)
            if self.frozen:
                works[f"frozen {number}"] = partial(self.update, self.frozen[number])
            if len(trainees) > 1:
                for student, trainee in enumerate(trainees):
                    works[f"alone {number} {student}"] = partial(self.update, [trainee])
        return works

    def update(self, trainees: list[Trainee], samples: Inputs | None = None) -> None:
        """An update of these students, from random ids if no ``samples`` are given."""
        update(trainees, Ahead(self.teach), samples or self.samples, 0, self.ranks, Clock(self.ranks.device))

    def trivial_update(self, student: int) -> None:
        """An update of a student by the trivial loss, under DeepSpeed."""
        engine = self.engines[student]
        engine.train()
        engine.backward(trivial_loss(engine(self.ids)))
        engine.step()


class LiteralTrainee(Trainee):
    """One whose loss is the papers' formula with every map whole, and gradients by autograd."""

    def losses(
        self, teacher: Taught, output: Taught, bounds: Bounds | None, part: slice = slice(None)
    ) -> dict[str, Tensor]:
        assert bounds is None
        targets, setting = self.targets(teacher, part, output[0].shape[1]), self.recipe
        loss = literal_loss(targets, QKV(*output[:3]), Setting(setting.relations, setting.relation_heads))
        return {"loss": loss}


def _trainees(
    setting: Setting, recipes: list[Recipe], engines: list, divergence: Divergence, teacher_width: int, ranks: Ranks
) -> list[Trainee]:
    """The students in training under the setting."""
    made: list[Trainee] = []
    for recipe, engine in zip(recipes, engines, strict=True):
        if setting.by == "literal":
            made.append(LiteralTrainee(recipe, engine))
        else:
            made.append(Trainee(recipe, engine, divergence, takes_kernel(recipe, teacher_width, ranks)[0]))
    return made


def _computed(trainee: Trainee) -> str:
    """What computes the loss, in words."""
    if isinstance(trainee, LiteralTrainee):
        return "by the formula, with whole maps"
    return "by its kernel" if trainee.fused else "over blocks of maps"


class Plain:
    """A student in plain torch: mixed precision with fp32 master weights, clipping of the global norm, fused AdamW."""

    def __init__(self, student: CutEncoder, recipe: Recipe, ranks: Ranks):
        dtype, self._clip = DTYPES[recipe.precision], recipe.gradient_clipping
        self._student = student.to(ranks.device).train()
        self._masters: list[Tensor] = list(student.parameters())
        if dtype != torch.float32:
            self._masters = [parameter.detach().clone() for parameter in self._masters]
        self._weights: list[Tensor] = list(student.to(dtype).parameters())
        fit(student, recipe, ranks, "plain student")
        first, second = recipe.adam_betas
        self._optimizer = torch.optim.AdamW(
            decay_groups(self._masters, recipe.weight_decay),
            lr=recipe.learning_rate, betas=(first, second), eps=recipe.adam_eps, fused=True,
        )  # fmt: skip

    def __call__(self, ids: Tensor) -> None:
        """One update by the trivial loss of ids [B, T]."""
        trivial_loss(self._student(ids)).backward()
        mixed = self._masters[0].dtype != self._weights[0].dtype
        if mixed:
            for master, weight in zip(self._masters, self._weights, strict=True):
                assert weight.grad is not None
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


def save_times(models: Models, repeats: int) -> list[float]:
    """Seconds of a checkpoint of every student: read from the engines, hashed, written and synced."""
    times = []
    with tempfile.TemporaryDirectory(prefix="bench-step-") as folder:
        for number in range(repeats):
            begin = time.perf_counter()
            for student, engine in enumerate(models.engines):
                names = {name: name for name, _ in engine.module.named_parameters()}
                state = read_state(engine, names, models.ranks.first)
                if models.ranks.first:
                    checkpoints.save(Path(folder, str(student)), {"step": number + 1}, state, 1)
            times.append(time.perf_counter() - begin)
    return times


# --- models -----------------------------------------------------------------------------------------------------------


def _bert(options: Namespace) -> BertConfig:
    layers, width = options.teacher
    return BertConfig(
        vocab_size=options.vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=_attention_heads(width),
        intermediate_size=4 * width, max_position_embeddings=max(512, options.length),
    )  # fmt: skip


def _recipe(
    options: Namespace, size: tuple[int, int], setting: Setting, ranks: int, arithmetic: Any = "auto"
) -> Recipe:
    layers, width = size
    return Recipe(
        data="random", out=f"student {_shown(size)}", steps=10**6, batch=options.batch * ranks, micro_batch=options.batch,
        teacher=Teacher("random", options.layer or options.teacher[0], hosting="replicate"),
        student=Student(layers, width, _attention_heads(width), dropout=options.dropout, ds_config=options.ds_config),
        learning_rate=1e-6, warmup_steps=0, length=options.length, pairs=setting.pairs, relation_heads=setting.heads,
        precision=options.precision, compile=options.compile, source="python -m pipeline.bench step",
        loss_kernel="torch" if setting.by == "literal" else setting.by, arithmetic=arithmetic,
    )  # fmt: skip


def _student(recipe: Recipe, teacher_config: BertConfig, trains_words: bool = True) -> CutEncoder:
    model = build_student(student_config_of(recipe, teacher_config), SEED)
    model.get_input_embeddings().requires_grad_(trains_words)
    return split(model)[0]


def _attention_heads(width: int) -> int:
    return 12 if width % 12 == 0 else max(1, width // 64)


def _shown(size: tuple[int, int]) -> str:
    return "{}x{}".format(*size)
