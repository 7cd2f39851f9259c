"""Whether a recipe fits its teacher, and the configs that follow from both."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.models.arithmetic import Product
from pipeline.models.families import family_of, global_layers, knows_segments, longest_input
from pipeline.models.loading import load_config, load_tokenizer, weights_of
from pipeline.models.origin import check_origin
from pipeline.models.pooling import Pooling, pooling_files, read_pooling
from pipeline.models.portable import marks_pairs
from pipeline.models.students import (
    build_student,
    copy_every_kth_layer,
    copy_whole,
    project_embeddings,
    student_config,
    student_ffn,
)
from pipeline.models.vocabulary import student_ids_of, vocabulary_of
from pipeline.models.weights import Weights
from pipeline.settings.recipe import INITS, PAIR, Recipe, teacher_layers


def check_teacher(recipe: Recipe, config: PreTrainedConfig, starts: bool = True) -> None:
    """Raise UserError for what does not suit the teacher's shape: layer, widths, length, vocabulary, the student's start.

    A student that resumes, and so does not ``starts``, needs no more what it once began from.
    """
    layers, width = config.num_hidden_layers, config.hidden_size
    recipe.need("teacher.layer", 1 <= recipe.teacher.layer <= layers, f"one of the teacher's layers 1 to {layers}")
    if recipe.embeds:
        whole = f"{layers}, the teacher's last layer: what it makes of a text comes of all of them"
        recipe.need("teacher.layer", recipe.teacher.layer == layers, whole)
        if Path(recipe.teacher.model).is_dir():  # the hub is asked for it by what trains
            pooling_of(recipe)
    else:
        recipe.divided("relation_heads", recipe.relation_heads, "relation heads", width)
    longest = longest_input(config)
    recipe.need("length", recipe.length <= longest, f"at most the teacher's {longest} positions")
    if recipe.transfer == "layer-to-layer":
        fits = recipe.student.layers <= recipe.teacher.layer
        recipe.need("student.layers", fits, "at most teacher.layer to learn from")
    attending = global_layers(config)
    for layer in () if recipe.embeds else recipe.layers.values():
        if layer not in attending:
            recipe.refuse(
                "teacher.layer",
                f"the teacher's layer {layer} has local attention, whose maps are not what it attends to; "
                f"its global layers are {', '.join(map(str, attending))}",
            )
    ids = student_ids_of(recipe)
    if ids is not None and len(ids) != config.vocab_size:
        recipe.refuse(
            "student.vocab",
            f"made from a vocabulary of {len(ids):,}, the teacher's has {config.vocab_size:,}; trim the "
            "teacher, or a model with its tokenizer",
        )
    student = student_config_of(recipe, config)
    size = recipe.student.hidden // recipe.student.heads
    if family_of(student).rotated and size % 2:
        recipe.refuse("student.heads", f"heads of width {size} cannot be rotated; use an even width")
    if recipe.student.init in INITS:
        _check_start(recipe, config, student)
    elif starts and (not recipe.start or Path(recipe.student.init).is_dir()):
        check_origin(recipe, student)


def pooling_of(recipe: Recipe) -> Pooling | None:
    """How the teacher makes a vector of a text, where a student learns these; None where it learns relations.

    A process keeps what it reads first. Raises UserError for files that are torn, or not read here.
    """
    return _read_once(recipe.teacher.model, recipe.teacher.revision) if recipe.embeds else None


_read_once = functools.cache(read_pooling)


def files_to_embed(recipe: Recipe, config: PreTrainedConfig) -> dict[str, str]:
    """models.pooling.pooling_files of a student of this config."""
    pooling = pooling_of(recipe)
    learnt = pooling.width(teacher_config_of(recipe).hidden_size) if pooling else 0
    return pooling_files(recipe.teacher.model, recipe.teacher.revision, config, learnt)


def with_segments(recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Recipe:
    """The recipe with ``segments`` decided: pairs where the teacher has a second segment and its tokenizer gives token type 1.

    BERT's architecture with XLM-R's tokenizer (the multilingual MiniLM) has the embedding, but no task ever uses it, nor that
    of a student that has read single texts. A length that holds no pair takes single texts. Raises UserError for pairs where
    the teacher has no second segment.
    """
    knows = knows_segments(config)
    if recipe.segments == "pairs" and not knows:
        recipe.refuse("segments", f"the teacher, a {config.model_type}, has no second segment; use 'single' or 'auto'")
    if recipe.segments != "auto":
        return recipe
    if recipe.embeds:
        return dataclasses.replace(recipe, segments="single")
    # Said in its settings, that is: which inputs a class lists by default differs among versions of transformers.
    given = "token_type_ids" in tokenizer.init_kwargs.get("model_input_names", ["token_type_ids"])
    paired = knows and given and marks_pairs(tokenizer) and recipe.length >= PAIR
    return dataclasses.replace(recipe, segments="pairs" if paired else "single")


def _check_start(recipe: Recipe, config: PreTrainedConfig, student: PreTrainedConfig) -> None:
    """Raise UserError unless the ``student`` can start as ``student.init`` says."""
    width = config.hidden_size
    embedded = getattr(config, "embedding_size", width)
    if recipe.student.init == "pca" and recipe.student.hidden > embedded:
        recipe.refuse(
            "student.init",
            f"student.hidden is {recipe.student.hidden}, the teacher's embeddings have {embedded} components; use as many "
            "or fewer, or 'random'",
        )
    if recipe.student.init != "teacher":
        return
    if student.model_type != config.model_type:
        recipe.refuse(
            "student.init",
            f"the student is a {student.model_type}, the teacher a {config.model_type}; use 'random' or 'pca', or "
            "student.model_type = 'teacher'",
        )
    ffn = family_of(config).ffn
    for name, own, theirs in (
        ("student.hidden", recipe.student.hidden, width),
        ("student.heads", recipe.student.heads, config.num_attention_heads),
        ("the student's embedding", recipe.student.hidden, embedded),
        ("the student's FFN", getattr(student, ffn), getattr(config, ffn)),
    ):
        if own != theirs:
            recipe.refuse(
                "student.init", f"{name} is {own}, the teacher's is {theirs}; use the same, or 'random' or 'pca'"
            )
    fits = recipe.student.layers <= recipe.teacher.layer
    recipe.need("student.layers", fits, "at most teacher.layer to copy from")


def teacher_config_of(recipe: Recipe, load: Callable[[str, str], PreTrainedConfig] = load_config) -> PreTrainedConfig:
    """The teacher's transformers config; that of a previous stage's student is known before it exists.

    ``load``: configs.planned_config for what only plans.
    """
    if recipe.previous:
        return student_config_of(recipe.previous, teacher_config_of(recipe.previous, load))
    return load(recipe.teacher.model, recipe.teacher.revision)


def student_config_of(recipe: Recipe, teacher_config: PreTrainedConfig) -> PreTrainedConfig:
    """The student's transformers config, of the teacher's family or a plain one."""
    student = recipe.student
    model_type = None if student.model_type == "teacher" else student.model_type
    ffn = student_ffn(teacher_config, student.hidden, model_type)
    sizes = student.layers, student.hidden, student.heads, ffn, student.dropout
    layer = (recipe.start or recipe).teacher.layer
    return student_config(teacher_config, *sizes, layer, model_type, student_ids_of(recipe))


def untrained_student(recipe: Recipe, teacher_config: PreTrainedConfig, teacher: Weights) -> PreTrainedModel:
    """The whole student, fp32, as it starts."""
    student = build_student(student_config_of(recipe, teacher_config), recipe.student_seed)
    initialise(student, recipe, teacher_config, teacher)
    return student


def initialise(student: PreTrainedModel, recipe: Recipe, teacher_config: PreTrainedConfig, teacher: Weights) -> None:
    """Put in the place of its random numbers what ``student.init`` takes of ``teacher``, or of another student."""
    if recipe.student.init == "teacher":
        copy_every_kth_layer(teacher, student, recipe.teacher.layer, student_ids_of(recipe))
    elif recipe.student.init == "pca":
        project_embeddings(teacher, teacher_config, student, student_ids_of(recipe))
    elif recipe.student.init not in INITS:
        copy_whole(weights_of(recipe.student.init, "main", student.config), student)


def student_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer that the student is exported with: the teacher's, or that of its own smaller vocabulary."""
    if own := vocabulary_of(recipe):
        return own.tokenizer
    return load_tokenizer(recipe.teacher.model, recipe.teacher.revision)


def tokenizer_origin(recipe: Recipe) -> tuple[str, str]:
    """The folder or hub id that ``student_tokenizer`` is loaded from, and the revision."""
    return (recipe.student.vocab, "main") if recipe.student.vocab else (recipe.teacher.model, recipe.teacher.revision)


def products_of(recipes: list[Recipe], teacher: PreTrainedConfig) -> tuple[Product, ...]:
    """The widest products of ``teacher`` and students, weighted by their layers: a student's, with backward, three times."""
    recipe = recipes[0]
    shapes = [(recipe.teacher_batch, teacher, max(teacher_layers(recipes)))]
    for own in recipes:
        shapes.append((own.micro_batch, student_config_of(own, teacher), 3 * own.student.layers))
    return tuple(
        Product(batch * recipe.length, config.hidden_size, getattr(config, family_of(config).ffn), times)
        for batch, config, times in shapes
    )
