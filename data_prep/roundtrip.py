"""``verify --roundtrip``: documents of the shards, read once more from their source and encoded once more."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from data_prep.encode import Encoder, load_encoder
from data_prep.errors import UserError
from data_prep.plan import INPUTS, Plan, read_plan
from data_prep.shards import Corpus, Shard, open_corpus, shard_folder
from data_prep.units import Unit, UnitReader, side_of

SIDES = ("train", "heldout")


def roundtrip(data: Path, count: int) -> tuple[int, list[str]]:
    """How many documents were compared, and what was found, one line each.

    ``count`` documents are drawn from all units with equal chance, at least one from each source, train and held out
    alike; the draw is a function of the corpus id and ``count``. Raises UserError if the sources are not to be had.
    """
    corpus = open_corpus(data)
    plan = read_plan(data)
    if plan is None:
        raise UserError(
            f"{data}: has no {INPUTS}, so it is not known where the sources lie; run the same prepare once more"
        )
    encoder = load_encoder(plan.tokenizer_path)
    if encoder.fingerprint() != corpus.tokenizer:
        raise UserError(f"{plan.tokenizer_path}: is no longer the tokenizer of {data}; put that one back")
    shards = _Shards(corpus)
    findings, compared = [], 0
    for unit, number in _drawn(plan.all_units(), shards, count, corpus):
        compared += number
        findings += _unit_findings(corpus, plan, unit, number, shards, encoder)
    return compared, findings


def _drawn(units: list[Unit], shards: "_Shards", count: int, corpus: Corpus) -> Iterator[tuple[Unit, int]]:
    """(unit, how many of its documents to compare), in the order of the files."""
    dice = random.Random(f"{corpus.id} {count}")
    units = [unit for unit in units if shards.documents(unit)]
    sources = [list(mine) for _, mine in groupby(units, key=lambda unit: unit.source)]
    chosen = Counter(dice.choice(mine) for mine in sources)
    chosen.update(dice.choices(units, k=max(count - len(sources), 0)))
    for unit in units:
        if unit in chosen:
            yield unit, min(chosen[unit], shards.documents(unit))


class _Shards:
    """The shards of a corpus that hold documents, by unit."""

    def __init__(self, corpus: Corpus):
        self._data = corpus.path
        everything = (*corpus.sources.values(), *corpus.heldout.values())
        self._by_path = {shard.path: shard for source in everything for shard in source.shards}

    def of(self, unit: Unit, side: str) -> Shard | None:
        return self._by_path.get(shard_folder(self._data, unit.source, side) / f"{unit.stem}.tokens.npy")

    def documents(self, unit: Unit) -> int:
        return sum(shard.documents for side in SIDES if (shard := self.of(unit, side)))


def _unit_findings(corpus: Corpus, plan: Plan, unit: Unit, number: int, shards: _Shards, encoder: Encoder) -> list[str]:
    """Findings in ``number`` documents of a unit, drawn at random."""
    there = shards.documents(unit)
    wanted = {*random.Random(f"{corpus.id} {unit.source} {unit.stem}").sample(range(there), number)}
    read = dict.fromkeys(SIDES, 0)
    try:
        for _, document in UnitReader().documents(unit):
            compare = sum(read.values()) in wanted
            if document.dropped or not len(ids := _ids(encoder, document.text, compare)):
                continue
            side = side_of(document.text, plan.heldout)
            if compare and not _holds(shards.of(unit, side), read[side], ids, encoder):
                return [f"{unit}: document {read[side]} of {side} is not what its source gives now"]
            read[side] += 1
            if sum(read.values()) > max(wanted):
                return []
    except UserError as error:
        return [f"{unit}: cannot be read again: {error}"]
    return [f"{unit}: its source gives {sum(read.values())} documents, its shards hold {there}"]


def _ids(encoder: Encoder, text: str, all_of_it: bool) -> np.ndarray:
    """The ids of a text; of one that is only to be counted, those of its start, for texts without any token do occur."""
    ids = encoder.encode_batch([text if all_of_it else text[:64]])[0]
    return ids if len(ids) or all_of_it else encoder.encode_batch([text])[0]


def _holds(shard: Shard | None, index: int, ids: np.ndarray, encoder: Encoder) -> bool:
    """Whether document ``index`` of the shard is these ids."""
    if shard is None or index >= shard.documents:
        return False
    ends = shard.ends()
    begin = int(ends[index - 1]) if index else 0
    return np.array_equal(shard.open()[begin : int(ends[index])], np.append(ids, encoder.special["sep"]))
