"""Train a small student on the self-attention relations of a large, frozen teacher.

    python -m pipeline.distill RECIPE.toml [key=value …]                          one process
    deepspeed --num_gpus 8 --module pipeline.distill RECIPE.toml [key=value …]    one process for each device
    torchrun --nproc-per-node 8 -m pipeline.distill RECIPE.toml [key=value …]     the same

The run folder `out` receives checkpoints/, tensorboard/, metrics.jsonl and, last, COMPLETE. The same command goes on from
the newest checkpoint. The smallest run: `./run.sh demo`.
"""

import argparse
import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.utils import logging as transformers_logging

from data_prep.errors import UserError, run_command
from data_prep.shards import Corpus, open_corpus
from pipeline import batches, checkpoints, encoders, engines
from pipeline.engines import Ranks, on_first_rank
from pipeline.maps import SENTENCE, relation_maps
from pipeline.monitor import Monitor
from pipeline.precision import lacks_bf16_units
from pipeline.recipe import Recipe, load_ds_config, load_recipe
from pipeline.relations import QKV, relation_loss


def distill(recipe: Recipe, stop_at: int | None = None) -> None:
    """Run ``recipe`` to its end, or leave after update ``stop_at`` with a checkpoint."""
    # What can be wrong is told before anything heavy starts.
    run = Path(recipe.out)
    teacher_config = encoders.load_config(recipe.teacher.model, recipe.teacher.revision)
    recipe.check_teacher(teacher_config)
    for name in (recipe.teacher.ds_config, recipe.student.ds_config):
        load_ds_config(name, recipe)
    corpus = open_corpus(recipe.data)
    windows = batches.training_windows(corpus, recipe.length)
    heldout = batches.Windows(corpus.heldout, corpus.tokenizer, recipe.length)
    tokenizer = encoders.load_tokenizer(recipe.teacher.model, recipe.teacher.revision)
    check_vocabulary(corpus, tokenizer, teacher_config, recipe)
    recipe.accumulation(int(os.environ.get("WORLD_SIZE", 1)))

    ranks = engines.start_ranks()
    lock = on_first_rank(ranks, lambda: lock_run(run, recipe, corpus) and None)
    checkpoint = on_first_rank(ranks, lambda: newest_checkpoint(run, recipe, corpus))
    last = min(recipe.steps, stop_at or recipe.steps)
    if checkpoint and checkpoint.step >= last:
        if ranks.first:
            print(f"{run} already has its checkpoint of step {checkpoint.step}: nothing to do")
        return

    # The student first: a ZeRO-3 teacher must not change how it is built.
    student_model = encoders.build_student(recipe.student_config(teacher_config), recipe.seed)
    teacher_model = encoders.load_model(recipe.teacher.model, recipe.teacher.revision, torch.float32)
    if recipe.student.init == "teacher":
        encoders.copy_every_kth_layer(teacher_model, student_model, recipe.teacher.layer)
    if checkpoint:
        student_model.load_state_dict(checkpoint.weights(), strict=False)
    student_hash = engines.check_same_weights(ranks, student_model)
    student, names, tail = encoders.split(student_model)
    teacher = encoders.cut_encoder(teacher_model, recipe.teacher.layer)
    del teacher_model

    # Two engines: the teacher's hosting, the student's optimizer.
    teacher_hash = encoders.weights_hash(teacher.parameters())
    teacher_size = sum(p.numel() for p in teacher.parameters())
    hosting, reason = engines.choose_hosting(recipe, ranks, teacher_size)
    teach = engines.host_teacher(recipe, ranks, teacher, hosting)
    engine = engines.student_engine(recipe, ranks, student)
    start = 0
    if checkpoint:
        check_same_teacher(checkpoint, teacher_hash, recipe)
        start = checkpoint.step
        engines.prime_optimizer(engine, teacher_config.vocab_size)
        engines.write_state(engine, names, checkpoint.tensors(), start)

    monitor = None
    if ranks.first:
        prepare_run_folder(run, recipe, engine, student_model.config, tokenizer)
        monitor = Monitor(run, start, recipe.steps, recipe.tokens_per_step)
        introduce(
            monitor, recipe, ranks, corpus, teacher_config, hosting, reason, teacher_size, student_hash, checkpoint
        )

    def evaluate(step: int) -> None:
        losses = heldout_losses(recipe, ranks, heldout, teach, engine)
        if monitor and losses:
            monitor.evaluated(step, losses)

        maps = probe_maps(recipe, ranks, tokenizer, teach, engine)
        if monitor:
            monitor.figure(step, "relations", maps)
            monitor.resume_clock(step)

    def save(step: int) -> None:
        state = engines.read_state(engine, names, ranks.first) | tail
        info = checkpoint_info(recipe, corpus, ranks, step, teacher_hash)
        on_first_rank(ranks, lambda: checkpoints.save(run, info, state, recipe.keep_checkpoints))
        if monitor:
            monitor.resume_clock(step)

    if not len(heldout) and monitor:
        monitor.say(
            f"note: {corpus.path} has no held-out window of {recipe.length} tokens; held-out losses are left out"
        )
    if start == 0:
        evaluate(0)

    order = batches.order_of(windows, recipe.sampling_alpha, recipe.seed)
    reading = batches.steps(windows, order, start, last, recipe.batch, ranks.rank, ranks.world)
    accumulation = recipe.accumulation(ranks.world)
    for step, samples in enumerate(batches.read_ahead(reading, pin=ranks.device.type == "cuda"), start):
        # Single step.
        engine.train()
        engines.set_learning_rate(engine, recipe.learning_rate_at(step))
        losses = []
        for micro, ids in enumerate(samples.split(recipe.micro_batch)):
            seed_dropout(recipe.seed, step, micro, ranks.rank)
            ids = ids.to(ranks.device, non_blocking=True)
            relations = relation_loss(teach(ids), engine(ids), recipe.pairs, recipe.relation_heads)
            losses.append(torch.stack([x.detach() for x in relations.values()]))
            if micro == accumulation - 1:
                stop_if_not_finite(recipe, ranks, step, losses, run)
            engine.backward(relations["loss"])
            engine.step()

        # Once in a while.
        done = step + 1
        if monitor:
            monitor.step(done)
        if done % recipe.log_every == 0 or done == last:
            mean = all_mean(torch.stack(losses).mean(0), ranks)
            if monitor:
                monitor.log(
                    done,
                    dict(zip(relations, mean.tolist(), strict=True)),
                    learning_rate=recipe.learning_rate_at(step),
                    gradient_norm=float(engine.get_global_grad_norm() or 0.0),
                    samples=done * recipe.batch,
                )
        if done % recipe.eval_every == 0 or done == recipe.steps:
            evaluate(done)
        if done % recipe.checkpoint_every == 0 or done == last:
            save(done)

    if monitor:
        if last == recipe.steps:
            (run / "COMPLETE").write_text(f"{recipe.steps} steps\n")
            monitor.say(f"Done: {recipe.steps} steps. Next: python -m pipeline.export {run} STUDENT_FOLDER")
        else:
            monitor.say(f"Stopped after step {last} as asked; the same command without --stop-at goes on.")
        monitor.close()
    del lock


# --- before the first step --------------------------------------------------------------------------------------------


def check_vocabulary(corpus: Corpus, tokenizer, teacher_config, recipe: Recipe) -> None:
    """The corpus must hold the teacher's own token ids: a probe text must come out the same."""
    probe = corpus.tokenizer["probe"]
    ids = tokenizer(probe["text"], add_special_tokens=False)["input_ids"]
    if ids != probe["ids"]:
        raise UserError(
            f"{corpus.path}: made with another tokenizer than the teacher's ({recipe.teacher.model}): a probe text comes "
            f"out as {probe['ids'][:4]}… there and {ids[:4]}… here; prepare the data with --tokenizer {recipe.teacher.model}"
        )
    if corpus.tokenizer["vocab_size"] > teacher_config.vocab_size:
        raise UserError(
            f"{corpus.path}: {corpus.tokenizer['vocab_size']} token ids, the teacher has {teacher_config.vocab_size} "
            "embeddings; prepare the data with the teacher's own tokenizer"
        )


_locks = []  # held open for the life of the process


def lock_run(run: Path, recipe: Recipe, corpus: Corpus, patience: float = 20.0) -> None:
    """Make sure no other process writes to ``run``. One that was just killed may take a moment to go."""
    run.mkdir(parents=True, exist_ok=True)
    file = (run / ".lock").open("a+")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                raise UserError(
                    f"{run}: in use by process {file.read().strip() or '?'}; wait for it, stop it, or use another out"
                ) from None
            time.sleep(0.5)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    _locks.append(file)


def newest_checkpoint(run: Path, recipe: Recipe, corpus: Corpus) -> checkpoints.Checkpoint | None:
    """The checkpoint to go on from, if the recipe still describes the run that made it."""
    checkpoint = checkpoints.latest(run)
    if checkpoint is None:
        if (run / "COMPLETE").exists():
            raise UserError(f"{run}: marked COMPLETE, but no checkpoint is whole; use another out or delete the folder")
        return None
    before, now = checkpoint.info["recipe"], recipe.to_dict()
    for key in _CHANGEABLE:
        before.pop(key, None), now.pop(key, None)
    for table in ("teacher", "student"):
        for key in ("ds_config", "hosting", "model"):
            before[table].pop(key, None), now[table].pop(key, None)
    if before != now:
        key = next(key for key in now if before.get(key) != now[key])
        raise UserError(
            f"{recipe.source}: {key} = {now[key]!r}, but {checkpoint.path} was made with {before.get(key)!r}; "
            "use another out, or the former value"
        )
    if checkpoint.info["corpus"] != corpus.id:
        raise UserError(
            f"{recipe.data}: not the corpus that {checkpoint.path} was trained on ({corpus.id[:12]} is not "
            f"{checkpoint.info['corpus'][:12]}); use another out, or the former data"
        )
    return checkpoint


# What a run may change when it goes on: where and how it runs, not what it computes.
_CHANGEABLE = (
    "out",
    "data",
    "micro_batch",
    "log_every",
    "eval_every",
    "eval_samples",
    "checkpoint_every",
    "keep_checkpoints",
)


def check_same_teacher(checkpoint: checkpoints.Checkpoint, teacher_hash: str, recipe: Recipe) -> None:
    if checkpoint.info["teacher"]["weights"] != teacher_hash:
        raise UserError(
            f"{recipe.teacher.model}: not the teacher that {checkpoint.path} was trained on (weights {teacher_hash} "
            f"instead of {checkpoint.info['teacher']['weights']}); use another out, or the former teacher"
        )


def prepare_run_folder(run: Path, recipe: Recipe, engine, student_config, tokenizer) -> None:
    """What export and a reader need: the resolved settings, the student's config and the tokenizer."""
    (run / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=1) + "\n")
    (run / "ds_config.student.json").write_text(json.dumps(engine.resolved_config, indent=1) + "\n")
    student_config.save_pretrained(run / "student")
    tokenizer.save_pretrained(run / "student")


def introduce(
    monitor, recipe, ranks: Ranks, corpus, teacher_config, hosting, reason, teacher_size, student_hash, checkpoint
):
    """The sentences at the start of a run."""
    count = encoders.count_parameters(recipe.student_config(teacher_config))
    tokens = sum(source.tokens for source in corpus.sources.values())
    wide = recipe.precision == "bf16" and lacks_bf16_units(ranks.device)
    for line in (
        f"Teacher: {recipe.teacher.model}, layer {recipe.teacher.layer} of {teacher_config.num_hidden_layers}, "
        f"{teacher_size / 1e6:.2f} M parameters up to there; hosting {hosting}: {reason}.",
        f"Student: {recipe.student.layers} layers × {recipe.student.hidden}, {count['total'] / 1e6:.2f} M parameters, "
        f"weights {student_hash} on every rank.",
        f"Batch: {recipe.batch} sequences × {recipe.length} tokens = {ranks.world} ranks × micro-batch {recipe.micro_batch} "
        f"× accumulation {recipe.accumulation(ranks.world)}; {recipe.precision} on {ranks.device.type}"
        + (" (this CPU has no bf16 units: products are taken in fp32 and rounded)." if wide else "."),
        f"Data: {corpus.path}, {tokens:,} tokens, corpus {corpus.id[:12]}; the run reads "
        f"{recipe.steps * recipe.tokens_per_step / max(tokens, 1):.2f} times as many.",
        f"Going on from {checkpoint.path}." if checkpoint else "Starting at step 0.",
    ):
        monitor.say(line)


# --- in the loop ------------------------------------------------------------------------------------------------------


def seed_dropout(seed: int, step: int, micro: int, rank: int) -> None:
    """Dropout is a function of (seed, step, micro-batch, rank), so that a resumed run drops the same."""
    digest = hashlib.blake2b(f"{seed} {step} {micro} {rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest))


def stop_if_not_finite(recipe: Recipe, ranks: Ranks, step: int, losses: list[Tensor], run: Path) -> None:
    """Raise on every rank, before the optimizer step, if any rank's loss is not finite."""
    finite = torch.stack(losses).isfinite().all(-1)
    bad = torch.where(finite.all(), -1.0, torch.argmin(finite.int()).float())  # first bad micro-batch
    worst = torch.stack([bad, torch.full_like(bad, ranks.rank)])
    everyone = [torch.empty_like(worst) for _ in range(ranks.world)]
    dist.all_gather(everyone, worst)
    for micro, rank in (pair.tolist() for pair in everyone):
        if micro >= 0:
            first = step * recipe.batch + int(rank) * (recipe.batch // ranks.world) + int(micro) * recipe.micro_batch
            raise UserError(
                f"{run}: the loss is not finite in step {step + 1} on rank {int(rank)}, samples {first} to "
                f"{first + recipe.micro_batch - 1}; the run stops before this update and keeps its checkpoints: "
                "lower learning_rate or look at these samples"
            )


@torch.no_grad()
def heldout_losses(recipe: Recipe, ranks: Ranks, heldout, teach: Callable[[Tensor], QKV], engine) -> dict[str, float]:
    """Mean losses over the first ``eval_samples`` of the held-out order, in nats; the same ones each time."""
    if not len(heldout) or not recipe.eval_samples:
        return {}
    order = batches.order_of(heldout, recipe.sampling_alpha, recipe.seed)
    source, _, window = order(torch.arange(min(recipe.eval_samples, len(heldout))).numpy())
    ids = heldout.read(source, window)
    engine.eval()
    # Every rank runs equally many forwards (ZeRO-3 gathers in each); one that has no batch left runs the first, weightless.
    parts = ids.split(recipe.micro_batch)
    total = torch.zeros(len(recipe.pairs) + 1, device=ranks.device)
    for first in range(0, len(parts), ranks.world):
        mine = first + ranks.rank
        part = parts[mine if mine < len(parts) else 0].to(ranks.device)
        losses = relation_loss(teach(part), engine(part), recipe.pairs, recipe.relation_heads)
        total += torch.stack(list(losses.values())) * len(part) * (mine < len(parts))
    dist.all_reduce(total)
    return dict(zip(losses, (total / len(ids)).tolist(), strict=True))


@torch.no_grad()
def probe_maps(recipe: Recipe, ranks: Ranks, tokenizer, teach: Callable[[Tensor], QKV], engine):
    """The relation maps of one fixed sentence as a figure, where this is rank 0; every rank runs the forwards."""
    ids = tokenizer(SENTENCE, return_tensors="pt", truncation=True, max_length=recipe.length)["input_ids"]
    engine.eval()
    qkv = [model(ids.to(ranks.device)) for model in (teach, engine)]
    if ranks.first:
        return relation_maps(*qkv, recipe.pairs, recipe.relation_heads, tokenizer.convert_ids_to_tokens(ids[0]))


def all_mean(x: Tensor, ranks: Ranks) -> Tensor:
    """The mean of ``x`` over all ranks."""
    dist.all_reduce(x)
    return x / ranks.world


def checkpoint_info(recipe: Recipe, corpus: Corpus, ranks: Ranks, step: int, teacher_hash: str) -> dict:
    import deepspeed
    import transformers

    return {
        "step": step,
        "samples": step * recipe.batch,
        "corpus": corpus.id,
        "recipe": recipe.to_dict(),
        "teacher": {"model": recipe.teacher.model, "revision": recipe.teacher.revision, "weights": teacher_hash},
        "ranks": ranks.world,
        "versions": {m.__name__: m.__version__ for m in (torch, deepspeed, transformers)},
    }


# --- the command ------------------------------------------------------------------------------------------------------


def die_with(parent: int) -> None:
    """Leave when process ``parent`` is gone, so that killing a script that started this run ends it too."""

    def watch() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os._exit(1)
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a TOML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in steps=100 or student.layers=4")
    parser.add_argument("--stop-at", type=int, metavar="STEP", help="save a checkpoint after this step and leave")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the DeepSpeed launcher passes it
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    if "DISTILL_PARENT" in os.environ:
        die_with(int(os.environ["DISTILL_PARENT"]))
    distill(load_recipe(options.recipe, options.overrides), options.stop_at)
    sys.stdout.flush()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    run_command(main)
