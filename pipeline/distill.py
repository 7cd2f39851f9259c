"""Train a small student on the self-attention relations of a large, frozen teacher.

    python -m pipeline.distill RECIPE.toml [key=value …]                          one process
    deepspeed --num_gpus 8 --module pipeline.distill RECIPE.toml [key=value …]    one process for each device
    torchrun --nproc-per-node 8 -m pipeline.distill RECIPE.toml [key=value …]     the same

The run folder `out` receives checkpoints/, tensorboard/, metrics.jsonl and, last, COMPLETE. The same command goes on from
the newest checkpoint. The smallest real run: ./run.sh demo
"""

import argparse
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.utils import logging as transformers_logging

from data_prep.errors import UserError, run_command
from data_prep.shards import Corpus, open_corpus, vocabulary_hash
from pipeline import batches, checkpoints, encoders, engines, runs
from pipeline.engines import Ranks, Teach, on_first_rank
from pipeline.maps import SENTENCE, relation_image, relation_maps
from pipeline.monitor import Monitor
from pipeline.precision import lacks_bf16_units
from pipeline.recipe import Recipe, load_ds_config, load_recipe
from pipeline.relations import relation_loss


def distill(recipe: Recipe, stop_at: int | None = None) -> None:
    """Run ``recipe`` to its end, or leave after update ``stop_at`` with a checkpoint.

    Raises UserError for whatever the user can mend, on every rank, with the checkpoints so far kept.
    """
    # What can be wrong is told before anything heavy starts.
    teacher_config = encoders.load_config(recipe.teacher.model, recipe.teacher.revision)
    recipe.check_teacher(teacher_config)
    for name in (recipe.teacher.ds_config, recipe.student.ds_config):
        load_ds_config(name, recipe)
    corpus = open_corpus(recipe.data)
    windows = batches.training_windows(corpus, recipe.length, recipe.layout)
    tokenizer = encoders.load_tokenizer(recipe.teacher.model, recipe.teacher.revision)
    check_vocabulary(recipe, corpus, tokenizer, teacher_config)
    recipe.accumulation(int(os.environ.get("WORLD_SIZE", 1)))

    ranks = engines.start_ranks()
    run = Path(recipe.out)
    with runs.sole_writer(run, ranks):
        on_first_rank(ranks, lambda: batches.check_bytes(corpus))
        checkpoint = on_first_rank(ranks, lambda: runs.newest_checkpoint(run, recipe, corpus))
        last = min(recipe.steps, stop_at or recipe.steps)
        if checkpoint and checkpoint.step >= last:
            if ranks.first:
                print(
                    f"{run} already has its checkpoint of step {checkpoint.step}: nothing to do",
                    flush=True,
                )
        else:
            train(recipe, ranks, run, corpus, windows, tokenizer, checkpoint, last)
        if ranks.first and last == recipe.steps:
            (run / runs.COMPLETE).write_text(f"{recipe.steps} steps\n")


def train(
    recipe: Recipe,
    ranks: Ranks,
    run: Path,
    corpus: Corpus,
    windows: batches.Windows,
    tokenizer,
    checkpoint: checkpoints.Checkpoint | None,
    last: int,
) -> None:
    """From ``checkpoint``, or from the start, to step ``last``."""
    # The whole models, and their cuts. The student is built before a ZeRO-3 teacher could change how that is done.
    teacher_model = encoders.load_model(recipe.teacher.model, recipe.teacher.revision, torch.float32)
    student_model = encoders.build_student(recipe.student_config(teacher_model.config), recipe.seed)
    if checkpoint:
        student_model.load_state_dict(checkpoint.weights())
    elif recipe.student.init == "teacher":
        encoders.copy_every_kth_layer(teacher_model, student_model, recipe.teacher.layer)
    student_hash = engines.check_same_weights(ranks, student_model)
    student, names, tail = encoders.split(student_model, windows.padding)
    teacher = encoders.cut_encoder(teacher_model, recipe.teacher.layer, windows.padding)
    teacher_hash = encoders.weights_hash(teacher.parameters())
    del teacher_model

    # Two engines.
    hosting = engines.choose_hosting(recipe, ranks, teacher)
    teach = engines.host_teacher(recipe, ranks, teacher, hosting)
    engine = engines.student_engine(recipe, ranks, student)
    start = 0
    if checkpoint:
        runs.check_same_teacher(checkpoint, teacher_hash, recipe)
        start = checkpoint.step
        engines.prime_optimizer(engine)
        engines.write_state(engine, names, checkpoint.tensors(), start)

    # What is read, and what is seen.
    order = batches.order_of(windows, recipe.sampling_alpha, recipe.seed)
    reading = batches.steps(windows, order, start, last, recipe.batch, ranks.rank, ranks.world)
    real_tokens = batches.filled(windows, order) * recipe.tokens_per_step
    heldout = batches.heldout_ids(
        corpus, recipe.length, recipe.eval_samples, recipe.sampling_alpha, recipe.seed, recipe.layout
    )
    monitor = None
    if ranks.first:
        runs.prepare_folder(run, recipe, engine.resolved_config, student_model.config, tokenizer)
        (run / runs.COMPLETE).unlink(missing_ok=True)
        monitor = Monitor(run, start, recipe.steps, real_tokens)
        monitor.say(introduction(recipe, ranks, corpus, teacher, hosting, student_model, student_hash, real_tokens))
        for note in batches.notes(corpus, windows, order, recipe.batch):
            monitor.say(f"note: {note}")
        monitor.say(f"Going on from {checkpoint.path}." if checkpoint else "Starting at step 0.")
        if heldout is None:
            monitor.say(
                f"note: {corpus.path} has no held-out window of {recipe.length} tokens: no held-out losses; "
                "prepare the data with a larger --heldout"
            )

    def losses_of(ids: Tensor) -> dict[str, Tensor]:
        ids, lengths = batches.unpadded(ids, windows.padding)
        ids = ids.to(ranks.device, non_blocking=True)
        return relation_loss(teach(ids), engine(ids), recipe.pairs, recipe.relation_heads, lengths)

    def evaluate(step: int) -> None:
        losses = heldout_losses(recipe, ranks, heldout, losses_of, engine)
        image = probe_image(recipe, ranks, tokenizer, teach, engine)
        if monitor:
            monitor.evaluated(step, losses, image)

    def save(step: int) -> None:
        state = engines.read_state(engine, names, ranks.first) | tail
        info = runs.checkpoint_info(recipe, corpus, ranks, step, teacher_hash)
        on_first_rank(ranks, lambda: checkpoints.save(run, info, state, recipe.keep_checkpoints))

    if start == 0:
        evaluate(0)
    if monitor:
        monitor.resume()

    for step, samples in enumerate(batches.read_ahead(reading, ranks.device), start):
        # Single step: all micro-batches forward and backward, then one update.
        if monitor:
            monitor.received()
        engine.train()
        engines.set_learning_rate(engine, recipe.learning_rate_at(step))
        losses = []
        for micro, ids in enumerate(samples.split(recipe.micro_batch)):
            seed_dropout(recipe.seed, step, micro, ranks.rank)
            relations = losses_of(ids)
            losses.append(torch.stack([loss.detach() for loss in relations.values()]))
            engine.backward(relations["loss"])
            if len(losses) * recipe.micro_batch == len(samples):
                stop_if_not_finite(recipe, ranks, step, losses)
            engine.step()
        if engine.skipped_steps:
            raise UserError(f"{run}: the gradient is not finite in step {step + 1}; {_NOT_FINITE}")

        # Once in a while.
        done = step + 1
        if done % recipe.log_every == 0 or done == recipe.steps:
            mean = all_mean(torch.stack(losses).mean(0), ranks).tolist()
            if monitor:
                monitor.log(
                    done,
                    dict(zip(relations, mean, strict=True)),
                    learning_rate=recipe.learning_rate_at(step),
                    samples=done * recipe.batch,
                    **engines.gradient_norm(engine),
                )
        elif monitor:
            monitor.step(done)
        if done % recipe.eval_every == 0 or done == recipe.steps:
            evaluate(done)
        if done % recipe.checkpoint_every == 0 or done == last:
            save(done)
        if monitor:
            monitor.resume()

    if monitor:
        if last == recipe.steps:
            monitor.say(f"Done: {recipe.steps} steps. Next: python -m pipeline.export {run} STUDENT_FOLDER")
        else:
            monitor.say(f"Stopped after step {last} as asked; the same command without --stop-at goes on.")
        monitor.close()


# --- before the first step --------------------------------------------------------------------------------------------


def check_vocabulary(recipe: Recipe, corpus: Corpus, tokenizer, teacher_config) -> None:
    """The corpus must hold the teacher's own token ids: the same vocabulary, and a probe text must come out the same."""
    probe = corpus.tokenizer["probe"]
    ids = tokenizer(probe["text"], add_special_tokens=False)["input_ids"]
    if ids != probe["ids"]:
        raise UserError(
            f"{corpus.path}: made with another tokenizer than the teacher's ({recipe.teacher.model}): a probe text comes "
            f"out as {probe['ids'][:4]}… there and {ids[:4]}… here; prepare the data with --tokenizer {recipe.teacher.model}"
        )
    if corpus.tokenizer["vocabulary"] != vocabulary_hash(tokenizer.get_vocab()):
        raise UserError(
            f"{corpus.path}: made with another vocabulary than the teacher's ({recipe.teacher.model}): some ids mean other "
            f"tokens; prepare the data with --tokenizer {recipe.teacher.model}"
        )
    special = [("cls", tokenizer.cls_token_id), ("sep", tokenizer.sep_token_id), ("pad", tokenizer.pad_token_id)]
    for key, own in special if recipe.layout == "doc" else special[:2]:
        if corpus.tokenizer["special"][key] != own:
            raise UserError(
                f"{corpus.path}: frames its windows with {key} = {corpus.tokenizer['special'][key]}, the teacher's tokenizer "
                f"has {own}; prepare the data with --tokenizer {recipe.teacher.model}"
            )
    if corpus.tokenizer["vocab_size"] > teacher_config.vocab_size:
        raise UserError(
            f"{corpus.path}: {corpus.tokenizer['vocab_size']} token ids, the teacher has {teacher_config.vocab_size} "
            "embeddings; prepare the data with the teacher's own tokenizer"
        )


def introduction(
    recipe: Recipe,
    ranks: Ranks,
    corpus: Corpus,
    teacher,
    hosting,
    student_model,
    student_hash: str,
    tokens_per_step: float,
) -> str:
    """The sentences at the start of a run."""
    tokens = sum(source.tokens for source in corpus.sources.values())
    size = sum(p.numel() for p in student_model.parameters())
    wide = recipe.precision == "bf16" and lacks_bf16_units(ranks.device)
    return "\n".join(
        (
            f"Teacher: {recipe.teacher.model}, layer {recipe.teacher.layer} of {teacher.config.num_hidden_layers}, "
            f"{hosting.parameters / 1e6:.2f} M parameters up to there; hosting {hosting.kind}: {hosting.reason}.",
            f"Student: {recipe.student.layers} layers × {recipe.student.hidden}, {size / 1e6:.2f} M parameters, "
            f"weights {student_hash} on every rank.",
            f"Batch: {recipe.batch} sequences × {recipe.length} tokens = {ranks.world} ranks × micro-batch "
            f"{recipe.micro_batch} × accumulation {recipe.accumulation(ranks.world)}; {recipe.precision} on {ranks.device.type}"
            + (" (this CPU has no bf16 units: products are taken in fp32 and rounded)." if wide else "."),
            f"Data: {corpus.path}, {tokens:,} tokens, corpus {corpus.id[:12]}; the run reads "
            f"{recipe.steps * tokens_per_step / max(tokens, 1):.2f} times as many.",
        )
    )


# --- in the loop ------------------------------------------------------------------------------------------------------


def seed_dropout(seed: int, step: int, micro: int, rank: int) -> None:
    """Dropout is a function of (seed, step, micro-batch, rank), so that a resumed run drops the same."""
    digest = hashlib.blake2b(f"{seed} {step} {micro} {rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest))


_NOT_FINITE = "the run stops before this update and keeps its checkpoints: use a lower learning_rate and another out"


def stop_if_not_finite(recipe: Recipe, ranks: Ranks, step: int, losses: list[Tensor]) -> None:
    """Raise on every rank, before the optimizer step, if the loss of any micro-batch of any rank is not finite."""
    finite = torch.stack(losses).isfinite().all(-1)  # [micro-batches]
    everyone = [torch.empty_like(finite, dtype=torch.uint8) for _ in range(ranks.world)]
    dist.all_gather(everyone, finite.to(torch.uint8))
    bad = (torch.stack(everyone) == 0).nonzero().tolist()
    if bad:
        rank, micro = bad[0]
        first = step * recipe.batch + rank * (recipe.batch // ranks.world) + micro * recipe.micro_batch
        raise UserError(
            f"{recipe.out}: the loss is not finite in step {step + 1} on rank {rank}, samples {first} to "
            f"{first + recipe.micro_batch - 1}; {_NOT_FINITE}, or look at these samples"
        )


@torch.no_grad()
def heldout_losses(
    recipe: Recipe, ranks: Ranks, heldout: Tensor | None, losses_of: Callable[[Tensor], dict[str, Tensor]], engine
) -> dict[str, float]:
    """Mean losses in nats over the held-out sequences [n, length], the same ones each time; empty without any."""
    if heldout is None:
        return {}
    engine.eval()
    # Every rank runs equally many forwards (ZeRO-3 gathers in each); one without a batch left runs the first, weightless.
    parts = heldout.split(recipe.micro_batch)
    total = torch.zeros(len(recipe.pairs) + 1, device=ranks.device)
    for first in range(0, len(parts), ranks.world):
        mine = first + ranks.rank
        ids = parts[mine if mine < len(parts) else 0]
        losses = losses_of(ids)
        total += torch.stack(list(losses.values())) * len(ids) * (mine < len(parts))
    dist.all_reduce(total)
    return dict(zip(losses, (total / len(heldout)).tolist(), strict=True))


@torch.no_grad()
def probe_image(recipe: Recipe, ranks: Ranks, tokenizer, teach: Teach, engine) -> Tensor:
    """The relation maps of one fixed sentence, teacher beside student, as a grey image; every rank runs the forwards."""
    ids = tokenizer(SENTENCE, return_tensors="pt", truncation=True, max_length=recipe.length)["input_ids"]
    engine.eval()
    teacher, student = (model(ids.to(ranks.device)) for model in (teach, engine))
    return relation_image(relation_maps(teacher, student, recipe.pairs, recipe.relation_heads))


def all_mean(x: Tensor, ranks: Ranks) -> Tensor:
    """The mean of ``x`` over all ranks."""
    dist.all_reduce(x)
    return x / ranks.world


def main() -> None:
    parser = argparse.ArgumentParser(
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
        help="save a checkpoint after this step and leave",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the DeepSpeed launcher passes it
    options = parser.parse_intermixed_args()
    if options.stop_at is not None and options.stop_at < 1:
        raise UserError(f"--stop-at {options.stop_at}: must be at least 1")
    transformers_logging.disable_progress_bar()
    if "DISTILL_PARENT" in os.environ:
        runs.die_with(int(os.environ["DISTILL_PARENT"]))
    distill(load_recipe(options.recipe, options.overrides), options.stop_at)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    run_command(main)
