"""Show what a model will read: samples as they are cut, framed and packed, decoded piece by piece.

    python -m pipeline.show RECIPE [key=value …]      the first samples of the run
    python -m pipeline.show DATA [length=128 …]       the same of a prepared folder; all else is as in the recipe `demo`

`python -m pipeline prep show` is the same. Nothing is written, but for the index of packed rows if it is not there.
"""

import argparse
import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers.decoders import ByteLevel

from data_prep.cli import Parser, UserError, run_command, whole_number
from data_prep.encode import Encoder, load_encoder
from data_prep.inputs import tokenizer_path
from data_prep.plan import places_known, read_plan
from data_prep.shards import MANIFEST, PLAN, Corpus, open_corpus, vocabulary_hash
from pipeline.data.inputs import Inputs
from pipeline.data.order import BLOCK, Order
from pipeline.data.reading import order_of, read, training_windows
from pipeline.data.windows import Windows
from pipeline.models.fit import teacher_config_of, with_segments
from pipeline.models.loading import load_tokenizer
from pipeline.settings.reading import load_stages
from pipeline.settings.recipe import Recipe

WIDTH = 100  # columns


def recipe_to_show(what: str, overrides: list[str]) -> Recipe:
    """The recipe of a file, of its first student and stage; for a prepared folder `demo` with its data and tokenizer.

    Its segments are decided. Raises UserError for a folder whose tokenizer is not known.
    """
    folder = Path(what)
    if not folder.is_dir():
        recipe = load_stages(what, overrides)[0][0]
        if recipe.segments != "auto":
            return recipe
        teacher = recipe.teacher
        return with_segments(recipe, teacher_config_of(recipe), load_tokenizer(teacher.model, teacher.revision))
    known = ["segments=single", f"data={folder}"]
    if (folder / PLAN).is_file() and places_known(folder) and (plan := read_plan(folder)):
        known.append(f"teacher.model={plan.tokenizer_path}")
    elif not any(override.startswith("teacher.model=") for override in overrides) and (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: does not say where its tokenizer is; give teacher.model=FOLDER")
    return load_stages("demo", [*known, *overrides])[0][0]


def samples_of(recipe: Recipe, count: int, source: str | None) -> Iterator[list[str]]:
    """The lines on the data, then those of each of the first ``count`` samples of the run, of a ``source`` or of all."""
    corpus = open_corpus(recipe.data, recipe.shards_cache)
    pieces = Pieces(encoder_of(recipe, corpus))
    paired = recipe.segments == "pairs"
    windows = training_windows(corpus, recipe.length, recipe.layout, paired)
    order = order_of(windows, recipe.sampling_alpha, recipe.seed, recipe.shuffle_shards)
    names = ", ".join(windows.names)
    if source is not None and source not in windows.names:
        raise UserError(f"--source {source}: no source of {corpus.place} with a window of this length; it has {names}")
    read_as = "pairs [CLS] A [SEP] B [SEP]" if paired else "single texts"
    yield [
        f"{corpus.place}: {len(windows):,} windows of {recipe.length} positions, layout {recipe.layout!r}, {read_as}",
        f"sources: {names}",
    ]
    for number in itertools.islice(_numbers(order, windows, source), count):
        name = windows.names[int(order(number, number + 1).source[0])]
        yield shown(number, name, read(windows, order, number, number + 1), pieces)


def _numbers(order: Order, windows: Windows, source: str | None) -> Iterator[int]:
    """The numbers of the samples of a source, as far as the first block of the order has them."""
    if source is None:
        return itertools.count()
    drawn = order(0, BLOCK).source == windows.names.index(source)
    return iter(np.flatnonzero(drawn).tolist())


def encoder_of(recipe: Recipe, corpus: Corpus) -> Encoder:
    """The teacher's tokenizer. Raises UserError if the corpus was made with another vocabulary."""
    encoder = load_encoder(tokenizer_path(recipe.teacher.model))
    if vocabulary_hash(encoder.vocabulary) != corpus.tokenizer["vocabulary"]:
        raise UserError(
            f"{corpus.place}: made with another vocabulary than that of {recipe.teacher.model}; give the tokenizer that it was "
            "made with by teacher.model=FOLDER"
        )
    return encoder


class Pieces:
    """The pieces of a vocabulary as a person reads them: each as the tokenizer spells it, bytes as the text that they are."""

    def __init__(self, encoder: Encoder):
        self._spelled = {number: piece for piece, number in encoder.vocabulary.items()}
        self._bytes = ByteLevel() if any(piece.startswith("Ġ") for piece in encoder.vocabulary) else None

    def __call__(self, number: int) -> str:
        piece = self._spelled.get(number, f"[{number}]")
        if self._bytes is None:
            return piece
        text = self._bytes.decode([piece]).replace(" ", "Ġ").replace("\n", "Ċ")
        return piece if "\ufffd" in text else text  # part of a character

    def line(self, ids: list[int], padding: int | None) -> str:
        """The pieces of ``ids`` with a space between two; those of padding as one with their number."""
        parts = []
        for number, run in itertools.groupby(ids):
            same = len(list(run))
            parts += [f"{self(number)} × {same}"] if number == padding and same > 1 else [self(number)] * same
        return " ".join(parts)


def shown(number: int, source: str, inputs: Inputs, pieces: Pieces) -> list[str]:
    """The lines of one sample: what it is, and its pieces; each sequence of a packed row begins on a line of its own."""
    ids = inputs.ids[0].tolist()
    sizes, padded, many = [len(ids)], 0, ""
    if inputs.lengths is not None:
        padded = len(ids) - int(inputs.lengths[0])
    if inputs.pieces is not None:
        sizes = inputs.pieces.sizes
        padded = sizes[-1] if int(inputs.pieces.stop[0, -1]) == 0 else 0
        sequences = len(sizes) - bool(padded)
        many = f", {sequences} sequence{'s' * (sequences > 1)}"
    padding = f"{padded} of them padding" if padded else "no padding"

    lines, begin = [f"sample {number}: source {source}, {len(ids)} positions, {padding}{many}"], 0
    for size in sizes:
        text = pieces.line(ids[begin : begin + size], ids[-1] if padded else None)
        lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False)
        begin += size
    return lines


def parser() -> Parser:
    """The command line of ``python -m pipeline.show``."""
    made = Parser(
        prog="python -m pipeline.show",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("what", metavar="RECIPE | DATA", help="a recipe, or a folder that prep wrote")
    add("overrides", nargs="*", metavar="key=value", help="as in length=256, layout=packed, segments=pairs or seed=7")
    add("--source", metavar="NAME", help="only samples of this source")
    add("--samples", type=whole_number(1), default=3, metavar="N", help="how many (default: %(default)s)")
    return made


def main() -> None:
    options = parser().parse_intermixed_args()
    recipe = recipe_to_show(options.what, options.overrides)
    for lines in samples_of(recipe, options.samples, options.source):
        print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    run_command(main)
