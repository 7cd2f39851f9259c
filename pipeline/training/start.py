"""The start of a run: teacher and students built, initialised or loaded, hosted, and given their engines."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from data_prep.files import new_folder, write_text
from data_prep.shards import Corpus
from pipeline.artifacts.card import CARD, card_text, student_metadata
from pipeline.artifacts.checkpoints import Checkpoint
from pipeline.artifacts.distillation import checked_chain, read_distillation
from pipeline.artifacts.run_folder import COMPLETE
from pipeline.engines.memory import check_memory, choose_hosting
from pipeline.engines.ranks import on_first_rank, wait_for_all
from pipeline.engines.student import check_same_weights, send_weights, student_engine
from pipeline.engines.teacher import host_teacher
from pipeline.models.cut import CutEncoder, empty_encoder, split, split_pooled
from pipeline.models.fit import (
    files_to_embed,
    initialise,
    pooling_of,
    student_config_of,
    teacher_config_of,
    tokenizer_origin,
)
from pipeline.models.loading import weights_of
from pipeline.models.portable import write_tokenizer
from pipeline.models.students import build_student
from pipeline.models.vocabulary import own_ids, vocabulary_of
from pipeline.models.weights import Weights
from pipeline.pairs import VALUE_MSE
from pipeline.settings.recipe import INITS, Recipe, teacher_layers
from pipeline.training import resuming
from pipeline.training.progress import DOWNLOAD, LOAD
from pipeline.training.run import HostedTeacher, Run
from pipeline.training.trainee import Trainee, divergence_of
from pipeline.training.which_loss import takes_kernel


class Pending(NamedTuple):
    """A student that has steps to do, and the checkpoint that it resumes from, if there is one."""

    recipe: Recipe
    checkpoint: Checkpoint | None


@dataclass(frozen=True)
class Built:
    """A pending student with its whole model, the same on every rank; ``digest`` is the hash of the model's weights.

    ``fused``: its loss is computed by the kernel; ``about_loss`` says so, or why not. ``history``: how the student whose
    folder it started from was made, if that was distilled here.
    """

    recipe: Recipe
    checkpoint: Checkpoint | None
    model: PreTrainedModel
    digest: str
    fused: bool
    about_loss: str
    history: list[dict]


@dataclass(frozen=True)
class Models:
    """The teacher's cut, still without its weights, and the students, whole.

    ``layers``: those of the teacher whose q, k, v are wanted. ``in_file``: the name in ``weights`` of each of the cut's
    parameters. ``history``: how the teacher was made, if it was distilled here.
    """

    teacher: CutEncoder
    layers: tuple[int, ...]
    weights: Weights
    in_file: dict[str, str]
    history: list[dict]
    students: list[Built]


def build(run: Run, pending: list[Pending]) -> Models:
    """Build teacher and students. Raises UserError, on every rank, for a teacher that is not whole or not the checkpoint's."""
    recipe, ranks = run.recipe, run.ranks
    run.progress.at(DOWNLOAD if _is_fetched(recipe) else LOAD)
    config = teacher_config_of(recipe)
    for resumed in ((student.checkpoint, student.recipe) for student in pending if student.checkpoint):
        resuming.check_same_config(*resumed, config)
    teacher, in_file, layers = teacher_part([student.recipe for student in pending], config, run.padding)
    weights = weights_of(recipe.teacher.model, recipe.teacher.revision, config)
    history = on_first_rank(ranks, read_distillation, Path(recipe.teacher.model))
    on_first_rank(ranks, weights.check, {in_file[name]: p.shape for name, p in teacher.named_parameters()})

    origins = [student.recipe.student.init for student in pending if not student.checkpoint]
    fetches = any(origin not in INITS and not Path(origin).is_dir() for origin in origins)
    run.progress.at(DOWNLOAD if fetches else "the building of the students")
    built = [
        build_student(student_config_of(student.recipe, config), student.recipe.student_seed) for student in pending
    ]
    for student, model in zip(pending, built, strict=True):
        if student.checkpoint:
            student.checkpoint.load_into(model)
        elif student.recipe.student.init != "random":
            on_first_rank(ranks, initialise, model, student.recipe, config, weights)
            send_weights(ranks, model)
    students = [
        Built(
            *student,
            model,
            check_same_weights(ranks, model),
            *takes_kernel(student.recipe, config.hidden_size, ranks),
            on_first_rank(ranks, _history, student),
        )
        for student, model in zip(pending, built, strict=True)
    ]
    return Models(teacher, layers, weights, in_file, history, students)


def host(run: Run, models: Models) -> HostedTeacher:
    """The teacher with its weights. Raises UserError where teacher and students do not fit a rank's memory."""
    run.progress.at(LOAD)
    hosting = choose_hosting(run.recipe, run.ranks, models.teacher)
    recipes, students = zip(*((student.recipe, student.model) for student in models.students), strict=True)
    hosting = check_memory(list(recipes), run.ranks, hosting, list(students))

    if _is_fetched(run.recipe) and hosting.kind == "zero3" and run.recipe.teacher.shard_group == "node":
        run.progress.at(DOWNLOAD)  # each host reads for itself; elsewhere rank 0 alone does, and has it by now
        if any(run.ranks.rank == node[0] for node in run.ranks.nodes):
            models.weights.names()
        wait_for_all(run.ranks)
        run.progress.at(LOAD)

    def read(name: str) -> Tensor:
        run.progress.moved()
        return models.weights.tensor(models.in_file[name])

    forward, digests = host_teacher(run.recipe, run.ranks, models.teacher, hosting, read)
    return HostedTeacher(forward, digests, hosting, models.teacher.config, models.history)


def _history(student: Pending) -> list[dict]:
    """How the student was made before its own first step."""
    if student.checkpoint:
        return checked_chain(student.checkpoint.info.get("start", []), student.checkpoint.path)
    return [] if student.recipe.student.init in INITS else read_distillation(Path(student.recipe.student.init))


def teacher_part(
    recipes: list[Recipe], config: PreTrainedConfig, padding: int | None = None
) -> tuple[CutEncoder, dict[str, str], tuple[int, ...]]:
    """models.cut.empty_encoder of a teacher, as the losses of students who share it need it; and the layers that it tells."""
    *earlier, layer = layers = teacher_layers(recipes)
    return *empty_encoder(config, layer, padding, tuple(earlier), pooling_of(recipes[0])), layers


def _is_fetched(recipe: Recipe) -> bool:
    """Whether the teacher comes from the hub."""
    return not Path(recipe.teacher.model).is_dir()


def make_trainees(run: Run, models: Models, teacher: HostedTeacher) -> list[Trainee]:
    """Each student with an engine of its own, at its start or where its checkpoint left off."""
    run.progress.at("the start of the engines")
    divergence = divergence_of(run.recipe)
    made = []
    for student in models.students:
        recipe, checkpoint = student.recipe, student.checkpoint
        cut, names, tail = trained_part(recipe, student.model, teacher.config.hidden_size, run.padding)
        digest = teacher.digests[recipe.teacher.layer]
        state = resuming.matching_state(checkpoint, recipe, digest, cut, names) if checkpoint else {}
        engine = student_engine(recipe, run.ranks, cut)
        trainee = Trainee(recipe, engine, divergence, student.fused, names, tail, models.layers, student.history)
        trainee.earlier_steps = resuming.earlier_steps(checkpoint, recipe)
        if checkpoint:
            resuming.restore(trainee, state, checkpoint.step)
        made.append(trainee)
    return made


def trained_part(
    recipe: Recipe, model: PreTrainedModel, teacher_width: int, padding: int | None = None
) -> tuple[CutEncoder, dict[str, str], dict[str, Tensor]]:
    """models.cut.split of a student, as its loss needs it: all layers that learn give q, k, v, and values are projected.

    Where vectors are learnt it is models.cut.split_pooled.
    """
    if pooling := pooling_of(recipe):
        return split_pooled(model, pooling, pooling.width(teacher_width), padding, recipe.student_seed, own_ids(recipe))
    earlier = tuple(recipe.layers)[:-1]
    width = teacher_width if VALUE_MSE in recipe.pairs else 0
    return split(model, padding, earlier, width, recipe.student_seed, own_ids(recipe))


def prepare_folders(run: Run, models: Models, trainees: list[Trainee]) -> None:
    """Write to each student's run folder what export and a reader need, on the first rank. Raises its errors on all."""
    on_first_rank(run.ranks, _prepare_folders, run, models, trainees)


def _prepare_folders(run: Run, models: Models, trainees: list[Trainee]) -> None:
    for trainee, student in zip(trainees, models.students, strict=True):
        own = vocabulary_of(trainee.recipe)
        tokenizer = own.tokenizer if own else run.tokenizer
        prepare_folder(trainee.recipe, trainee.engine.resolved_config, student.model.config, tokenizer, run.corpus)


def prepare_folder(
    recipe: Recipe, ds_config: dict, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, corpus: Corpus
) -> None:
    """Write recipe.json, ds_config.student.json and student/ to the run folder. The run is not complete from here on."""
    folder = Path(recipe.out)
    write_text(folder / "recipe.json", json.dumps(recipe.to_dict(), indent=1) + "\n")
    write_text(folder / "ds_config.student.json", json.dumps(ds_config, indent=1) + "\n")
    with new_folder(folder / "student") as student:
        config.save_pretrained(student)
        write_tokenizer(tokenizer, tokenizer_origin(recipe), config, student, recipe.segments == "pairs")
        for name, text in files_to_embed(recipe, config).items():
            (student / name).parent.mkdir(exist_ok=True)
            (student / name).write_text(text, encoding="utf-8")
        (student / CARD).write_text(card_text(student_metadata(recipe, corpus), ""), encoding="utf-8")
    (folder / COMPLETE).unlink(missing_ok=True)
