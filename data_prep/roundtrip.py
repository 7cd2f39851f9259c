"""``verify --roundtrip``: documents are read and encoded again from their source, and compared with the shards."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from data_prep.cli import UserError
from data_prep.counts import left_out_of
from data_prep.encode import Encoder, load_encoder
from data_prep.files import read_json
from data_prep.formats.by_name import CLEANUPS
from data_prep.guard import NOTHING, LeftOut
from data_prep.inputs import InputFile, describe_file
from data_prep.plan import INPUTS, Plan, places_known, read_plan
from data_prep.shards import SIDES, Corpus, Shard, open_corpus, shard_folder
from data_prep.units import Unit, UnitReader, side_of


def roundtrip(data: Path, count: int) -> tuple[int, list[str]]:
    """Compare documents with their source. Returns the number of those without a finding, and the findings, one line each.

    About ``count`` documents are drawn with equal chance, at least one from each source, train and held out alike; the
    draw is a function of the corpus id and ``count``. Raises UserError if the places of the sources are not known.
    """
    corpus = open_corpus(data)
    plan = read_plan(data)
    if plan is None or not places_known(data):
        raise UserError(
            f"{data}: has no {INPUTS}, so it is not known where the sources are; run the same prepare once more"
        )
    encoder = load_encoder(plan.tokenizer_path)
    if encoder.fingerprint() != corpus.tokenizer:
        raise UserError(f"{plan.tokenizer_path}: is no longer the tokenizer of {data}; put the previous one back")
    for form in sorted({source.format for source in plan.sources.values()}):
        if (was := plan.cleanup(form)) != (now := CLEANUPS.get(form, 1)):
            raise UserError(
                f"{data}: was prepared by version {was} of the clean-up of {form}, and this program has {now}, which gives "
                "other texts; verify without --roundtrip, or prepare with --refresh"
            )
    shards = _Shards(corpus)
    findings, compared = [], 0
    for unit, number in _drawn(plan.all_units(), shards, count, corpus):
        found = _unit_findings(corpus, plan, unit, number, shards, encoder)
        findings += found
        compared += 0 if found else number
    return compared, findings


def _drawn(units: list[Unit], shards: "_Shards", count: int, corpus: Corpus) -> Iterator[tuple[Unit, int]]:
    """Yield (unit, number of its documents to compare), in the order of the files."""
    dice = random.Random(f"{corpus.id} {count}")
    sizes = {unit: there for unit in units if (there := shards.documents(unit))}
    if count >= sum(sizes.values()):
        yield from sizes.items()
        return
    sources = [list(mine) for _, mine in groupby(sizes, key=lambda unit: unit.source)]
    chosen = Counter(dice.choice(mine) for mine in sources)
    chosen.update(dice.choices(list(sizes), list(sizes.values()), k=max(count - len(sources), 0)))
    for unit, there in sizes.items():
        if unit in chosen:
            yield unit, min(chosen[unit], there)


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

    def left_out(self, unit: Unit) -> LeftOut:
        """The documents that were dropped unread, as the unit's receipt says; none if it is missing."""
        try:
            return left_out_of(read_json(shard_folder(self._data, unit.source, "train") / f"{unit.stem}.json"))
        except FileNotFoundError:
            return NOTHING


def _unit_findings(corpus: Corpus, plan: Plan, unit: Unit, number: int, shards: _Shards, encoder: Encoder) -> list[str]:
    """Findings in ``number`` documents of a unit, drawn at random."""
    for file in (*(part.file for part in unit.parts), *filter(None, [unit.templates])):
        if changed := _changed(file):
            return [changed]
    there = shards.documents(unit)
    wanted = {*random.Random(f"{corpus.id} {unit.source} {unit.stem}").sample(range(there), number)}
    read = dict.fromkeys(SIDES, 0)
    try:
        for _, document in UnitReader().documents(unit, shards.left_out(unit)):
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


def _changed(file: InputFile) -> str | None:
    """The finding for a local file that has changed since it was prepared, or is missing; None if it is as it was."""
    try:
        same = file.hub or describe_file(file.path).entry == file.entry
    except UserError as error:
        return f"{error}; put it back, or name the corpus again with its new place"
    return None if same else f"{file.path}: has changed since it was prepared"


def _ids(encoder: Encoder, text: str, all_of_it: bool) -> np.ndarray:
    """The ids of a text, or of its start if it is only to be counted, since texts without any token do occur."""
    ids = encoder.encode_batch([text if all_of_it else text[:64]])[0]
    return ids if len(ids) or all_of_it else encoder.encode_batch([text])[0]


def _holds(shard: Shard | None, index: int, ids: np.ndarray, encoder: Encoder) -> bool:
    """Whether document ``index`` of the shard consists of these ids."""
    if shard is None or index >= shard.documents:
        return False
    ends = shard.ends()
    begin = int(ends[index - 1]) if index else 0
    return np.array_equal(shard.open()[begin : int(ends[index])], np.append(ids, encoder.special["sep"]))
