"""Whether a student can start as another one: ``student.init`` is then that one's folder or hub id."""

import difflib
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from data_prep.cli import UserError
from pipeline.models.configs import changed_values, deciding_values
from pipeline.models.families import family_of
from pipeline.models.loading import load_config, load_folder_tokenizer
from pipeline.settings.recipe import INITS, Recipe

_SIZES = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads"}


def check_origin(recipe: Recipe, student: PreTrainedConfig) -> None:
    """Raise UserError, by the key to change, unless the model that ``student.init`` names has the shape of ``student``."""
    origin = recipe.student.init
    config = _config_of(recipe, origin)
    if config.model_type != student.model_type:
        bert = "; use student.model_type = 'bert'" if config.model_type == "bert" else ""
        recipe.refuse("student.init", f"a {config.model_type}, the student is a {student.model_type}{bert}")
    for key, name in _SIZES.items():
        if (theirs := getattr(config, name)) != getattr(student, name):
            recipe.refuse(
                f"student.{key}", f"student.init = {origin!r} has {theirs}; use {theirs}, or another student.init"
            )
    if config.vocab_size != student.vocab_size:
        recipe.refuse(
            "student.init",
            f"has a vocabulary of {config.vocab_size:,}, the student's has {student.vocab_size:,}; use a model with the "
            "teacher's tokenizer, or with that of student.vocab",
        )
    before, now = deciding_values(student), deciding_values(config)
    for name, own, theirs in changed_values(
        before, now, recipe.student.layers, family_of(student).positions_after_padding
    ):
        recipe.refuse("student.init", f"its config.json has {name} = {theirs!r}, the student {own!r}; use another one")


def _config_of(recipe: Recipe, origin: str) -> PreTrainedConfig:
    """The config of the model ``origin``. Raises UserError, naming the key, if there is none."""
    folder = Path(origin)
    if not folder.is_dir() and "/" not in origin:
        near = difflib.get_close_matches(origin, INITS, 1)
        choices = ", ".join(map(repr, INITS))
        hint = f"did you mean {near[0]!r}? Otherwise" if near else "use"
        recipe.refuse("student.init", f"no such folder; {hint} one of {choices}, a student's folder or a hub id")
    if (folder / "checkpoints").is_dir():
        recipe.refuse(
            "student.init", f"the folder of a run; export its student: ./run.sh export {origin} {origin}-student"
        )
    try:
        return load_config(origin)
    except UserError as error:
        recipe.refuse("student.init", str(error).removeprefix(f"{origin}: "))


def check_pieces(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the model that ``student.init`` names has a tokenizer with other pieces than the student's."""
    try:
        there = load_folder_tokenizer(recipe.student.init).get_vocab()
    except UserError:  # weights alone
        return
    pieces = {number: piece for piece, number in tokenizer.get_vocab().items()}
    for piece, number in sorted(there.items(), key=lambda item: item[1]):
        if pieces.get(number, piece) != piece:
            recipe.refuse(
                "student.init",
                f"its piece {number} is {piece!r}, the student's {pieces[number]!r}; use a model with the same vocabulary",
            )
