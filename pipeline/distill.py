"""Train a small student on the self-attention relations of a large, frozen teacher.

    python -m pipeline.distill RECIPE.toml [key=value …]                          one process
    deepspeed --num_gpus 8 --module pipeline.distill RECIPE.toml [key=value …]    one process for each device
    torchrun --nproc-per-node 8 -m pipeline.distill RECIPE.toml [key=value …]     the same

The run folder `out` (OUT/NAME for each of several students) receives checkpoints/, tensorboard/, metrics.jsonl and, last,
COMPLETE. The same command goes on from the newest checkpoint. SIGTERM, SIGUSR1 or a file out/STOP make it write one and
leave with exit code 75. The smallest real run: ./run.sh demo
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from data_prep.errors import Parser, UserError, run_command
from data_prep.shards import Corpus, open_corpus
from pipeline import batches, checkpoints, encoders, engines, runs, slurm
from pipeline.ds_config import load_ds_config
from pipeline.engines import Teach
from pipeline.export import export, initialise, is_export_of, read_distillation, student_tokenizer
from pipeline.maps import SENTENCE, relation_image, relation_maps
from pipeline.monitor import Monitor
from pipeline.places import TIMEOUT
from pipeline.precision import lacks_bf16_units
from pipeline.ranks import Ranks, on_first_rank, start_ranks
from pipeline.recipe import Recipe, load_stages, teacher_layers
from pipeline.relations import QKV, VALUE_PROJECTION
from pipeline.step import Clock, Trainee, divergence_of, trained_part, update
from pipeline.watchdog import EarlyStop, Watchdog

MUCH_UNKNOWN = 0.01  # of what a student with its own vocabulary reads


def distill(
    recipes: list[Recipe],
    stop_at: int | None = None,
    max_hours: float | None = None,
    timeout: float = TIMEOUT,
    launch: str | None = None,
    more: bool = False,
    began: float | None = None,
) -> int:
    """Run ``recipes``, which differ in their student only, to their end, or leave after update ``stop_at``.

    Returns the exit code, which is also put on record for ``launch``, unless ``more`` stages follow this one: 0, or
    runs.EARLY if it was asked to stop (see watchdog.EarlyStop) or ``max_hours`` are over, counted from ``began`` (of
    time.monotonic) if that is given; the same call goes on. A rank that is silent for ``timeout`` s ends the process. The
    students of a finished stage are exported. Raises UserError for whatever the user can mend, on every rank, with the
    checkpoints so far kept.
    """
    # What can be wrong is told before anything heavy starts.
    recipe = recipes[0]  # where they agree
    teacher_config = recipe.teacher_config()
    for one in recipes:
        one.check_teacher(teacher_config)
        for name in (one.teacher.ds_config, one.student.ds_config):
            load_ds_config(name, one)
    corpus = open_corpus(recipe.data)
    windows = batches.training_windows(corpus, recipe.length, recipe.layout)
    tokenizer = encoders.load_tokenizer(recipe.teacher.model, recipe.teacher.revision)
    framing = ("cls", "sep", "pad") if recipe.layout == "doc" else ("cls", "sep")
    batches.check_tokenizer(corpus, tokenizer, recipe.teacher.model, framing)
    if corpus.tokenizer["vocab_size"] > teacher_config.vocab_size:
        raise UserError(
            f"{corpus.path}: {corpus.tokenizer['vocab_size']} token ids, the teacher has {teacher_config.vocab_size} "
            "embeddings; prepare the data with the teacher's own tokenizer"
        )
    recipe.accumulation(int(os.environ.get("WORLD_SIZE", 1)))

    ranks = start_ranks()
    last = min(recipe.steps, stop_at or recipe.steps)
    with (
        EarlyStop(ranks, runs.root_of(recipes), max_hours, began) as early,
        Watchdog(ranks, timeout) as watchdog,
        runs.sole_writer([Path(one.out) for one in recipes], ranks),
        runs.failure_on_record(runs.root_of(recipes), ranks, launch),
    ):
        early.forget()
        on_first_rank(ranks, lambda: batches.check_bytes(corpus))
        due = []
        for one in recipes:
            checkpoint = on_first_rank(ranks, lambda one=one: runs.newest_checkpoint(Path(one.out), one, corpus))
            if not checkpoint or checkpoint.step < last:
                due.append((one, checkpoint))
            elif ranks.first:
                print(f"{one.out} already has its checkpoint of step {checkpoint.step}: nothing to do", flush=True)
        step = train(due, ranks, corpus, windows, tokenizer, last, early) if due else last
        if step == recipe.steps:
            on_first_rank(ranks, lambda: finish(recipes))
        goes_on = more and step == recipe.steps
        code = 0 if step == last else runs.EARLY
        if goes_on and early.asked():
            code, goes_on = runs.EARLY, False
            early.forget()
            if ranks.first:
                print(f"Stopped after stage {recipe.stage} ({early.reason}); the same command goes on.", flush=True)
        if ranks.first and not goes_on:
            # Before any rank leaves: launchers end the others as soon as one has left with a code.
            runs.record_end(runs.root_of(recipes), launch, code)
        watchdog.leave()
    return code


def train(
    due: list[tuple[Recipe, checkpoints.Checkpoint | None]],
    ranks: Ranks,
    corpus: Corpus,
    windows: batches.Windows,
    tokenizer,
    last: int,
    early: EarlyStop,
) -> int:
    """Each student from its checkpoint, or from its start, to step ``last``, or an ``early`` one, which is returned."""
    # The models: the teacher still without its weights, the students whole.
    recipe = due[0][0]
    teacher_config = recipe.teacher_config()
    *earlier, layer = told = teacher_layers([one for one, _ in due])
    teacher, in_file = encoders.empty_encoder(teacher_config, layer, windows.padding, tuple(earlier))
    weights = encoders.weights_of(recipe.teacher.model, recipe.teacher.revision, teacher_config)
    history = on_first_rank(ranks, lambda: read_distillation(Path(recipe.teacher.model)))
    on_first_rank(ranks, lambda: weights.check({in_file[name]: p.shape for name, p in teacher.named_parameters()}))
    models = [encoders.build_student(one.student_config(teacher_config), one.seed) for one, _ in due]
    for (one, checkpoint), model in zip(due, models, strict=True):
        if checkpoint:
            checkpoint.load_into(model)
        elif one.student.init != "random":
            on_first_rank(ranks, lambda one=one, model=model: initialise(model, one, teacher_config, weights))
            engines.send_weights(ranks, model)
    hashes = [engines.check_same_weights(ranks, model) for model in models]
    flops = encoders.forward_flops(teacher_config, layer, recipe.length, len(earlier)) * recipe.batch

    # An engine for the teacher and one for each student.
    hosting = engines.choose_hosting(recipe, ranks, teacher)
    engines.check_memory([one for one, _ in due], ranks, hosting, models)
    teach, teacher_hash = engines.host_teacher(
        recipe, ranks, teacher, hosting, lambda name: weights.tensor(in_file[name])
    )
    divergence = divergence_of(recipe)
    trainees = []
    for (one, checkpoint), model in zip(due, models, strict=True):
        student, names, tail = trained_part(one, model, teacher_config.hidden_size, windows.padding)
        if checkpoint:
            runs.check_same_teacher(checkpoint, teacher_hash, one)
            runs.check_same_vocabulary(checkpoint, one)
            state = checkpoint.tensors(names.values())
            if student.value_projection is not None:  # the rest has been loaded with the model
                student.value_projection.weight.data.copy_(state[VALUE_PROJECTION])
        trainee = Trainee(one, engines.student_engine(one, ranks, student), divergence, names, tail, told)
        if checkpoint:
            trainee.start = checkpoint.step
            engines.prime_optimizer(trainee.engine)
            engines.write_state(trainee.engine, names, state, trainee.start)
        trainees.append(trainee)

    # What is read, and what is seen.
    start = min(trainee.start for trainee in trainees)
    order = batches.order_of(windows, recipe.sampling_alpha, recipe.seed)
    reading = batches.steps(windows, order, start, last, recipe.batch, ranks.rank, ranks.world)
    real_tokens = batches.filled(windows, order) * recipe.tokens_per_step
    heldout = batches.heldout_of(
        corpus, recipe.length, recipe.eval_samples, recipe.sampling_alpha, recipe.seed, recipe.layout
    )
    if ranks.first:
        for (one, _), model in zip(due, models, strict=True):  # a backward takes twice what a forward does
            cut = model.config.num_hidden_layers, recipe.length, len(one.layers) - 1
            flops += 3 * encoders.forward_flops(model.config, *cut) * recipe.batch
        for number, (trainee, model) in enumerate(zip(trainees, models, strict=True)):
            run = Path(trainee.recipe.out)
            runs.prepare_folder(
                run, trainee.recipe, trainee.engine.resolved_config, model.config, student_tokenizer(trainee.recipe)
            )
            (run / runs.COMPLETE).unlink(missing_ok=True)
            label = f"{run.name}: " if len(trainees) > 1 else ""
            trainee.monitor = Monitor(
                run, trainee.start, recipe.steps, real_tokens, flops, label, shows_bar=number == 0
            )
        everywhere(trainees, introduction(recipe, ranks, corpus, teacher.config, hosting, real_tokens))
        for trainee, model, digest, (_, checkpoint) in zip(trainees, models, hashes, due, strict=True):
            trainee.monitor.say(about_student(trainee.recipe, model, digest))
            trainee.monitor.say(f"Going on from {checkpoint.path}." if checkpoint else "Starting at step 0.")
            if heldout and (ids := trainee.recipe.student_ids()) is not None:
                lost = float((ids[heldout.ids.numpy()] < 0).mean())
                if lost > MUCH_UNKNOWN:
                    trainee.monitor.say(
                        f"note: {lost:.1%} of the held-out tokens are unknown to the student; trim its vocabulary to the "
                        "languages of the data, or prepare data of its languages alone"
                    )
        for note in batches.notes(corpus, windows, order, recipe.batch, recipe.steps):
            everywhere(trainees, f"note: {note}")
        if heldout is None:
            everywhere(
                trainees,
                f"note: {corpus.path} has no held-out window of {recipe.length} tokens: no held-out losses; "
                "prepare the data with a larger --heldout",
            )

    def evaluate(chosen: list[Trainee], step: int) -> None:
        losses, of_sources = heldout_losses(chosen, ranks, heldout, teach, windows.padding)
        images = probe_images(chosen, ranks, tokenizer, teach)
        read = batches.read_of(windows, order, step * recipe.batch)
        for trainee, own, of_source, image in zip(chosen, losses, of_sources, images, strict=True):
            if trainee.monitor:
                trainee.monitor.evaluated(step, own, image)
                if len(read) > 1:
                    trainee.monitor.of_sources(step, read, of_source)

    def save(trainee: Trainee, step: int) -> None:
        state = engines.read_state(trainee.engine, trainee.names, ranks.first) | trainee.tail
        info = runs.checkpoint_info(trainee.recipe, corpus, ranks, step, teacher_hash, history)
        keep = (trainee.recipe.keep_checkpoints, trainee.recipe.keep_every)
        on_first_rank(ranks, lambda: checkpoints.save(Path(trainee.recipe.out), info, state, *keep))

    if start == 0:
        evaluate([trainee for trainee in trainees if trainee.start == 0], 0)
    clock, monitors = Clock(ranks.device), [trainee.monitor for trainee in trainees if trainee.monitor]
    for monitor in monitors:
        monitor.resume()

    for step, samples in enumerate(batches.read_ahead(reading, ranks.device), start):
        done = step + 1
        logs, evaluates = (done % every == 0 or done == recipe.steps for every in (recipe.log_every, recipe.eval_every))
        leaves = done == last or early.agreed()
        saves = done % recipe.checkpoint_every == 0 or leaves
        students = [trainee for trainee in trainees if trainee.start <= step]  # one that is ahead waits for the others
        for trainee in students:
            if trainee.monitor:
                trainee.monitor.received()
        clock.running = logs
        losses = update(students, teach, samples, step, ranks, windows.padding, clock)
        for trainee, own in zip(students, losses, strict=True):
            trainee.unchecked[step] = own
            if trainee.engine.skipped_steps:  # the same on all ranks; the loss tells more, if it is not finite either
                stop_if_not_finite(trainee, ranks)
                raise UserError(f"{trainee.recipe.out}: the gradient is not finite in step {done}; {_NOT_FINITE}")

        # Once in a while.
        if logs or evaluates or saves:  # only here the losses are looked at: that waits for the device
            for trainee in students:
                stop_if_not_finite(trainee, ranks)
        shares = shares_of(clock.seconds()) if logs else {}
        for trainee, own in zip(students, losses, strict=True):
            mean = all_mean(own.mean(0), ranks).tolist() if logs else None
            if trainee.monitor and logs:
                named = dict(zip(("loss", *trainee.recipe.pairs), mean, strict=True))
                rate = trainee.recipe.learning_rate_at(step)
                norm = engines.gradient_norm(trainee.engine)
                trainee.monitor.log(done, named, learning_rate=rate, samples=done * recipe.batch, **norm, **shares)
            elif trainee.monitor:
                trainee.monitor.step(done)
        if evaluates:
            evaluate(students, done)
        if saves:
            stop_if_data_changed(windows, ranks)
            for trainee in students:
                save(trainee, done)
        if leaves:
            break
        for monitor in monitors:
            monitor.resume()

    if done < last:
        early.forget()
        end = f"Stopped after step {done} ({early.reason}); the same command goes on."
    elif last < recipe.steps:
        end = f"Stopped after step {last} as asked; the same command without --stop-at goes on."
    else:
        end = f"Done: {recipe.steps} steps."
    for trainee in trainees:
        if trainee.monitor:
            next_one = f" Next: python -m pipeline.export {trainee.recipe.out} STUDENT_FOLDER"
            trainee.monitor.say(end + (next_one if done == recipe.steps and not recipe.stage else ""))
            trainee.monitor.close()
    return done


# --- before the first step --------------------------------------------------------------------------------------------


def finish(recipes: list[Recipe]) -> None:
    """Mark runs as complete. The student of a stage is exported, if it is not yet: it is the next one's teacher."""
    for recipe in recipes:
        run = Path(recipe.out)
        if recipe.stage and not is_export_of(recipe.exported, checkpoints.latest(run)):
            export(run, recipe.exported)
            print(f"{recipe.exported}: the student of stage {recipe.stage}, exported", flush=True)
        (run / runs.COMPLETE).write_text(f"{recipe.steps} steps\n")


def everywhere(trainees: list[Trainee], line: str) -> None:
    """A sentence about all students: in each log, on the terminal once."""
    for number, trainee in enumerate(trainees):
        trainee.monitor.say(line, about_all=True, shown=number == 0)


def introduction(recipe: Recipe, ranks: Ranks, corpus: Corpus, teacher_config, hosting, tokens_per_step: float) -> str:
    """The sentences at the start of a run: what its students share."""
    tokens = sum(source.tokens for source in corpus.sources.values())
    wide = recipe.precision == "bf16" and lacks_bf16_units(ranks.device)
    window = f", the teacher's {recipe.teacher_batch}" if recipe.teacher.micro_batch else ""
    return "\n".join(
        (
            f"Teacher: {recipe.teacher.model}, layer {recipe.teacher.layer} of {teacher_config.num_hidden_layers}, "
            f"{hosting.parameters / 1e6:.2f} M parameters up to there; hosting {hosting.kind}: {hosting.reason}.",
            f"Batch: {recipe.batch} sequences × {recipe.length} tokens = {ranks.world} rank{'s' * (ranks.world > 1)} × "
            f"micro-batch {recipe.micro_batch}{window} × accumulation {recipe.accumulation(ranks.world)}; {recipe.precision} "
            + f"on {ranks.device.type}"
            + (" (this CPU has no bf16 units: products are taken in fp32 and rounded)." if wide else "."),
            f"Data: {corpus.path}, {tokens:,} tokens, corpus {corpus.id[:12]}; the run reads "
            f"{recipe.steps * tokens_per_step / max(tokens, 1):.2f} times as many.",
        )
    )


def about_student(recipe: Recipe, model: PreTrainedModel, digest: str) -> str:
    size = sum(p.numel() for p in model.parameters())
    return (
        f"Student: {recipe.student.layers} layers × {recipe.student.hidden}, {size / 1e6:.2f} M parameters, "
        f"weights {digest} on every rank."
    )


# --- in the loop ------------------------------------------------------------------------------------------------------


_NOT_FINITE = "the run stops and keeps its checkpoints: use a lower learning_rate and another out"


def stop_if_not_finite(trainee: Trainee, ranks: Ranks) -> None:
    """Raise on every rank if the loss of any micro-batch of any rank was not finite since the last call."""
    recipe, steps = trainee.recipe, list(trainee.unchecked)
    finite = torch.stack(list(trainee.unchecked.values())).isfinite().all(-1)  # [steps, micro-batches]
    trainee.unchecked.clear()
    everyone = [torch.empty_like(finite, dtype=torch.uint8) for _ in range(ranks.world)]
    dist.all_gather(everyone, finite.to(torch.uint8))
    bad = (torch.stack(everyone, 1) == 0).nonzero().tolist()  # of [steps, ranks, micro-batches]: the earliest first
    if bad:
        number, rank, micro = bad[0]
        step = steps[number]
        first = step * recipe.batch + rank * (recipe.batch // ranks.world) + micro * recipe.micro_batch
        raise UserError(
            f"{recipe.out}: the loss is not finite in step {step + 1} on rank {rank}, samples {first} to "
            f"{first + recipe.micro_batch - 1}; {_NOT_FINITE}, or look at these samples"
        )


def stop_if_data_changed(windows: batches.Windows, ranks: Ranks) -> None:
    """Raise on every rank if, for any, a shard is no longer the file that it was: what was read of it may be anything."""
    found: list = [None] * ranks.world
    dist.all_gather_object(found, windows.changed())
    for path in filter(None, found):
        raise UserError(
            f"{path}: was changed while the run was reading it; no checkpoint was written since, the former ones are kept: "
            "put the former file back and run the same command again"
        )


@torch.no_grad()
def heldout_losses(
    trainees: list[Trainee], ranks: Ranks, heldout: batches.Heldout | None, teach: Teach, padding: int | None
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """For each trainee its mean losses in nats over the held-out sequences, and its mean loss over those of each source.

    Both are empty without any sequence, the second also where all are of one source.
    """
    if heldout is None:
        return [{} for _ in trainees], [{} for _ in trainees]
    recipe = trainees[0].recipe
    for trainee in trainees:
        trainee.engine.eval()
    # Every rank runs equally many forwards (ZeRO-3 gathers in each); one without a batch left runs the first, weightless.
    parts = heldout.ids.split(recipe.micro_batch)
    total = torch.zeros((len(trainees), len(recipe.pairs) + 1), device=ranks.device)
    names = sorted(set(heldout.sources))
    of_source = torch.zeros((len(trainees), len(names)), device=ranks.device)
    for first in range(0, len(parts), ranks.world):
        mine = first + ranks.rank
        ids, lengths = batches.unpadded(parts[mine if mine < len(parts) else 0], padding)
        ids = ids.to(ranks.device)
        teacher = teach(ids)
        for trainee, sums, by_name in zip(trainees, total, of_source, strict=True):
            output = trainee.engine(ids)
            losses = trainee.losses(teacher, output, lengths)
            sums += torch.stack(list(losses.values())) * len(ids) * (mine < len(parts))
            if len(names) > 1 and mine < len(parts):
                sources = heldout.sources[mine * recipe.micro_batch :][: len(ids)]
                for name, loss in zip(sources, trainee.loss_of_each(teacher, output, lengths), strict=True):
                    by_name[names.index(name)] += loss
    dist.all_reduce(total)
    dist.all_reduce(of_source)
    counts = torch.tensor([heldout.sources.count(name) for name in names], device=ranks.device)
    means = [dict(zip(("loss", *recipe.pairs), own, strict=True)) for own in (total / len(heldout.ids)).tolist()]
    by_source = [dict(zip(names, own, strict=True)) if len(names) > 1 else {} for own in (of_source / counts).tolist()]
    return means, by_source


@torch.no_grad()
def probe_images(trainees: list[Trainee], ranks: Ranks, tokenizer, teach: Teach) -> list[Tensor]:
    """The relation maps of one fixed sentence, teacher beside student, as grey images; every rank runs the forwards."""
    recipe = trainees[0].recipe
    ids = tokenizer(SENTENCE, return_tensors="pt", truncation=True, max_length=recipe.length)["input_ids"]
    ids, images = ids.to(ranks.device), []
    teacher = teach(ids)
    for trainee in trainees:
        trainee.engine.eval()
        of_last = (QKV(*(x[-1:] for x in qkv[:3])) for qkv in (teacher, trainee.engine(ids)))
        maps = relation_maps(*of_last, recipe.relations, recipe.relation_heads)
        images.append(relation_image(maps))
    return images


def shares_of(seconds: dict[str, float]) -> dict[str, float]:
    """{"teacher_share": …}: each part's share of the time of an update."""
    return {f"{part}_share": spent / sum(seconds.values()) for part, spent in seconds.items()}


def all_mean(x: Tensor, ranks: Ranks) -> Tensor:
    """The mean of ``x`` over all ranks."""
    dist.all_reduce(x)
    return x / ranks.world


def distill_stages(stages: list[list[Recipe]], options: argparse.Namespace) -> int:
    """Each stage to its end, or until one is left early. One that is complete is passed over, also by ``--stop-at``."""
    began, code = time.monotonic(), 0
    for number, recipes in enumerate(stages, 1):
        more, stop_at = number < len(stages), options.stop_at
        if more and stop_at and on_first_rank(start_ranks(), lambda recipes=recipes: runs.are_complete(recipes)):
            stop_at = None
        code = distill(recipes, stop_at, options.max_hours, options.timeout, options.launch, more, began)
        if code or (stop_at or recipes[0].steps) < recipes[0].steps:
            break
        engines.release()
    return code


def main() -> int:
    parser = Parser(
        prog="python -m pipeline.distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a TOML file, or the name of a shipped recipe")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="as in steps=100 or student.layers=4",
    )
    parser.add_argument(
        "--stop-at",
        type=int,
        metavar="STEP",
        help="save a checkpoint after this step, of the first stage that is not complete, and leave",
    )
    parser.add_argument(
        "--max-hours",
        type=float,
        metavar="HOURS",
        help=f"save a checkpoint after so long and leave with code {runs.EARLY}; the same command goes on",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="SECONDS",
        help="a rank that is not heard of for so long is given up, and the run ends (default: %(default)s)",
    )
    parser.add_argument("--launch", metavar="TOKEN", help=argparse.SUPPRESS)  # whose launch this is, for OUT/.ended
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the DeepSpeed launcher passes it
    options = parser.parse_intermixed_args()
    if options.stop_at is not None and options.stop_at < 1:
        raise UserError(f"--stop-at {options.stop_at}: must be at least 1")
    if options.max_hours is not None and not options.max_hours > 0:
        raise UserError(f"--max-hours {options.max_hours}: must be above 0")
    if not options.timeout >= 5:
        raise UserError(f"--timeout {options.timeout}: must be at least 5 seconds")
    slurm.adopt()
    transformers_logging.disable_progress_bar()
    if "DISTILL_PARENT" in os.environ:
        runs.die_with(int(os.environ["DISTILL_PARENT"]))
    code = distill_stages(load_stages(options.recipe, options.overrides), options)
    if dist.is_initialized():
        dist.destroy_process_group()
    return code


if __name__ == "__main__":
    run_command(main)
