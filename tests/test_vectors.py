"""The embedding loss next to a plain loop over pairs of texts, and the counting of texts in packed rows."""

import math

import pytest
import torch

from pipeline.bounds import Bounds, bounds_of_lengths
from pipeline.vectors import SIMILARITIES, vector_losses

COUNTS = (3, 1, 2)  # texts of each row


def some_vectors(width: int, seed: int) -> torch.Tensor:
    """[3, 3, width], fp64; in the place of a text that is not there, one that would show."""
    found = torch.randn(3, 3, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for row, count in enumerate(COUNTS):
        found[row, count:] = 1e3
    return found


def bounds(sequences: float) -> Bounds:
    """Of three rows of six positions: pieces of two positions each, then padding."""
    stop = torch.tensor([[2 * (place // 2) + 2 if place < 2 * count else 0 for place in range(6)] for count in COUNTS])
    first = torch.where(stop > 0, stop - 2, 0)
    return Bounds(first.int(), stop.int(), sequences)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (a.square().sum() * b.square().sum()).sqrt()


def by_hand(teacher: torch.Tensor, student: torch.Tensor, sequences: float) -> dict[str, torch.Tensor]:
    """Text by text and pair by pair."""
    places = [(row, number) for row, count in enumerate(COUNTS) for number in range(count)]
    theirs, own = ([vectors[place] for place in places] for vectors in (teacher, student))
    apart = sum(1 - cosine(t, s) for t, s in zip(theirs, own, strict=True)) / sequences
    pairs = [
        (cosine(theirs[i], theirs[j]) - cosine(own[i], own[j])) ** 2 for i in range(len(own)) for j in range(len(own))
    ]
    similarities = sum(pairs) / len(own) / sequences
    return {"loss": apart + 4 * similarities, "cosine": apart, "similarities": similarities}


@pytest.mark.parametrize("sequences", [6.0, 7.5])  # as many texts as there are, or those of a step's mean row
def test_loss_and_gradient_are_those_of_a_loop_over_pairs(sequences):
    teacher, student = some_vectors(4, 1), some_vectors(4, 2).requires_grad_()
    rows = vector_losses(teacher, student, bounds(sequences))
    expected = by_hand(teacher, student, sequences)
    assert SIMILARITIES == 4
    for name, value in expected.items():
        torch.testing.assert_close(rows[name].mean(), value, rtol=1e-12, atol=1e-15)
    ours, theirs = (torch.autograd.grad(loss, student)[0] for loss in (rows["loss"].mean(), expected["loss"]))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert theirs[0].abs().sum() > 0 and not ours[1, 1:].any()


def test_what_is_learnt_does_not_depend_on_the_vectors_lengths_and_can_reach_zero():
    teacher = some_vectors(5, 1)
    student = teacher * torch.tensor([1.0, 0.1, 7.0], dtype=torch.float64)[:, None, None]
    assert all(abs(float(x.sum())) < 1e-12 for x in vector_losses(teacher, student, bounds(6.0)).values())
    turned = vector_losses(teacher, -teacher, bounds(6.0))
    assert math.isclose(float(turned["cosine"].mean()), 2) and abs(float(turned["similarities"].mean())) < 1e-12


def test_texts_that_are_rows_need_no_bounds_and_have_the_loss_of_padded_ones():
    teacher, student = some_vectors(4, 1)[:, :1], some_vectors(4, 2)[:, :1]
    padded = bounds_of_lengths(torch.tensor([5, 2, 6]), 6)
    for ours, theirs in zip(
        vector_losses(teacher, student).values(), vector_losses(teacher, student, padded).values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_texts_of_a_row_are_counted():
    assert bounds(6).counts().tolist() == list(COUNTS)
    assert bounds_of_lengths(torch.tensor([3, 0, 4]), 4).counts().tolist() == [1, 0, 1]
