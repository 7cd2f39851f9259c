"""A recipe next to its data and this machine: is the data there and the teacher's, how often is it read, how long is a run."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from data_prep.cli import UserError, some
from data_prep.shards import Corpus, open_corpus
from pipeline.data.fits import about_heldout, check_corpus, notes, times_read
from pipeline.data.reading import filled, order_of, training_windows, windows_of
from pipeline.models.fit import products_of, with_segments
from pipeline.models.loading import load_tokenizer
from pipeline.plan.hardware import GIB
from pipeline.plan.here import Machine, in_words, this_machine
from pipeline.plan.planning import Plan, models_of, plan_run, ways_out
from pipeline.settings.recipe import Recipe


def data_lines(recipe: Recipe, config: PreTrainedConfig) -> Iterator[str]:
    """What a run of ``recipe`` would read. Data that is not there, or not whole, is a line.

    Raises UserError for data of another tokenizer than the teacher's, or without a window to train on.
    """
    try:
        corpus = open_corpus(recipe.data, recipe.shards_cache)
    except UserError as error:
        yield f"note: {error}"
        return
    tokenizer = tokenizer_here(recipe)
    if tokenizer is None:
        yield "note: the teacher's tokenizer is not on this machine: not compared with the data's"
    else:
        check_corpus(corpus, tokenizer, recipe.teacher.model, recipe.layout, config.vocab_size)
        recipe = with_segments(recipe, config, tokenizer)
    trained = corpus.sources.values()
    tokens, documents = sum(source.tokens for source in trained), sum(source.documents for source in trained)
    yield f"data: {tokens:,} tokens in {documents:,} documents to train on ({some(list(corpus.sources), 5)})"
    if recipe.layout == "packed":  # whose windows are known from an index that a run makes
        yield f"the run reads up to {times_read(recipe.steps * recipe.tokens_per_step, tokens)}"
        heldout = sum(source.tokens for source in corpus.heldout.values())
        if not heldout or not recipe.eval_samples:
            yield f"note: {about_heldout(corpus.place, heldout, recipe.length, recipe.eval_samples)}"
        return
    yield from _reading(recipe, corpus, tokens)


def _reading(recipe: Recipe, corpus: Corpus, tokens: int) -> Iterator[str]:
    """Epochs, held-out windows, and the notes that a run begins with."""
    paired = recipe.segments == "pairs"
    windows = training_windows(corpus, recipe.length, recipe.layout, paired)
    order = order_of(windows, recipe.sampling_alpha, recipe.seed, recipe.shuffle_shards)
    samples = recipe.steps * recipe.batch
    read = times_read(filled(windows, order) * recipe.steps * recipe.tokens_per_step, tokens)
    yield f"the run reads {read}: {samples:,} samples of {len(windows):,} windows, {samples / len(windows):.2g} epochs"
    heldout = len(windows_of(corpus, "heldout", recipe.length, recipe.layout, paired))
    note = about_heldout(corpus.place, heldout, recipe.length, recipe.eval_samples)
    yield f"note: {note}" if note else f"held out: {heldout:,} windows, of which {recipe.eval_samples:,} are evaluated"
    for note in notes(corpus, windows, order, recipe.batch, recipe.steps):
        yield f"note: {note}"


def tokenizer_here(recipe: Recipe) -> PreTrainedTokenizerBase | None:
    """The teacher's tokenizer, without asking a network; None if it is a hub's that was not fetched.

    The teacher of a later stage is a student that does not exist yet: it has that of the first stage's teacher.
    """
    while recipe.previous:
        recipe = recipe.previous
    model, revision = recipe.teacher.model, recipe.teacher.revision
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    fetched = (huggingface_hub.try_to_load_from_cache(model, file, revision=revision) for file in files)
    if Path(model).is_dir() or any(isinstance(found, str) for found in fetched):
        return load_tokenizer(model, revision)
    return None


def machine_lines(recipes: list[Recipe], config: PreTrainedConfig) -> Iterator[str]:
    """Time and memory of a run of ``recipes``, which share a teacher's pass, on this machine."""
    machine = this_machine(products_of(recipes, config))
    try:
        plan = plan_run(recipes, models_of(recipes), machine.cluster)
    except UserError as error:
        yield f"note: on this machine ({machine}): {error}"
        return
    step, steps = plan.times.step, recipes[0].steps
    yield f"time on this machine ({machine}): {spread(step * steps, machine)} for all steps, {spread(step, machine)} a step;"
    yield f"{machine.basis}; evaluations come on top"
    yield f"memory: about {plan.memory.peak / GIB:.1f} of {machine.cluster.memory / GIB:.1f} GiB {each(machine)}"
    if not plan.fits:
        yield f"note: that does not fit; each of these would do: {', '.join(_here(plan))}"
    elif plan.recipes[0].micro_batch != plan.asked:
        yield f"note: micro_batch = {plan.asked} does not come out here: run it with micro_batch={plan.recipes[0].micro_batch}"


def spread(seconds: float, machine: Machine) -> str:
    """An estimate in words; of a CPU from the least to the most."""
    if machine.slower == 1:
        return f"about {in_words(seconds)}"
    return f"{in_words(seconds)} to {in_words(machine.slower * seconds)}"


def each(machine: Machine) -> str:
    return "a process" if machine.is_cpu else "a GPU"


def _here(plan: Plan) -> list[str]:
    """What would make a plan fit, without other hardware where there is a choice."""
    found = ways_out(plan)
    return [way for way in found if not way.startswith(("--", "GPUs"))] or ["a machine with more memory"]
