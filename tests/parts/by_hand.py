"""The loss of an untrained student without the product's reading and loss: window by window, by the literal formula."""

from pathlib import Path

import numpy as np
import torch

from data_prep.shards import Corpus, open_corpus
from pipeline.data.documents import DocWindows
from pipeline.data.reading import order_of
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
    student_model = build_student(student_config_of(recipe, teacher_model.config), recipe.seed)
    student = cut_encoder(student_model, student_layer)
    if "v_mse" in recipe.pairs:
        student = split(student_model, value_width=teacher_model.config.hidden_size, seed=recipe.seed)[0]
    return cut_encoder(teacher_model, teacher_layer).eval(), student.eval()


def loss_by_hand(recipe, windows: list[list[int]], student_layer: int = 2, teacher_layer: int = 3) -> list[float]:
    """loss, qk, vv of the untrained student: each window alone and unpadded, by the literal formula, then their mean.

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
            losses = literal_relation_loss(*outputs, recipe.pairs, recipe.relation_heads, [len(window)])
            rows.append([float(loss) for loss in losses.values()])
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


def first_windows(folder: Path, recipe) -> list[list[int]]:
    """The windows of the first step."""
    return doc_windows(open_corpus(folder / "data"), "sources", recipe, recipe.batch)
