"""Guards of a run: who may write to its folder, and reasons to stop before anything wrong is kept."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.cli import UserError
from data_prep.files import remove_asides
from data_prep.locks import sole_process
from data_prep.shards import Corpus
from pipeline.artifacts.run_folder import record_end, refuse_foreign
from pipeline.data.windows import Windows
from pipeline.engines.ds_config import load_ds_config
from pipeline.engines.ranks import Ranks, on_first_rank
from pipeline.models.configs import deciding_values
from pipeline.models.fit import teacher_config_of
from pipeline.models.vocabulary import vocabulary_of
from pipeline.settings.recipe import Recipe
from pipeline.training.trainee import Trainee


@contextlib.contextmanager
def sole_writer(runs: list[Path], ranks: Ranks, patience: float | None = None) -> Iterator[None]:
    """Hold the folders of ``runs`` against any other process, on all ranks, or raise UserError naming the first taken."""
    for run in runs:
        on_first_rank(ranks, refuse_foreign, run)
    with contextlib.ExitStack() as held:
        for run in runs:
            on_first_rank(ranks, _enter, held, sole_process(run, print, patience))
            on_first_rank(ranks, remove_asides, run)
        yield


def _enter(held: contextlib.ExitStack, lock: contextlib.AbstractContextManager) -> None:
    held.enter_context(lock)  # whose value stays on the first rank


@contextlib.contextmanager
def failure_on_record(root: Path, ranks: Ranks, launch: str | None) -> Iterator[None]:
    """Record what ends the block with an error. Of its own folder alone: enter when it is held."""
    try:
        yield
    except Exception as error:
        if ranks.first:
            with contextlib.suppress(OSError):  # of a full disk, which hides no error
                record_end(root, launch, 2 if isinstance(error, UserError) else 1)
        raise


_REMEDY = "the run stops and keeps its checkpoints: use a lower learning_rate and another out"


def note(trainees: list[Trainee], losses: list[Tensor], step: int, ranks: Ranks) -> None:
    """Keep each student's losses of update ``step`` (from 0) until they are looked at.

    Raises on every rank if DeepSpeed skipped the update of any student: its gradient was not finite.
    """
    for trainee, own in zip(trainees, losses, strict=True):
        trainee.unchecked[step] = own
        if trainee.engine.skipped_steps:  # the same on all ranks; the loss says more, if it is not finite either
            stop_if_not_finite([trainee], ranks)
            raise UserError(f"{trainee.recipe.out}: the gradient is not finite in step {step + 1}; {_REMEDY}")


def stop_if_not_finite(trainees: list[Trainee], ranks: Ranks) -> None:
    """Raise on every rank if a loss of any micro-batch of any rank was not finite since the last call. Waits for the device."""
    for trainee in trainees:
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
                f"{first + recipe.micro_batch - 1}; {_REMEDY}, or look at these samples"
            )


def stop_if_ranks_differ(ranks: Ranks, recipes: list[Recipe], corpus: Corpus) -> None:
    """Raise on every rank if any has read other files than the first: hosts may have their own.

    Compared are recipe, corpus, the teacher's config, vocabularies and ds_configs.
    """
    shared = recipes[0]
    read: dict[str, object] = {
        shared.data: corpus.id,
        f"{shared.teacher.model}: config.json": deciding_values(teacher_config_of(shared)),
    }
    for recipe in recipes:
        read[f"{recipe.source}, for {recipe.out}"] = recipe.to_dict()
        for name in (recipe.teacher.ds_config, recipe.student.ds_config):
            read[name] = load_ds_config(name, recipe)
        if own := vocabulary_of(recipe):
            read[recipe.student.vocab] = own.digest
    everyone: list = [None] * ranks.world
    dist.all_gather_object(everyone, (socket.gethostname(), read))
    first_host, first = everyone[0]
    for rank, (host, other) in enumerate(everyone):
        for name in (name for name, value in first.items() if other.get(name) != value):
            raise UserError(
                f"{name}: rank {rank} on host {host} reads another one than rank 0 on host {first_host}; "
                "give all hosts the same files"
            )


def stop_if_data_changed(windows: Windows, ranks: Ranks) -> None:
    """Raise on every rank if, for any, a shard is no longer the file that it was: anything may have been read of it."""
    found: list = [None] * ranks.world
    dist.all_gather_object(found, windows.changed())
    for path in filter(None, found):
        raise UserError(
            f"{path}: was changed while the run was reading it; no checkpoint was written since, the previous ones are kept: "
            "put the previous file back and run the same command again"
        )
