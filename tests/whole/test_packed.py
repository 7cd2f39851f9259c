"""Packed rows in whole runs: the loss is the mean over pieces, each computed alone, whoever reads them in what batches."""

import itertools

import numpy as np
import pytest
import torch

from data_prep.shards import open_corpus, write_manifest
from pipeline.artifacts import checkpoints
from pipeline.artifacts.metrics import read_metrics
from pipeline.data.inputs import Inputs, Pieces
from pipeline.models import attention
from pipeline.models.cut import cut_encoder
from pipeline.models.fit import student_config_of
from pipeline.models.loading import load_model
from pipeline.models.students import build_student
from pipeline.settings.reading import load_recipe
from pipeline.training.start import trained_part
from pipeline.training.trainee import Trainee
from tests.data.conftest import write_documents
from tests.models.test_encoders import FAMILIES
from tests.parts import launching
from tests.parts.by_hand import flash_by_hand, loss_by_hand, packed_pieces
from tests.parts.runs import assert_same_state, job, losses, untimed
from tests.parts.tiny import WORDS, fingerprint, make_recipe, make_teacher

pytestmark = pytest.mark.slow

LENGTH = 24
PACKED = (
    "layout=packed", f"length={LENGTH}", "precision=fp32", "student.dropout=0.0", "eval_samples=8", "sampling_alpha=0.5",
)  # fmt: skip
ONE_STEP = ("steps=1", "warmup_steps=1")
# The runs whose losses are compared with the literal formula: their teachers and options.
LITERAL = {
    "pairs": ("bert", {}, ("segments=pairs",)),
    "values": ("roberta", {"type_vocab_size": 1}, ("pairs=qk,v_mse", "transfer=layer-to-layer")),
    "rotated": ("modernbert", FAMILIES["modernbert"], ("pairs=qq,kk,vv", "relation_heads=8", "teacher.layer=4")),
}
STUDENTS = {
    "plain": "layers = 2\nhidden = 16\nds_config = 'student_zero1.json'",
    "wide": "layers = 1\nhidden = 32\nds_config = 'student_zero3.json'",
}
SHARED = ("layout=packed", f"length={LENGTH}", "precision=fp32", "teacher.hosting=zero3", "eval_samples=7", "batch=16")


def make_documents(folder):
    """Two sources: of the one many documents fit into a row, of the other a document may take several."""
    generator = np.random.default_rng(4)
    content = {"tokenizer": fingerprint(), "sources": {}, "heldout": {}}
    for side, count in (("sources", 240), ("heldout", 40)):
        for name, low, high in (("short", 1, 9), ("long", 12, 50)):
            texts = [tuple(generator.integers(5, len(WORDS), generator.integers(low, high))) for _ in range(count)]
            shards = [texts[: count // 3], texts[count // 3 :]] if side == "sources" else [texts]
            place = folder / ("heldout" if side == "heldout" else "") / name
            rows = [write_documents(place, number, shard) for number, shard in enumerate(shards)]
            tokens = sum(row["tokens"] for row in rows)
            content[side][name] = {"documents": count, "tokens": tokens, "size": tokens, "shards": rows}
    write_manifest(folder, content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the runs begin with: a corpus, a teacher of each family, and the recipes tiny.toml and several.toml."""
    folder = tmp_path_factory.mktemp("packed")
    make_documents(folder / "data")
    for name, (family, sizes, _) in LITERAL.items():
        make_teacher(folder / name, family, **sizes)
    text = make_recipe(folder).read_text()
    students = (f'[[student]]\nname = "{name}"\n{keys}\nheads = 4\ndropout = 0.0\n' for name, keys in STUDENTS.items())
    (folder / "several.toml").write_text(text.split("[student]")[0] + "".join(students))
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    """Of several students: on two ranks whole, in halves, and a first half that one rank continues; and on one rank whole."""

    def of_several(out, *options, **others):
        return job(folder, out, *SHARED, *options, recipe="several.toml", **others)

    two = [of_several("two"), of_several("halves", stop_at=3), of_several("halves"), of_several("changed", stop_at=3)]
    launching.finish_jobs(folder, 2, two)
    one = [of_several("changed", "micro_batch=4"), of_several("one", "micro_batch=8")]
    literal = [job(folder, f"run-{name}", *options_of(folder, name), *ONE_STEP) for name in LITERAL]
    launching.finish_jobs(folder, 1, [*one, *literal])
    return folder


def options_of(folder, name):
    return [*PACKED, f"teacher.model={folder / name}", *LITERAL[name][2]]


# --- the formula ------------------------------------------------------------------------------------------------------


def by_hand(recipe, pieces):
    """The loss and its parts: the mean over pieces and the layers that learn."""
    return np.mean([loss_by_hand(recipe, pieces, *pair) for pair in recipe.layers.items()], axis=0)


@pytest.mark.parametrize("name", LITERAL)
def test_the_loss_is_the_mean_over_pieces_of_each_alone(runs, name):
    recipe = load_recipe(runs / "tiny.toml", options_of(runs, name))
    run, corpus, names = runs / f"run-{name}", open_corpus(runs / "data"), ("loss", *recipe.pairs)
    for kind, side, count in (("train", "sources", recipe.batch), ("heldout", "heldout", recipe.eval_samples)):
        rows = packed_pieces(corpus, side, recipe, count)
        by_row = [
            [len(row) for _, row in rows[i : i + recipe.micro_batch]] for i in range(0, count, recipe.micro_batch)
        ]
        assert len({sum(counts) for counts in by_row}) > 1  # micro-batches differ in their pieces
        pieces = [piece for _, row in rows for piece in row]
        assert len({len(piece) for piece in pieces}) > 4
        np.testing.assert_allclose(losses(run, kind, names)[0], by_hand(recipe, pieces), rtol=1e-5)


def test_the_held_out_loss_of_a_source_is_the_mean_over_its_pieces(runs):
    recipe = load_recipe(runs / "tiny.toml", options_of(runs, "pairs"))
    rows = packed_pieces(open_corpus(runs / "data"), "heldout", recipe, recipe.eval_samples)
    of_source = {name: [piece for own, row in rows if own == name for piece in row] for name in ("short", "long")}
    counts = {name: len(pieces) / [own for own, _ in rows].count(name) for name, pieces in of_source.items()}
    assert counts["short"] > 2 * counts["long"]
    told = next(row["sources"] for row in read_metrics(runs / "run-pairs") if row["kind"] == "sources")
    for name, pieces in of_source.items():
        assert told[name]["loss"] == pytest.approx(by_hand(recipe, pieces)[0], rel=1e-5)


# --- packed and padded ------------------------------------------------------------------------------------------------

ROWS = [[12, 5, 4], [24], [4, 5, 4, 5, 4], [19]]  # positions of each row's pieces; the rest of LENGTH is padding


def both_layouts(segments):
    """The same pieces packed into ROWS, and padded, one in a row."""
    generator, padding = torch.Generator().manual_seed(1), 0
    sizes = [size for row in ROWS for size in row]
    ids, real = torch.randint(5, 50, (len(sizes), LENGTH), generator=generator), torch.arange(LENGTH)
    ids[:, 0], lengths = 2, torch.tensor(sizes)
    ids[real >= lengths[:, None]] = padding
    second = (real > 2) & (real < lengths[:, None]) if segments == "pairs" else None
    padded = Inputs(ids, second, lengths)

    cuts = torch.full((len(ROWS), max(map(len, ROWS)) + 2), LENGTH, dtype=torch.int32)
    packed, told, number = torch.full((len(ROWS), LENGTH), padding), torch.zeros(len(ROWS), LENGTH, dtype=torch.bool), 0
    for row, own in enumerate(ROWS):
        for place, (begin, stop) in enumerate(itertools.pairwise(np.cumsum([0, *own]).tolist())):
            cuts[row, place], packed[row, begin:stop] = begin, ids[number, : stop - begin]
            if second is not None:
                told[row, begin:stop] = second[number, : stop - begin]
            number += 1
        cuts[row, len(own)] = sum(own)
    pieces = Pieces.of(cuts, torch.tensor([sum(own) for own in ROWS]), LENGTH, len(sizes) / len(ROWS))
    return Inputs(packed, None if second is None else told, pieces=pieces), padded


def loss_and_gradients(recipe, inputs):
    """The loss of ``inputs`` and its parts, and the gradients of the untrained student's parameters."""
    *earlier, last = layers = tuple(sorted(set(recipe.layers.values())))
    teacher_model = load_model(recipe.teacher.model, "main", torch.float32)
    teacher = cut_encoder(teacher_model, last, 0, tuple(earlier)).eval()
    student_model = build_student(student_config_of(recipe, teacher_model.config), recipe.seed)
    student = trained_part(recipe, student_model, teacher_model.config.hidden_size, 0)[0].eval()
    with torch.no_grad():
        targets = teacher(inputs.ids, **inputs.told)
    output = student(inputs.ids, **inputs.told)
    parts = Trainee(recipe, None, teacher_layers=layers).losses(targets, output, inputs.bounds())
    learning = list(student.parameters())
    gradients = torch.autograd.grad(parts["loss"], learning, allow_unused=True, materialize_grads=True)
    return torch.stack([*parts.values()]).detach(), gradients


@pytest.mark.parametrize("flash", [False, True], ids=["piece by piece", "at once"])
@pytest.mark.parametrize("name", LITERAL)
def test_packed_and_padded_the_same_pieces_give_the_same_loss_and_gradients(monkeypatch, folder, name, flash):
    if flash:  # as on a GPU
        monkeypatch.setattr(attention, "_has_flash", lambda *_: True)
        monkeypatch.setattr(attention, "flash", flash_by_hand)
    recipe = load_recipe(folder / "tiny.toml", options_of(folder, name))
    (packed, ours), (padded, theirs) = (loss_and_gradients(recipe, inputs) for inputs in both_layouts(recipe.segments))
    torch.testing.assert_close(packed, padded, rtol=1e-6, atol=0)
    norm = torch.cat([gradient.flatten() for gradient in theirs]).norm()
    assert norm > 1e-3
    for own, other in zip(ours, theirs, strict=True):
        assert (own - other).norm() <= 1e-6 * norm


# --- ranks and interruptions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("run", ["two", "changed"])
def test_ranks_and_micro_batches_change_no_loss(runs, run, student):
    for kind, count in (("train", 6), ("heldout", 3)):
        expected = losses(runs / "one" / student, kind)
        assert len(expected) == count
        np.testing.assert_allclose(losses(runs / run / student, kind), expected, rtol=1e-6)
    of_sources = [
        [row["sources"] for row in read_metrics(runs / name / student) if row["kind"] == "sources"]
        for name in (run, "one")
    ]
    for ours, theirs in zip(*of_sources, strict=True):
        for name, row in theirs.items():
            assert ours[name] == row | {"loss": pytest.approx(row["loss"], rel=1e-6)}
    info = checkpoints.latest(runs / run / student).info
    assert (info["ranks"], info["samples"]) == ({"two": 2, "changed": 1}[run], 6 * 16)


@pytest.mark.parametrize("student", STUDENTS)
def test_an_interruption_changes_no_bit(runs, student):
    whole, halves = runs / "two" / student, runs / "halves" / student
    assert_same_state(halves, whole)
    assert untimed(halves) == untimed(whole)
    assert "Resuming from" in (halves / "log.txt").read_text()
