"""The sentences at the start of a run: models, hosting, batch, data, and notes on what may surprise."""

import json
from dataclasses import replace
from typing import cast

from torch import nn

from data_prep.machine import threads
from pipeline.artifacts.run_folder import differing, flat
from pipeline.data.fits import about_heldout, notes, times_read
from pipeline.data.reading import Heldout
from pipeline.engines.ranks import Ranks
from pipeline.engines.traffic import Table, dense_bytes, rows_bytes, sends_rows
from pipeline.models.fit import pooling_of
from pipeline.models.precision import way_of
from pipeline.models.vocabulary import student_ids_of
from pipeline.settings.plausible import doubts
from pipeline.settings.recipe import Recipe, layers_in_words
from pipeline.training.monitor import Monitor
from pipeline.training.run import HostedTeacher, Run
from pipeline.training.start import Built, Models

MUCH_UNKNOWN = 0.01  # of what a student with its own vocabulary reads


def introduce(
    run: Run, models: Models, teacher: HostedTeacher, monitors: list[Monitor], heldout: Heldout | None
) -> None:
    """Say what is about to be trained: in each student's log, on the terminal once."""
    recipe, corpus = run.recipe, run.corpus
    recipes = [student.recipe for student in models.students]
    everywhere(monitors, "\n".join(shared(run, teacher, recipes)))
    for monitor, student in zip(monitors, models.students, strict=True):
        monitor.describe(student.recipe.to_dict())
        monitor.say(about_student(student, recipes))
        resumed = student.checkpoint
        monitor.say(f"Resuming from {resumed.path}." if resumed else "Starting at step 0.")
        for note in about_steps(student):
            monitor.say(note)
        for note in about_words(student, run.ranks):
            monitor.say(note)
        if student.about_loss:
            monitor.say(student.about_loss)
        for note in about_bits(student) + about_products(student):
            monitor.say(note)
        for note in about_vocabulary(student.recipe, heldout):
            monitor.say(note)
    for doubt in dict.fromkeys(doubt for student in models.students for doubt in doubts(student.recipe)):
        everywhere(monitors, f"note: {doubt}")
    for note in about_pooling(recipe):
        everywhere(monitors, note)
    for note in about_attention(recipe, run.ranks):
        everywhere(monitors, note)
    for note in notes(corpus, run.windows, run.order, recipe.batch, recipe.steps):
        everywhere(monitors, f"note: {note}")
    found = len(heldout.sources) if heldout else 0
    if note := about_heldout(corpus.place, found, recipe.length, recipe.eval_samples):
        everywhere(monitors, f"note: {note}")


def everywhere(monitors: list[Monitor], line: str) -> None:
    """A sentence about all students: in each log, on the terminal once."""
    for number, monitor in enumerate(monitors):
        monitor.say(line, about_all=True, shown=number == 0)


def shared(run: Run, teacher: HostedTeacher, recipes: list[Recipe]) -> list[str]:
    """A sentence each on the teacher, the batch and the data, which all students share."""
    recipe, ranks, corpus, hosting = run.recipe, run.ranks, run.corpus, teacher.hosting
    tokens = sum(source.tokens for source in corpus.sources.values())
    read_as = "pairs [CLS] A [SEP] B [SEP]" if run.windows.paired else "single texts"
    window = f", the teacher's {recipe.teacher_batch}" if recipe.teacher.micro_batch else ""
    kept = "; its weights are kept in fp32 for widened products" if hosting.widened else ""
    arithmetic = f"{recipe.precision} on {ranks.device.type}"
    if ranks.device.type == "cpu":
        allowed = threads(ranks.local_world)
        arithmetic += f", {allowed.number} thread{'s' * (allowed.number > 1)} a rank ({allowed.why})"
    elif recipe.deterministic:
        arithmetic += ", deterministic algorithms alone, nothing compiled by Inductor"
    return [
        f"Teacher: {recipe.teacher.model}, {layers_in_words(recipes)} of {teacher.config.num_hidden_layers}, "
        f"{hosting.parameters / 1e6:.2f} M parameters up to that layer; hosting {hosting.kind} ({hosting.reason}){kept}.",
        f"Batch: {recipe.batch} sequences × {recipe.length} tokens = {ranks.world} rank{'s' * (ranks.world > 1)} × "
        f"micro-batch {recipe.micro_batch}{window} × accumulation {recipe.accumulation(ranks.world)}; {arithmetic}.",
        *run.about_arithmetic,
        f"Data: {corpus.place}, {tokens:,} tokens, corpus {corpus.id[:12]}; the run reads "
        f"{times_read(recipe.steps * run.tokens_per_step, tokens)}, as {read_as}.",
    ]


_SHAPE = ("student.layers", "student.hidden")


def about_student(student: Built, recipes: list[Recipe]) -> str:
    """A sentence on the student's shape and size, and the hash of its weights; and what else the ``recipes`` differ in."""
    size = sum(parameter.numel() for parameter in student.model.parameters())
    shape = student.recipe.student
    values = flat(student.recipe.to_dict())
    differ = [key for key in differing([each.to_dict() for each in recipes]) if key not in _SHAPE]
    own = "".join(f"; {key} = {json.dumps(values[key])}" for key in differ)
    return (
        f"Student: {shape.layers} layers × {shape.hidden}, {size / 1e6:.2f} M parameters, "
        f"weights {student.digest} on every rank{own}."
    )


def about_words(student: Built, ranks: Ranks) -> list[str]:
    """A sentence if the student's word embedding travels between ranks as rows: how much it is, and would be."""
    recipe, words = student.recipe, cast(nn.Embedding, student.model.get_input_embeddings())
    table = Table(words.num_embeddings, words.embedding_dim)
    if not sends_rows(recipe, table, ranks.world):
        return []
    rows, whole = rows_bytes(recipe, table, ranks.world), dense_bytes(recipe, table.rows * table.width, ranks.world)
    return [
        f"Between ranks its word embedding travels as rows, one for each token: {rows / 1e6:,.1f} MB a step into each rank "
        f"instead of {whole / 1e6:,.1f} MB."
    ]


def about_attention(recipe: Recipe, ranks: Ranks) -> list[str]:
    """A note on what padding costs on a GPU."""
    if recipe.layout != "doc" or ranks.device.type == "cpu":
        return []
    return [
        "note: layout = 'doc' pads sequences, and torch's flash attention takes no mask: the attention of padded batches is "
        "computed by another of its kernels (docs/guides/gpu.md says what that concerns); layout = 'packed' has no mask"
    ]


def about_pooling(recipe: Recipe) -> list[str]:
    """Notes if nobody says that the teacher's vectors are worth learning, or it is given texts otherwise than in training."""
    pooling, model = pooling_of(recipe), recipe.teacher.model
    if pooling is None:
        return []
    if not pooling.stated:
        return [
            f"note: nothing in {model} says how it makes a vector of a text (modules.json): its students learn the "
            "mean over a text's tokens, which a model that was not trained for it seldom makes worth learning"
        ]
    read, notes = f"here texts are read as {recipe.data} has them", []
    if pooling.prompt:
        pooled = "" if pooling.includes_prompt else ", and a prompt in them is pooled too, which that folder leaves out"
        notes.append(f"note: {model} puts {pooling.prompt!r} before each text; {read}{pooled}")
    if pooling.lowers:
        notes.append(f"note: {model} puts texts in lower case; {read}")
    return notes


def about_steps(student: Built) -> list[str]:
    """A note if a run is resumed with another number of steps than before: what becomes of its learning rate."""
    if student.checkpoint is None:
        return []
    recipe, done = student.recipe, student.checkpoint.step
    before = replace(recipe, steps=student.checkpoint.info["recipe"]["steps"])
    if before.steps == recipe.steps:
        return []
    rates = f"{before.learning_rate_at(done - 1):.3g} in step {done}, {recipe.learning_rate_at(done):.3g} in step {done + 1}"
    return [
        f"note: steps = {recipe.steps}, before {before.steps}: from here on the learning rate is that of a run of "
        f"{recipe.steps} steps ({rates}); the steps that are done are not made again, so this is not the run that such a "
        "recipe makes from its start"
    ]


def about_bits(student: Built) -> list[str]:
    """Notes if a run is resumed with another ``deterministic``, or its loss computed otherwise, than before."""
    if student.checkpoint is None:
        return []
    info, recipe = student.checkpoint.info, student.recipe
    ways = {
        "deterministic": (info["recipe"].get("deterministic", False), recipe.deterministic),
        "the loss by the fused kernel": (info.get("fused", False), student.fused),
    }
    return [
        f"note: {way} = {str(now).lower()}, but {student.checkpoint.path} was made with {str(before).lower()}: on GPUs "
        "the run as a whole cannot be repeated bit for bit"
        for way, (before, now) in ways.items()
        if before != now
    ]


def about_products(student: Built) -> list[str]:
    """A note if a run is resumed with bf16 products on a CPU taken another way than before."""
    if student.checkpoint is None:
        return []
    before, now = way_of(student.checkpoint.info.get("arithmetic")), student.recipe.arithmetic
    if before is None or now in ("auto", before):
        return []
    return [
        f"note: arithmetic = {now!r}, but {student.checkpoint.path} was made with {before!r}: the run as a whole cannot be "
        "repeated bit for bit"
    ]


def about_vocabulary(recipe: Recipe, heldout: Heldout | None) -> list[str]:
    """A note if a student with its own vocabulary does not know much of the held-out text."""
    ids = student_ids_of(recipe)
    if heldout is None or ids is None:
        return []
    lost = float((ids[heldout.inputs.ids.numpy()] < 0).mean())
    if lost <= MUCH_UNKNOWN:
        return []
    return [
        f"note: {lost:.1%} of the held-out tokens are unknown to the student; trim its vocabulary to the "
        "languages of the data, or prepare data of its languages alone"
    ]
