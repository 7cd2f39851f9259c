"""Where a run left off: which checkpoint it resumes from, whether it is the same run, its state put back, and its saving.

Samples need no state: what is read in a step is a pure function of the step, the batch, the seed and the corpus. The step is
the checkpoint's; ``newest_checkpoint`` rejects another recipe or corpus (but for run_folder.FREE); data/order.py numbers the
samples, ``steps`` of data/reading.py takes a rank's slice of a step. Dropout is a function of the step too, see step.py.

So is the learning rate, of the step and of the recipe's ``steps``, which may be other ones than before as long as they are no
fewer than are done: the rate goes on as if the run had had them from its start. Which ones it had is kept.
"""

from importlib.metadata import version
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig

from data_prep.cli import UserError
from data_prep.shards import Corpus
from pipeline.artifacts import checkpoints
from pipeline.artifacts.checkpoints import Checkpoint
from pipeline.artifacts.run_folder import COMPLETE, FREE, flat
from pipeline.engines.ranks import on_first_rank
from pipeline.engines.state import prime_optimizer, read_state, write_state
from pipeline.models.configs import changed_values, deciding_values
from pipeline.models.cut import CutEncoder
from pipeline.models.families import family_of
from pipeline.models.precision import arithmetic_of
from pipeline.models.vocabulary import vocabulary_of
from pipeline.pairs import BESIDE
from pipeline.settings.recipe import INITS, Recipe
from pipeline.settings.values import recipe_of
from pipeline.training.guards import stop_if_data_changed
from pipeline.training.progress import SAVE
from pipeline.training.run import HostedTeacher, Run
from pipeline.training.trainee import Trainee

# As loaded, whatever pip does later.
VERSIONS = {name: version(name) for name in ("torch", "deepspeed", "transformers")}


def newest_checkpoint(run: Path, recipe: Recipe, corpus: Corpus) -> Checkpoint | None:
    """The checkpoint to resume from. Raises UserError if recipe or corpus no longer describe the run that made it."""
    checkpoint = checkpoints.latest(run, recipe.keep_checkpoints)
    if checkpoint is None:
        if (run / COMPLETE).exists():
            raise UserError(
                f"{run}: marked {COMPLETE}, but no checkpoint is whole; use another out or delete the folder"
            )
        return None
    checkpoint.check()
    before, now = flat(recipe_of(checkpoint.info["recipe"], str(run)).to_dict()), flat(recipe.to_dict())
    if recipe.steps < checkpoint.step:
        recipe.refuse(
            "steps",
            f"{checkpoint.path} has {checkpoint.step} of them; use as many or more to extend it, or another out",
        )
    free = FREE | {"steps"}
    if recipe.embeds:
        free -= {"micro_batch"}  # whose texts are compared with each other
    if not {before["student.init"], now["student.init"]} & {*INITS}:
        free |= {"student.init"}  # a folder may move, and what was in it is in the checkpoint
    for key in now:
        if key not in free and before[key] != now[key]:
            raise UserError(
                f"{recipe.source}: {key} = {now[key]!r}, but {checkpoint.path} was made with {before[key]!r}; "
                "use another out, or the previous value"
            )
    if checkpoint.info["corpus"] != corpus.id:
        raise UserError(
            f"{recipe.data}: not the corpus that {checkpoint.path} was trained on ({corpus.id[:12]} is not "
            f"{checkpoint.info['corpus'][:12]}); use another out, or the previous data"
        )
    return checkpoint


def earlier_steps(checkpoint: Checkpoint | None, recipe: Recipe) -> list[list[int]]:
    """[[step, steps], …]: until ``step`` the rate followed a recipe of so many ``steps``, not those that it has now."""
    if checkpoint is None:
        return []
    earlier: list[list[int]] = checkpoint.info.get("earlier_steps", [])
    before = checkpoint.info["recipe"]["steps"]
    return earlier if before == recipe.steps else [*earlier, [checkpoint.step, before]]


def check_same_teacher(checkpoint: Checkpoint, digest: str, recipe: Recipe) -> None:
    """Raise UserError unless ``digest``, the hash of the teacher's weights, is that of the checkpoint's teacher."""
    if checkpoint.info["teacher"]["weights"] != digest:
        raise UserError(
            f"{recipe.teacher.model}: not the teacher that {checkpoint.path} was trained on (weights {digest} "
            f"instead of {checkpoint.info['teacher']['weights']}); use another out, or the previous teacher"
        )


def check_same_config(checkpoint: Checkpoint, recipe: Recipe, config: PreTrainedConfig) -> None:
    """Raise UserError unless the teacher's ``config`` gives the outputs that the checkpoint's teacher gave.

    Weights do not say how they are used. Checkpoints of before this was recorded are taken as they are.
    """
    before, now = checkpoint.info["teacher"].get("config", {}), deciding_values(config)
    for key, old, new in changed_values(before, now, recipe.teacher.layer, family_of(config).positions_after_padding):
        raise UserError(
            f"{recipe.teacher.model}: config.json: {key} = {new!r}, but {checkpoint.path} was trained on a teacher "
            f"with {old!r}; use another out, or the previous teacher"
        )


def check_same_vocabulary(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise UserError unless the student's own vocabulary, if it has one, is that of the checkpoint."""
    if checkpoint.info.get("student_ids") != _vocabulary_hash(recipe):
        raise UserError(
            f"{recipe.student.vocab}: not the vocabulary that {checkpoint.path} was trained with; use another out, or the "
            "previous one"
        )


def _vocabulary_hash(recipe: Recipe) -> str | None:
    own = vocabulary_of(recipe)
    return None if own is None else own.digest


def matching_state(
    checkpoint: Checkpoint, recipe: Recipe, teacher: str, cut: CutEncoder, names: dict[str, str]
) -> dict[str, Tensor]:
    """Weights and moments of a checkpoint of this very recipe and ``teacher`` (its hash), by ``names`` of the cut's parameters.

    The model has been given its weights already; the ``cut`` gets here what only the loss has trained.
    """
    check_same_teacher(checkpoint, teacher, recipe)
    check_same_vocabulary(checkpoint, recipe)
    state = checkpoint.tensors(names.values())
    give_beside(cut, state)
    return state


def give_beside(cut: CutEncoder, state: dict[str, Tensor]) -> None:
    """Give the ``cut`` what is trained beside the student's own parameters."""
    for name, parameter in cut.named_parameters():
        if name in BESIDE:
            parameter.data.copy_(state[name])


def restore(trainee: Trainee, state: dict[str, Tensor], step: int) -> None:
    """Give the trainee's engine the ``state`` that it had after ``step`` updates. Collective."""
    trainee.start = step
    prime_optimizer(trainee.engine)
    write_state(trainee.engine, trainee.names, state, step)


def save(run: Run, teacher: HostedTeacher, trainees: list[Trainee], step: int) -> None:
    """Write a checkpoint of each student after ``step`` updates. Collective: all ranks give their part of the state.

    Raises UserError on every rank if the data was changed meanwhile.
    """
    run.progress.at(SAVE, step)
    stop_if_data_changed(run.windows, run.ranks)
    for trainee in trainees:  # a function each: one student's whole state at a time
        _save(run, teacher, trainee, step)


def _save(run: Run, teacher: HostedTeacher, trainee: Trainee, step: int) -> None:
    recipe = trainee.recipe
    state = read_state(trainee.engine, trainee.names, run.ranks.first) | trainee.tail
    info = checkpoint_info(run, teacher, trainee, step)
    keep = recipe.keep_checkpoints, recipe.keep_every
    on_first_rank(run.ranks, checkpoints.save, Path(recipe.out), info, state, *keep)


def checkpoint_info(run: Run, teacher: HostedTeacher, trainee: Trainee, step: int) -> dict:
    """The content of state.json without its hashes: where the run stands, what made it, and its teacher."""
    recipe = trainee.recipe
    return {
        "step": step,
        "samples": step * recipe.batch,
        "corpus": run.corpus.id,
        "tokens": {name: source.tokens for name, source in run.corpus.sources.items()},
        "recipe": recipe.to_dict(),
        "teacher": {
            "model": recipe.teacher.model,
            "revision": recipe.teacher.revision,
            "weights": teacher.digests[recipe.teacher.layer],
            "config": deciding_values(teacher.config),
            "distillation": teacher.history,
        },
        "student_ids": _vocabulary_hash(recipe),
        **({"start": trainee.history} if trainee.history else {}),
        "earlier_steps": trainee.earlier_steps,
        "ranks": run.ranks.world,
        "arithmetic": arithmetic_of(recipe.precision, run.ranks.device, recipe.arithmetic),
        "fused": trainee.fused,
        "versions": VERSIONS,
    }
