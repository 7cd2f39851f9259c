"""The numbers of a new recipe that follow from its data and this machine."""

from dataclasses import dataclass, field, replace

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from data_prep.cli import UserError
from data_prep.shards import Corpus
from pipeline.data.reading import windows_of
from pipeline.engines.hosting import Hosting
from pipeline.measuring import device_here
from pipeline.models.arithmetic import has_fast_bf16
from pipeline.models.families import longest_input
from pipeline.models.fit import check_teacher, products_of, with_segments
from pipeline.plan.here import Machine, in_words, this_machine
from pipeline.plan.planning import Plan, models_of, plan_run
from pipeline.settings.recipe import Recipe

EPOCHS, PAPER = 10, 400_000  # at most so often is the data read, and so many steps made
BUDGET = {True: 3600, False: 86400}  # seconds of a run on a CPU, or on GPUs
LEAST = 100  # steps; fewer teach nothing
SIZE = {True: (32, 128), False: (256, 512)}  # sequences in a step × tokens of each, on a CPU or on GPUs
SAMPLES = {True: 64, False: 1024}  # of an evaluation
_MICRO = 32  # sequences in a pass on a CPU, at most: more are no faster


@dataclass(frozen=True)
class Fitted:
    """The ``recipe``, the ``machine`` and the data it fits, where its teacher goes, and the reasons by key."""

    recipe: Recipe
    machine: Machine
    hosting: Hosting
    tokens: int
    documents: int
    sources: int
    why: dict[str, str] = field(default_factory=dict)


def fitted(
    recipe: Recipe, config: PreTrainedConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerBase | None
) -> Fitted:
    """``recipe`` with all numbers that depend on data and machine. Raises UserError where there is no text to train on."""
    tokens, documents = (
        sum(getattr(source, of) for source in corpus.sources.values()) for of in ("tokens", "documents")
    )
    if not tokens:
        raise UserError(f"{corpus.place}: no document to train on holds a token; prepare it from other text")
    machine = this_machine(products_of([replace(recipe, length=128, micro_batch=8)], config))
    cpu = machine.is_cpu
    why: dict[str, str] = {}
    recipe = replace(recipe, precision="bf16" if has_fast_bf16(device_here()) else "fp32")

    recipe, windows = _sequences(recipe, config, corpus, tokens / documents, cpu, why)
    recipe, plan = _batch(recipe, windows, machine, why)
    recipe = _steps(recipe, plan, tokens, machine, why)
    known = recipe if tokenizer is None else with_segments(recipe, config, tokenizer)
    heldout = len(windows_of(corpus, "heldout", recipe.length, "full", known.segments == "pairs"))
    samples = min(SAMPLES[cpu], heldout)
    why["eval_samples"] = (
        "held-out sequences for each of these losses" if samples else "no text is held out: see --heldout"
    )
    recipe = replace(recipe, eval_samples=samples)
    recipe.check()
    check_teacher(recipe, config)
    return Fitted(recipe, machine, plan.hosting, tokens, documents, len(corpus.sources), why)


def _sequences(
    recipe: Recipe, config: PreTrainedConfig, corpus: Corpus, mean: float, cpu: bool, why: dict[str, str]
) -> tuple[Recipe, int]:
    """The recipe with a length and a layout, and how many windows there are."""
    wanted, longest = SIZE[cpu][1], longest_input(config)
    length = min(wanted, longest)
    why["length"] = "the papers' 512" if length == 512 else "short sequences, so that a CPU makes many steps"
    if length == longest < wanted:
        why["length"] = "as long as the teacher reads"
    windows = len(windows_of(corpus, "train", length))
    while not windows and length > 16:
        length //= 2
        windows, why["length"] = len(windows_of(corpus, "train", length)), "as long as the little text allows"
    padded = corpus.tokenizer["special"].get("pad") is not None
    if mean < length / 2 and padded:
        rows = max(1, round(mean * sum(source.documents for source in corpus.sources.values()) / length))
        why["layout"] = f"documents have {mean:.0f} tokens in the mean: whole ones share a row, none is cut"
        return replace(recipe, length=length, layout="packed"), rows
    why["layout"] = f"documents have {mean:,.0f} tokens in the mean: windows run across their ends"
    return replace(recipe, length=length, layout="full"), max(1, windows)


def _batch(recipe: Recipe, windows: int, machine: Machine, why: dict[str, str]) -> tuple[Recipe, Plan]:
    """The recipe with a batch, micro-batch and ZeRO stage that fit the memory; and its plan."""
    cpu, world = machine.is_cpu, machine.cluster.world
    usual = SIZE[cpu][0]
    size = max(1, min(usual, windows) // world) * world
    why["batch"] = f"{size} × {recipe.length} = {size * recipe.length:,} tokens a step" + (
        "; the papers' 256 × 512 are for GPUs" if cpu else "; the papers' 256" if size == 256 else ""
    )
    if size < usual // world * world:
        why["batch"] += f"; no more than the {windows} windows there are"
    recipe = replace(recipe, batch=size, micro_batch=size // world)
    models = models_of([recipe])
    stages = (1, 2, 3) if world > 1 else (1,)
    for stage in stages:
        student = replace(recipe.student, ds_config=f"student_zero{stage}.json")
        plan = plan_run([replace(recipe, student=student)], models, machine.cluster)
        if plan.largest:
            break
    of = f"{machine.cluster.memory / 2**30:.1f} GiB of {'a process' if cpu else 'a GPU'}"
    why["ds_config"] = f"ZeRO stage {stage}: what a rank holds fits the {of}"
    most = min(plan.largest or 1, _MICRO) if cpu else plan.largest or 1
    micro = max(count for count in range(1, most + 1) if (size // world) % count == 0)
    why["micro_batch"] = f"of one pass of a rank; up to {plan.largest} fit the {of}, by the plan's memory"
    if not plan.largest:
        why["micro_batch"] = (
            f"not even one sequence fits the {of}, by the plan's memory: see ./run.sh plan for other machines"
        )
        stage = stages[-1]
    student = replace(recipe.student, ds_config=f"student_zero{stage}.json")
    recipe = replace(recipe, micro_batch=micro, student=student)
    return recipe, plan_run([recipe], models, machine.cluster)


def _steps(recipe: Recipe, plan: Plan, tokens: int, machine: Machine, why: dict[str, str]) -> Recipe:
    """The recipe with steps, and what is counted in them: as many as data, time and the papers allow."""
    seconds, budget = machine.slower * plan.times.step, BUDGET[machine.is_cpu]
    limits = {
        f"{EPOCHS} times through the data": EPOCHS * tokens // recipe.tokens_per_step,
        f"at most {in_words(budget)} here, {machine.basis}": int(budget / seconds),
        "as many as in the papers": PAPER,
    }
    reason = min(limits, key=limits.__getitem__)
    steps = _rounded(limits[reason])
    why["steps"] = reason
    if steps < LEAST:
        steps, why["steps"] = LEAST, f"fewer teach nothing, though {reason} would be {limits[reason]}"
    large = recipe.tokens_per_step >= 2**15 or steps >= 10_000
    return replace(
        recipe,
        steps=steps,
        warmup_steps=min(4000, max(1, steps // 20)),
        learning_rate=6e-4 if large else 1e-3,
        log_every=max(1, steps // 50),
        eval_every=max(1, steps // 10),
        checkpoint_every=max(1, steps // 10),
    )


def _rounded(number: int) -> int:
    """Two digits and noughts: 1,396 is 1,300."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return number // unit * unit
