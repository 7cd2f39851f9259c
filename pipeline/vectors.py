"""The embedding loss: how a student's vectors of texts differ from its teacher's. Pure torch, without any model.

Of n texts with the vectors t and s, teacher's and student's, which are compared by their cosines as their users do:

    cosine        mean over i of       1 − cos(t_i, s_i)
    similarities  mean over i and j of (cos(t_i, t_j) − cos(s_i, s_j))²
    loss          cosine + 4 · similarities

The second says which texts are near each other, and needs no common space: it is what a task of similarity or retrieval reads.
"""

import torch
from torch import Tensor, nn

from pipeline.bounds import Bounds

SIMILARITIES = 4.0  # what their mean squared difference counts for, next to the cosine


def vector_losses(teacher: Tensor, student: Tensor, bounds: Bounds | None = None) -> dict[str, Tensor]:
    """The loss and its parts of each row of a batch, float [B], in such a proportion that their mean is the batch's.

    ``teacher``, ``student``: [B, S, width], the vectors of up to S texts in a row, the first ones. ``bounds`` say how many
    there are, and of how many texts a loss is the mean; None: each row is S texts. A text is compared with all others of the
    batch, itself included.
    """
    rows, slots, _ = student.shape
    counts = teacher.new_full((rows,), slots) if bounds is None else bounds.counts()
    total = rows * slots if bounds is None else bounds.sequences
    real = (torch.arange(slots, device=student.device) < counts[:, None]).flatten().to(student.dtype)

    theirs, own = (nn.functional.normalize(x, dim=-1).flatten(0, 1) for x in (teacher, student))
    cosine = 1 - (theirs * own).sum(-1)
    difference = (theirs @ theirs.T - own @ own.T).square() * real
    similarities = difference.sum(-1) / real.sum().clamp(min=1)
    of_rows = [(x * real).unflatten(0, (rows, slots)).sum(1) * (rows / total) for x in (cosine, similarities)]
    return {"loss": of_rows[0] + SIMILARITIES * of_rows[1], "cosine": of_rows[0], "similarities": of_rows[1]}
