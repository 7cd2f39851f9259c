"""The loss of an untrained student without the product's reading and loss: window by window, by the literal formula."""

from pathlib import Path

import numpy as np
import torch

from data_prep.packing import pack
from data_prep.shards import Corpus, open_corpus
from pipeline.data.documents import DocWindows
from pipeline.data.feistel import mix
from pipeline.data.reading import order_of, windows_of
from pipeline.data.segments import another, cut
from pipeline.models.cut import cut_encoder, split
from pipeline.models.fit import student_config_of
from pipeline.models.loading import load_model
from pipeline.models.students import build_student
from tests.parts.literal_relations import literal_relation_loss
from tests.parts.tiny import SPECIAL


def models_by_hand(recipe, student_layer: int, teacher_layer: int):
    """Teacher and untrained student, each cut at a layer; a student that needs a projection has it."""
    teacher_model = load_model(recipe.teacher.model, "main", torch.float32)
    student_model = build_student(student_config_of(recipe, teacher_model.config), recipe.student_seed)
    student = cut_encoder(student_model, student_layer)
    if "v_mse" in recipe.pairs:
        whole = split(student_model, value_width=teacher_model.config.hidden_size, seed=recipe.student_seed)[0]
        student.value_projection = whole.value_projection
    return cut_encoder(teacher_model, teacher_layer).eval(), student.eval()


def loss_by_hand(recipe, windows: list[list[int]], student_layer: int = 2, teacher_layer: int = 3) -> list[float]:
    """The loss of the untrained student and its parts: each window alone and unpadded, by the literal formula, then their mean.

    With segments = "pairs" the tokens after a window's first [SEP] are of the second segment.
    """
    teacher, student = models_by_hand(recipe, student_layer, teacher_layer)
    rows = []
    with torch.no_grad():
        for window in windows:
            ids, second = torch.tensor([window]), None
            if recipe.segments == "pairs":
                second = torch.arange(len(window))[None] > window.index(SPECIAL["sep"])
            outputs = [[x.double() for x in model(ids, second=second)] for model in (teacher, student)]
            losses = literal_relation_loss(*outputs, recipe.relations, recipe.relation_heads, [len(window)])
            if "v_mse" in recipe.pairs:
                losses["v_mse"] = (outputs[0][2] - outputs[1][3]).square().mean()
                losses["loss"] = losses["loss"] + losses["v_mse"]
            rows.append([float(losses[name]) for name in ("loss", *recipe.pairs)])
    return np.mean(rows, axis=0).tolist()


def doc_windows(corpus: Corpus, side: str, recipe, count: int) -> list[list[int]]:
    """The first windows of the order, cut out of the corpus's documents without the product's reading."""
    order_windows = DocWindows(getattr(corpus, side), corpus.tokenizer, recipe.length)
    drawn = order_of(order_windows, recipe.sampling_alpha, recipe.seed)(0, count).window
    windows = []
    for shard in getattr(corpus, side)["a"].shards:
        for document in np.split(np.array(shard.open()), shard.ends()[:-1].astype(int)):
            text = document[:-1].tolist()
            windows += [[2, *text[i : i + 14], 3] for i in range(0, len(text), 14)]
    return [windows[i] for i in drawn]


def doc_pairs(corpus: Corpus, side: str, recipe, count: int) -> list[list[int]]:
    """The same of pairs: their windows are a token shorter, and paired as data.segments says."""
    order_windows = DocWindows(getattr(corpus, side), corpus.tokenizer, recipe.length, paired=True)
    order = order_of(order_windows, recipe.sampling_alpha, recipe.seed)
    drawn, bits = order(0, count).window, order.bits(0, count)
    pieces = []
    for shard in getattr(corpus, side)["a"].shards:
        for document in np.split(np.array(shard.open()), shard.ends()[:-1].astype(int)):
            text = document[:-1].tolist()
            pieces += [text[i : i + 13] for i in range(0, len(text), 13)]
    pairs = []
    for own, other, share in zip(drawn, another(drawn, np.full(count, len(pieces)), bits), bits, strict=True):
        first, second = pieces[own], pieces[other]
        cuts = [int(cut(np.array([len(piece)]), np.array([share]))[0]) for piece in (first, second)]
        pairs.append([2, *first[: cuts[0]], 3, *second[cuts[1] :], 3])
    return pairs


def _other_text(texts: list, place: int, bits: np.ndarray, room: int):
    """The text that gives a pair's second segment of ``room`` tokens: the first of four that are long enough, or its own."""
    if bits[0] >> np.uint64(63) and len(texts) > 1:
        for draw in range(4):
            drawn = mix(bits + np.uint64(draw * 0x9E3779B97F4A7C15 % 2**64)) | np.uint64(2**63)
            found = texts[another(np.array([place]), np.array([len(texts)]), drawn)[0]]
            if len(found) >= room:
                return found
    return texts[place]


def packed_pieces(corpus: Corpus, side: str, recipe, count: int) -> list[tuple[str, list[list[int]]]]:
    """The source and the framed pieces of each of the first rows of the order, made without the product's reading.

    A row is what data_prep.packing.pack gives for the pieces of a shard. Pairs are made as data.packed says.
    """
    paired = recipe.segments == "pairs"
    windows = windows_of(corpus, {"sources": "train"}.get(side, side), recipe.length, "packed", paired)
    order, frame = order_of(windows, recipe.sampling_alpha, recipe.seed), 3 if paired else 2
    rows_of = {name: _rows_of(corpus, side, name, recipe.length, frame) for name in windows.names}
    drawn, bits = order(0, count), order.bits(0, count)
    found = []
    for source, row, share in zip(drawn.source, drawn.window, bits, strict=True):
        name = windows.names[source]
        rows = rows_of[name]
        texts, before = [text for each in rows for text in each], sum(map(len, rows[:row]))
        pieces = []
        for number, text in enumerate(rows[row]):
            own = mix(np.array([share]) + np.array([number + 1], np.uint64) * _SPREAD)
            first = int(cut(np.array([len(text)]), own)[0])
            other = _other_text(texts, before + number, own, room := len(text) - first)
            second = min(int(cut(np.array([len(other)]), own)[0]), len(other) - room)
            tail = [*other[second : second + room], 3]
            pieces.append([2, *text[:first], 3, *tail] if paired else [2, *text, 3])
        found.append((name, pieces))
    return found


_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # as data.packed's


def _rows_of(corpus: Corpus, side: str, name: str, length: int, frame: int) -> list[list[list[int]]]:
    """The bare pieces of each row of a source."""
    rows, inner = [], length - frame
    for shard in getattr(corpus, side)[name].shards:
        texts = []
        for document in np.split(np.array(shard.open()), shard.ends()[:-1].astype(int)):
            text = document[:-1].tolist()
            texts += [text[i : i + inner] for i in range(0, len(text), inner)]
        numbers = pack(np.array([len(text) + frame for text in texts]), length)
        rows += [[texts[i] for i in np.flatnonzero(numbers == row)] for row in range(numbers.max() + 1)]
    return rows


def flash_by_hand(operands, offsets, longest, dropout, scaling, reach):
    """What models.attention.flash gives, by maps of all positions, without reading a number of theirs."""
    place = torch.arange(len(operands[0]), device=offsets.device)
    piece = torch.searchsorted(offsets, place.int(), right=True)
    far = piece[:, None] != piece
    if reach is not None:
        far = far | ((place[:, None] - place).abs() > reach)
    q, k, v = (x.transpose(0, 1) for x in operands)
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    weights = (q @ k.mT * scaling).masked_fill(far, -torch.inf).softmax(-1)
    return (torch.nn.functional.dropout(weights, dropout) @ v).transpose(0, 1)


def first_windows(folder: Path, recipe) -> list[list[int]]:
    """The windows of the first step."""
    return doc_windows(open_corpus(folder / "data"), "sources", recipe, recipe.batch)
