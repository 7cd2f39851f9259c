"""What a unit's receipt and a corpus's manifest count."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_prep.formats.readers import Document
from data_prep.guard import LeftOut

# Reasons for which the user is told in which files documents were dropped.
DAMAGED = ("torn", "broken_xml", "over_time", "crashed_parser", "unparsable")

_NAMES = 100  # of templates, the most common ones

Names = list[list[Any]]  # [name, count], the most common first


class Counts:
    """Counts over the documents of a unit, those of both sides together."""

    def __init__(self, parts: int):
        """``parts``: of the unit."""
        self.dropped: Counter[str] = Counter()  # by reason
        self._read = [0] * parts
        self._characters = [0] * parts  # of the documents that are kept
        self._invalid = [0] * parts  # characters that stand for bytes that are not UTF-8
        self._repairs: Counter[str] = Counter()
        self._damaged: Counter[tuple[int, str]] = Counter()
        self._words = 0
        self._beside: Counter[str] = Counter()

    def add(self, part: int, document: Document) -> None:
        """Count a document of that part as read, and as dropped or kept."""
        self._read[part] += 1
        if document.repairs:
            self._repairs.update(document.repairs)
        if document.dropped:
            self.dropped[document.dropped] += 1
            if document.dropped in DAMAGED:
                self._damaged[part, document.dropped] += 1
            return
        self._characters[part] += len(document.text)
        if document.repairs:
            self._invalid[part] += document.repairs["invalid_utf8"]
        if document.words:
            self._words += document.words
            self._beside.update(document.beside)

    def receipt(self, left_out: LeftOut) -> dict[str, Any]:
        """The part of a receipt that counts. ``left_out``: the documents that were dropped unread."""
        names, others = most_common(self._beside)
        return {
            "read": self._read,
            "characters": self._characters,
            "invalid": self._invalid,
            "dropped": self.dropped,
            "repairs": self._repairs,
            "damaged": [[part, reason, count] for (part, reason), count in sorted(self._damaged.items())],
            "left_out": [[*where, reason] for where, reason in sorted(left_out.items())],
            "words": self._words,
            "beside": names,
            "beside_others": others,
        }


def left_out_of(receipt: dict[str, Any]) -> dict[tuple[int, int], str]:
    """The documents of a unit that were dropped unread, as its receipt has them."""
    return {(part, document): reason for part, document, reason in receipt.get("left_out", [])}


def most_common(counts: Counter[str]) -> tuple[Names, int]:
    """The 100 most common names by count, then by name, and the sum of the others."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [list(item) for item in ordered[:_NAMES]], sum(count for _, count in ordered[_NAMES:])


def summed_names(receipts: list[dict[str, Any]]) -> dict[str, Any]:
    """The words of all receipts, and the templates beside them. An earlier version's receipt has neither."""
    total: Counter[str] = Counter()
    for receipt in receipts:
        total.update(dict(receipt.get("beside", [])))
    names, others = most_common(total)
    others += sum(receipt.get("beside_others", 0) for receipt in receipts)
    return {
        "words": sum(receipt.get("words", 0) for receipt in receipts),
        "beside": names,
        "beside_others": others,
    }


def summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sum of counts by name."""
    total: Counter[str] = Counter()
    for more in counts:
        total.update(more)
    return dict(total)
