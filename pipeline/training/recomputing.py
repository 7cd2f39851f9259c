"""The held-out loss of an exported student, computed from its folder and compared with what its run has recorded.

An export is only as good as the checkpoint that it is made of, and a checkpoint can be whole and wrong: DeepSpeed's
accessors return other weights under some of its settings. The last held-out row of a run was computed by the weights that
were trained; so the same number must come out of the folder, with the teacher, text and arithmetic of the run.
"""

import dataclasses
from pathlib import Path

import huggingface_hub
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from data_prep.cli import UserError
from data_prep.shards import open_corpus
from pipeline.artifacts.checkpoints import Checkpoint
from pipeline.artifacts.metrics import heldout_rows
from pipeline.data.fits import check_bytes, check_tokenizer
from pipeline.data.reading import training_windows
from pipeline.engines.both import fit
from pipeline.engines.compiling import is_out_of_memory
from pipeline.engines.hosting import Hosting
from pipeline.engines.memory import free_devices
from pipeline.engines.ranks import Ranks
from pipeline.engines.teacher import host_teacher
from pipeline.models.cut import CutEncoder
from pipeline.models.fit import teacher_config_of
from pipeline.models.loading import check_folder, load_folder_tokenizer, load_model, load_tokenizer, weights_of
from pipeline.models.precision import DTYPES, arithmetic_of, way_of
from pipeline.settings.recipe import Recipe, Teacher
from pipeline.settings.values import recipe_of
from pipeline.training.early_stop import EarlyStop
from pipeline.training.evaluation import Evaluation
from pipeline.training.progress import Progress
from pipeline.training.resuming import check_same_config, check_same_teacher, give_beside
from pipeline.training.run import Run
from pipeline.training.start import teacher_part, trained_part
from pipeline.training.trainee import Trainee

NOT_RECOMPUTED = "The held-out loss was not recomputed from this folder."
ROOM = 1.5  # times the weights: with what a pass needs
# The differences, relative and absolute (nats), that another micro-batch, number of ranks or machine of one kind may make.
# Measured (docs/measured.md): at most 2e-7 in fp32 and 8e-4 of the loss in bf16 on CPUs; a GPU adds up in yet another order.
TOLERANCE = {"fp32": (1e-3, 1e-5), "bf16": (2e-2, 2e-4)}
# In bf16 another device, or compiled layers, round each layer's output at other places: that alone is 0.002 nats between two
# models of 12 layers that are nearly the same.
OTHER_ROUNDING = 2e-2


class _Differs(UserError):
    """The exported student is not the one that was trained."""


def recompute(run: Path, checkpoint: Checkpoint, folder: Path, progress: Progress | None = None) -> str:
    """Compute the held-out loss of ``run``'s student from its exported ``folder``, and compare it with the run's own.

    Returns what the model card says of it. Where it cannot be done, a printed line says why. Raises UserError if the two
    differ by more than TOLERANCE, or the folder's tokenizer gives other ids than were read.
    """
    recipe = recipe_of(checkpoint.info["recipe"], str(checkpoint.path))
    student, tokenizer = load_model(str(folder), "main", torch.float32), load_folder_tokenizer(folder)
    try:
        recorded = _recorded(run, checkpoint, recipe)
        found, arithmetic = _losses(recipe, checkpoint, student, tokenizer, progress or Progress())
    except _Differs:
        raise
    except Exception as reason:
        if not (isinstance(reason, UserError | OSError) or is_out_of_memory(reason)):
            raise
        why = next(iter(str(reason).splitlines()), "no memory is left")
        print(f"note: held-out loss not recomputed: {why}", flush=True)
        return NOT_RECOMPUTED

    relative, absolute = TOLERANCE[recipe.precision]
    if recipe.precision == "bf16" and (arithmetic != checkpoint.info.get("arithmetic") or recipe.compile == "all"):
        absolute = OTHER_ROUNDING
    for name, own in found.items():
        theirs = recorded[name]
        if not abs(own - theirs) <= absolute + relative * max(own, theirs):  # true of NaN
            raise _Differs(
                f"{checkpoint.path}: its student has a held-out {name} of {own:.6f}, the run has recorded {theirs:.6f}; "
                "nothing was exported, since these may not be the weights that were trained: look for unusual keys in "
                "student.ds_config, and for files that were changed since; --no-recompute exports all the same"
            )
    return f"Recomputed from this folder at step {checkpoint.step}: loss {found['loss']:.4f}."


def _recorded(run: Path, checkpoint: Checkpoint, recipe: Recipe) -> dict[str, float]:
    """The run's held-out losses at the checkpoint's step, by part. Raises UserError if there are none."""
    for row in reversed(heldout_rows(run, checkpoint.step)):
        if row["step"] == checkpoint.step and all(isinstance(row.get(name), float) for name in ("loss", *recipe.parts)):
            return {name: row[name] for name in ("loss", *recipe.parts)}
    raise UserError(f"{run / 'metrics.jsonl'} has no held-out losses at step {checkpoint.step}")


def _losses(
    recipe: Recipe,
    checkpoint: Checkpoint,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
) -> tuple[dict[str, float], str]:
    """The student's held-out losses by part, as the run evaluates them, computed by this process alone; and with what.

    Raises UserError if data or teacher are not there or not the run's, or do not fit this process's memory.
    """
    recipe = dataclasses.replace(_alone(recipe), arithmetic=way_of(checkpoint.info.get("arithmetic")) or "auto")
    corpus = open_corpus(recipe.data, recipe.shards_cache)
    if corpus.id != checkpoint.info["corpus"]:
        raise UserError(f"{recipe.data}: not the corpus of the run")
    check_bytes(corpus)
    known = load_tokenizer(recipe.teacher.model)
    check_tokenizer(corpus, known, recipe.teacher.model, ("cls", "sep"))
    windows = training_windows(corpus, recipe.length, recipe.layout, recipe.segments == "pairs")

    config = teacher_config_of(recipe)
    teacher, in_file, layers = teacher_part([recipe], config, windows.padding)
    weights = weights_of(recipe.teacher.model, recipe.teacher.revision, config)
    weights.check({in_file[name]: p.shape for name, p in teacher.named_parameters()})
    ranks = _only_rank(recipe, [teacher, student])
    run = Run(recipe, ranks, corpus, windows, known, checkpoint.step, EarlyStop(ranks, checkpoint.path), progress)

    size = sum(parameter.numel() for parameter in teacher.parameters())
    hosting = Hosting("replicate", "one process", size, size)

    def read(name: str) -> Tensor:
        progress.moved()
        return weights.tensor(in_file[name])

    teach, digests = host_teacher(recipe, ranks, teacher, hosting, read)
    check_same_teacher(checkpoint, digests[recipe.teacher.layer], recipe)
    check_same_config(checkpoint, recipe, config)

    cut = _student(recipe, checkpoint, student, config, windows.padding)
    cut.own_ids = _ids_in(tokenizer, known, student.config.vocab_size, config.vocab_size)
    if not recipe.student.vocab and not _are_same(cut.own_ids, known):
        raise _Differs(
            f"{checkpoint.path}: the tokenizer of its student gives other ids than {recipe.teacher.model}'s; nothing was "
            "exported: look for files of the run's student folder that were changed"
        )
    cut.to(ranks.device)
    fit(cut, recipe, ranks, "student")
    trainee = Trainee(recipe, cut, teacher_layers=layers)
    (losses,), _ = Evaluation(run, teach).losses([trainee])
    if not losses:
        raise UserError(f"{corpus.place} has no held-out window of {recipe.length} tokens")
    return losses, arithmetic_of(recipe.precision, ranks.device, recipe.arithmetic)


def _student(
    recipe: Recipe, checkpoint: Checkpoint, student: PreTrainedModel, teacher: PreTrainedConfig, padding: int | None
) -> CutEncoder:
    """The exported student's cut as the run trained it, in the recipe's precision; its ids are still the teacher's."""
    # Its own ids follow from the tokenizer that it was exported with, not from student.vocab's folder.
    plain = dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, vocab=""))
    cut, _, _ = trained_part(plain, student, teacher.hidden_size, padding)
    give_beside(cut, checkpoint.tensors())
    for parameter in cut.parameters():  # buffers, as the rotation's angles, stay fp32 in training as well
        parameter.data = parameter.data.to(DTYPES[recipe.precision])
    return cut


def _alone(recipe: Recipe) -> Recipe:
    """The recipe for a single process, uncompiled, with the teacher's folder; nothing of it is fetched from the hub.

    Raises UserError if this machine does not have the teacher.
    """
    model = recipe.teacher.model
    check_folder(model)
    if not Path(model).is_dir():
        try:
            model = huggingface_hub.snapshot_download(model, revision=recipe.teacher.revision, local_files_only=True)
        except (OSError, ValueError):
            raise UserError(f"{model}: no such folder here, nor a teacher in this machine's cache of the hub") from None
    teacher = dataclasses.replace(recipe.teacher, model=str(model), ds_config=Teacher.ds_config)
    return dataclasses.replace(recipe, teacher=teacher, compile="none")


def _only_rank(recipe: Recipe, models: list[nn.Module]) -> Ranks:
    """This process as a run's only rank, on the first free device that holds ``models``.

    Raises UserError if none does.
    """
    size = sum(parameter.numel() for model in models for parameter in model.parameters())
    needs = size * DTYPES[recipe.precision].itemsize * ROOM
    for device, free in free_devices():
        if needs <= free:
            print(f"Recomputing the held-out loss of up to {recipe.eval_samples} sequences on {device} …", flush=True)
            return Ranks(0, 1, 1, device)
    raise UserError(
        f"{recipe.teacher.model}: teacher and student do not fit the {free / 2**30:.1f} GiB that are free here"
    )


def _ids_in(tokenizer: PreTrainedTokenizerBase, known: PreTrainedTokenizerBase, student: int, teacher: int) -> Tensor:
    """The id in ``tokenizer`` of each of the ``teacher`` ids of the teacher's own, ``known``: int64 [teacher].

    What the exported tokenizer does not know is unknown to the student, as in training; ids are below ``student``.
    """
    own, unknown = tokenizer.get_vocab(), tokenizer.unk_token_id or 0
    ids = torch.full((teacher,), unknown)
    for token, number in known.get_vocab().items():
        if number < teacher:
            ids[number] = own.get(token, unknown)
    return ids.clamp(max=student - 1)


def _are_same(ids: Tensor, known: PreTrainedTokenizerBase) -> bool:
    """Whether each id that ``known`` has is itself among ``ids`` [teacher]."""
    own = torch.tensor([number for number in known.get_vocab().values() if number < len(ids)])
    return torch.equal(ids[own], own)
