"""Which pieces of a vocabulary some languages need, and the same tokenizer with these alone.

Pure: counts and the JSON of the ``tokenizers`` library ("spec") go in, arrays and such a JSON come out. An id is the row of
a piece in the word embeddings. Pieces that are kept keep their order, so that the first ones, control tokens as a rule,
stay first.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from math import ceil

import numpy as np

from data_prep.cli import UserError
from data_prep.shards import Source

KINDS = ("WordPiece", "BPE", "Unigram")
_CHUNK = 2**22  # tokens
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def count_pieces(source: Source, rows: int) -> np.ndarray:
    """The frequency of each id in the source's shards, separators too: int64 [rows]. Memory does not depend on them.

    Raises UserError for an id of ``rows`` or more.
    """
    counts = np.zeros(rows, np.int64)
    for shard in source.shards:
        tokens = shard.open()
        for begin in range(0, len(tokens), _CHUNK):
            of_chunk = np.bincount(tokens[begin : begin + _CHUNK], minlength=rows)
            if len(of_chunk) > rows:
                raise UserError(
                    f"{shard.path}: id {len(of_chunk) - 1} is outside the vocabulary of {rows}; "
                    "run python -m data_prep verify --deep"
                )
            counts += of_chunk
    return counts


def covering(counts: np.ndarray, share: float) -> np.ndarray:
    """The fewest ids that make up at least ``share`` (0 to 1) of all occurrences, most frequent first, then by id."""
    order = np.argsort(-counts, kind="stable")
    up_to = np.cumsum(counts[order])
    wanted = ceil(share * float(up_to[-1]) * (1 - 1e-12))  # 0.9999 × 10,000 is not more than 9,999
    return order[: np.searchsorted(up_to, wanted) + 1] if wanted else order[:0]


def pieces_of(spec: dict) -> dict[int, str]:
    """The piece of each id, added tokens too."""
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, list):
        own = {number: piece for number, (piece, _) in enumerate(vocab)}
    else:
        own = {number: piece for piece, number in vocab.items()}
    return own | {token["id"]: token["content"] for token in spec["added_tokens"]}


def fallbacks(spec: dict) -> set[int]:
    """The ids that no trimming may drop, because text would be lost or cut otherwise.

    They are added and control tokens; the pieces that can spell any text: bytes and single characters, and pieces with a
    character that has no piece of its own; and Unigram's piece of the lowest score, from which that of unknown characters
    follows.
    """
    pieces, model = pieces_of(spec), spec["model"]
    known = set(pieces.values())
    kept = {token["id"] for token in spec["added_tokens"]}
    for number, piece in pieces.items():
        letters = _letters(model, piece)
        if len(letters) <= 1 or _BYTE.fullmatch(piece) or not known.issuperset(letters):
            kept.add(number)
    kept |= _ids_outside_model(spec)
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        kept |= {scores.index(min(scores))} | ({model["unk_id"]} - {None})
    elif model.get("unk_token") in model["vocab"]:
        kept.add(model["vocab"][model["unk_token"]])
    return kept


def closed(spec: dict, kept: Iterable[int]) -> set[int]:
    """``kept`` and, for BPE, every piece that is merged on the way to one of them, in whatever way it is made."""
    kept, model = set(kept), spec["model"]
    if model["type"] != "BPE":
        return kept
    made_of: dict[str, set[str]] = defaultdict(set)
    for pair in model["merges"]:
        made_of[_merged(model, *pair)].update(pair)

    pieces, vocab = pieces_of(spec), model["vocab"]
    todo = list(kept)
    while todo:
        parts = {vocab[part] for part in made_of[pieces[todo.pop()]]} - kept
        kept |= parts
        todo += parts
    return kept


def new_ids(kept: Iterable[int], rows: int) -> np.ndarray:
    """The new id of each old one: int32 [rows], -1 for a dropped one."""
    old = np.array(sorted(kept), np.int64)
    new = np.full(rows, -1, np.int32)
    new[old] = np.arange(len(old), dtype=np.int32)
    return new


def trimmed(spec: dict, new: np.ndarray) -> dict:
    """The same tokenizer without the pieces whose ``new`` id [rows] is -1; ``spec`` is left as it is.

    A text whose pieces are all kept is cut as before: WordPiece takes the longest of fewer pieces, Unigram the best of
    fewer ways at the same scores, BPE the first of fewer merges.
    """
    model = dict(spec["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if new[number] >= 0]
        model["unk_id"] = None if model["unk_id"] is None else int(new[model["unk_id"]])
    else:
        by_id = sorted((number, piece) for piece, number in model["vocab"].items())
        model["vocab"] = vocab = {piece: int(new[number]) for number, piece in by_id if new[number] >= 0}
    if model["type"] == "BPE":
        merges = [(pair, _merged(model, *pair)) for pair in model["merges"]]
        model["merges"] = [pair for pair, merged in merges if vocab.keys() >= {*pair, merged}]
    return _renumbered(spec, lambda number: int(new[number])) | {"model": model}


def _letters(model: dict, piece: str) -> list[str]:
    """The single-character pieces that would spell ``piece``."""
    inside = model.get("continuing_subword_prefix") or ""
    end = model.get("end_of_word_suffix") or ""
    first = inside if inside and piece.startswith(inside) and piece != inside else ""
    last = end if end and piece.endswith(end) and piece != end else ""
    letters = [inside + letter for letter in piece[len(first) : len(piece) - len(last)]]
    if letters:
        letters[0] = first + letters[0][len(inside) :]
        letters[-1] += last
    return letters


def _merged(model: dict, left: str, right: str) -> str:
    """The piece that a merge of BPE makes."""
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _ids_outside_model(spec: dict) -> set[int]:
    """The ids that the spec names outside its model."""
    found = set()

    def note(number: int) -> int:
        found.add(number)
        return number

    _renumbered(spec, note)
    return found


def _renumbered(spec: dict, new: Callable[[int], int]) -> dict:
    """The spec with other ids wherever it names some outside its model."""
    changed: dict = {"added_tokens": [token | {"id": new(token["id"])} for token in spec["added_tokens"]]}
    if spec["post_processor"]:
        changed["post_processor"] = _renumbered_processor(spec["post_processor"], new)
    if spec["padding"]:
        changed["padding"] = spec["padding"] | {"pad_id": new(spec["padding"]["pad_id"])}
    return spec | changed


def _renumbered_processor(part: dict, new: Callable[[int], int]) -> dict:
    kind = part["type"]
    if kind == "Sequence":
        return part | {"processors": [_renumbered_processor(each, new) for each in part["processors"]]}
    if kind == "TemplateProcessing":
        tokens = {name: token | {"ids": list(map(new, token["ids"]))} for name, token in part["special_tokens"].items()}
        return part | {"special_tokens": tokens}
    if kind in ("BertProcessing", "RobertaProcessing"):
        return part | {role: [part[role][0], new(part[role][1])] for role in ("sep", "cls")}
    return part
