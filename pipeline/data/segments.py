"""Pairs of segments, as BERT reads them: [CLS] A [SEP] B [SEP], where B continues A or is a piece of another place.

BERT and ELECTRA have an embedding for the second segment (token type 1), and every task of two texts uses it. BERT was
trained on pairs (arXiv 1810.04805, section 3.1): half of the time B is what follows A. So sample number g is made of two
windows of one source: its own, and for half of the samples any other of the source; for the other half the same again. Both are
cut at the same share of their tokens, A is the first part of the one, B the second part of the other. The share, the choice and
the other window follow from g alone, like the window itself (order.py).
"""

import numpy as np
import torch

from pipeline.data.inputs import Inputs
from pipeline.data.order import Order
from pipeline.data.windows import Windows


def read_pairs(windows: Windows, order: Order, start: int, stop: int) -> Inputs:
    """Samples ``start`` … ``stop`` − 1 of the order as pairs; ``windows`` are of length − 3 tokens at most.

    A source, or a shard where these come in turn, that has a single window gives continuations only. Raises UserError naming
    the shard that holds an id outside the vocabulary.
    """
    source, _, window = order(start, stop)
    bits = order.bits(start, stop)
    first, count = windows.others(source, window, near=order.in_turn)
    other = first + another(window - first, count, bits)
    elsewhere = np.flatnonzero(other != window)

    tokens, sizes = windows.texts(np.append(source, source[elsewhere]), np.append(window, other[elsewhere]))
    behind = np.arange(len(source))  # row of the window whose second part is B
    behind[elsewhere] = len(source) + np.arange(len(elsewhere))
    cuts = cut(sizes[: len(source)], bits), cut(sizes[behind], bits)
    return _framed(windows, tokens[: len(source)], cuts[0], tokens[behind], cuts[1], sizes[behind])


def another(window: np.ndarray, count: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The window whose second part is B, of ``count`` in the source: the same one for half of all ``bits``; int64 [n]."""
    drawn = ((bits & _LOW) * (np.maximum(count, 2) - 1).astype(np.uint64) >> np.uint64(32)).astype(np.int64)
    elsewhere = (bits >> np.uint64(63) == 1) & (count > 1)
    return np.where(elsewhere, drawn + (drawn >= window), window)


def cut(size: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """How many of ``size`` tokens come before the cut: uniform in 1 … size − 1; 1 if there is but one; int64 [n]."""
    share = bits >> np.uint64(32) & np.uint64(2**31 - 1)
    return 1 + (share * (size - 1).astype(np.uint64) >> np.uint64(31)).astype(np.int64)


_LOW = np.uint64(2**32 - 1)


def _framed(
    windows: Windows, a: np.ndarray, a_stop: np.ndarray, b: np.ndarray, b_start: np.ndarray, b_stop: np.ndarray
) -> Inputs:
    """[CLS] A [SEP] B [SEP] of the tokens ``a`` before ``a_stop`` and ``b`` from ``b_start`` to ``b_stop``.

    Tokens are [n, inner], places [n].
    """
    rows, columns, inner = np.arange(len(a)), np.arange(windows.length), np.arange(windows.inner)
    middle = a_stop + 1  # where the first [SEP] stands
    end = middle + 1 + b_stop - b_start
    second = (columns > middle[:, None]) & (columns <= end[:, None])

    ids = np.full((len(a), windows.length), windows.padding or 0, np.int64)
    # Masks are read row by row, and a row has as many places on both sides.
    ids[(columns > 0) & (columns < middle[:, None])] = a[inner < a_stop[:, None]]
    ids[second & (columns < end[:, None])] = b[(inner >= b_start[:, None]) & (inner < b_stop[:, None])]
    ids[:, 0] = windows.special["cls"]
    ids[rows, middle] = ids[rows, end] = windows.special["sep"]
    lengths = None if windows.padding is None else torch.from_numpy(end + 1)
    return Inputs(torch.from_numpy(ids), torch.from_numpy(second), lengths)
