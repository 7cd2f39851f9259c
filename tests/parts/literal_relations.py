"""The relation loss written out slowly, one sequence, head and query at a time: what the fast one is tested against."""

import math

import torch


def literal_relation_loss(teacher, student, pairs, heads, lengths):
    """The papers' formula with Python loops; ``teacher`` and ``student`` are (q, k, v) of [B, T, width] in fp64."""
    batch = teacher[0].shape[0]
    total = {}
    for pair in pairs:
        a, b = ("qkv".index(letter) for letter in pair)
        loss = 0.0
        for i in range(batch):
            n = int(lengths[i])
            for h in range(heads):
                for query in range(n):
                    p = row(teacher[a], teacher[b], i, h, heads, query, n)
                    q = row(student[a], student[b], i, h, heads, query, n)
                    loss = loss + sum(p[j] * torch.log(p[j] / q[j]) for j in range(n)) / (batch * heads * n)
        total[pair] = loss
    return {"loss": sum(total.values()), **total}


def row(a, b, i, h, heads, query, n):
    """One query's distribution over the real keys of sequence i, head h."""
    width = a.shape[-1] // heads
    columns = slice(h * width, (h + 1) * width)
    scores = b[i, :n, columns] @ a[i, query, columns] / math.sqrt(width)
    return torch.exp(scores) / torch.exp(scores).sum()
