"""pipeline.relations against the literal formula, and against a model's own attention."""

import functools
import itertools

import pytest
import torch
from transformers import BertConfig, BertModel

from pipeline import relations
from pipeline.bounds import Bounds, bounds_of_lengths
from pipeline.models.cut import cut_encoder
from pipeline.pairs import PAIRS
from pipeline.relations import QKV, divergence_and_gradient, relation, relation_loss, value_mse
from tests.parts.literal_relations import literal_relation_loss


def random_qkv(batch, length, width, seed, dtype=torch.float64, grad=False):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(batch, length, width, generator=generator, dtype=torch.float64) for _ in range(3)]
    return QKV(*(t.to(dtype).requires_grad_(grad) for t in tensors))


torch._dynamo.config.recompile_limit = 64
torch._dynamo.config.fail_on_recompile_limit_hit = True  # beyond it, "compiled" would silently mean "eager"
COMPILED = torch.compile(divergence_and_gradient, dynamic=True)


def both(batch, length, widths, pairs, heads, lengths, dtype, divergence=divergence_and_gradient):
    """(fast losses, fast gradients, literal losses, literal gradients) on the same numbers."""
    sizes = batch, length, *widths
    teacher, student, exact, exact_grads = literal(sizes, pairs, heads, tuple(lengths or [length] * batch))
    fast_teacher = QKV(*(t.detach().to(dtype) for t in teacher))
    fast_student = QKV(*(t.detach().to(dtype).requires_grad_() for t in student))
    fast = relation_loss(
        fast_teacher, fast_student, pairs, heads, None if lengths is None else torch.tensor(lengths), divergence
    )
    grads = torch.autograd.grad(fast["loss"], fast_student, allow_unused=True)
    return fast, grads, exact, exact_grads


@functools.cache
def literal(sizes, pairs, heads, lengths):
    """(teacher, student, losses, gradients) by the literal formula, for random numbers of sizes (B, T, widths)."""
    batch, length, *widths = sizes
    teacher = random_qkv(batch, length, widths[0], 1)
    student = random_qkv(batch, length, widths[1], 2, grad=True)
    losses = literal_relation_loss(teacher, student, pairs, heads, lengths)
    return teacher, student, losses, torch.autograd.grad(losses["loss"], student, allow_unused=True)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("pairs", [("qk", "vv"), ("qq", "kk", "vv"), ("qv",), ("kv",), ("vq", "kq")])
@pytest.mark.parametrize("block", [1, 100, 700, 2**22])  # bytes: a row, some rows, a map or two, everything
@pytest.mark.parametrize("divergence", [divergence_and_gradient, COMPILED], ids=["eager", "compiled"])
@pytest.mark.parametrize("lengths", [None, [7, 1, 4]], ids=["full", "padded"])
def test_loss_and_gradients_equal_the_literal_formula(monkeypatch, dtype, tolerance, pairs, block, divergence, lengths):
    monkeypatch.setattr(relations, "block_bytes", lambda device: block)
    fast, grads, exact, exact_grads = both(3, 7, (24, 16), pairs, 2, lengths, dtype, divergence)
    for name in ("loss", *pairs):
        assert abs(fast[name].item() - exact[name].item()) < tolerance
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert (grad is None) == (exact_grad is None)
        if grad is not None:
            assert (grad.double() - exact_grad).abs().max() < tolerance


def test_heads_of_width_eight_in_the_student_and_sixteen_in_the_teacher():
    fast, grads, exact, exact_grads = both(2, 5, (64, 32), ("qq", "kk", "vv"), 4, [5, 3], torch.float32)
    assert abs(fast["loss"].item() - exact["loss"].item()) < 1e-6
    assert all((g.double() - e).abs().max() < 1e-6 for g, e in zip(grads, exact_grads, strict=True))


def test_the_gradient_follows_the_weight_given_to_each_relation():
    teacher, student = random_qkv(2, 6, 8, 1), random_qkv(2, 6, 8, 2, grad=True)
    losses = relation_loss(teacher, student, ("qk", "vv"), 2)
    weighted = torch.autograd.grad(3 * losses["qk"] + 0.5 * losses["vv"], student)
    alone = relation_loss(teacher, student, ("qk", "vv"), 2)
    q, k = torch.autograd.grad(alone["qk"], student[:2])
    (v,) = torch.autograd.grad(alone["vv"], student[2:])
    for got, expected in zip(weighted, (3 * q, 3 * k, 0.5 * v), strict=True):
        torch.testing.assert_close(got, expected)


def test_the_closed_form_gradient_passes_gradcheck():
    teacher, student = random_qkv(2, 4, 6, 1), random_qkv(2, 4, 6, 2, grad=True)
    lengths = torch.tensor([4, 2])
    assert torch.autograd.gradcheck(
        lambda q, k, v: relation_loss(teacher, QKV(q, k, v), ("qk", "qq", "vv"), 3, lengths)["loss"], tuple(student)
    )


def test_padding_never_changes_the_loss_or_the_gradient():
    lengths = torch.tensor([6, 2, 4])
    results = []
    for filler in (0.0, 37.0):
        teacher, student = random_qkv(3, 6, 8, 1), random_qkv(3, 6, 8, 2)
        for x in (*teacher, *student):
            for i, n in enumerate(lengths):
                x[i, n:] = filler
        student = QKV(*(x.requires_grad_() for x in student))
        loss = relation_loss(teacher, student, ("qk", "vv"), 2, lengths)["loss"]
        results.append((loss.detach(), *torch.autograd.grad(loss, student)))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
    for grad in results[0][1:]:
        assert torch.equal(grad[1, 2:], torch.zeros_like(grad[1, 2:]))


def test_a_batch_is_the_mean_of_its_sequences():
    teacher, student, lengths = random_qkv(3, 6, 8, 1), random_qkv(3, 6, 8, 2), torch.tensor([6, 3, 1])
    whole = relation_loss(teacher, student, ("qk",), 2, lengths)["loss"]
    one_by_one = [
        relation_loss(*(QKV(*(x[i : i + 1, :n] for x in qkv)) for qkv in (teacher, student)), ("qk",), 2)["loss"]
        for i, n in enumerate(lengths)
    ]
    torch.testing.assert_close(whole, torch.stack(one_by_one).mean())


def test_an_empty_sequence_adds_nothing():
    teacher, student = random_qkv(2, 5, 8, 1), random_qkv(2, 5, 8, 2, grad=True)
    loss = relation_loss(teacher, student, ("qk", "vv"), 2, torch.tensor([5, 0]))["loss"]
    grads = torch.autograd.grad(loss, student)
    alone = relation_loss(*(QKV(*(x[:1] for x in m)) for m in (teacher, student)), ("qk", "vv"), 2)["loss"]
    torch.testing.assert_close(loss, alone / 2)
    assert all(not grad[1].any() and grad[0].isfinite().all() for grad in grads)


@pytest.mark.parametrize("divergence", [divergence_and_gradient, COMPILED], ids=["eager", "compiled"])
def test_identical_models_have_no_loss_and_no_gradient(divergence):
    teacher = random_qkv(2, 9, 12, 1, torch.float32)
    student = QKV(*(x.clone().requires_grad_() for x in teacher))
    loss = relation_loss(teacher, student, PAIRS, 3, divergence=divergence)["loss"]
    assert loss.item() == 0.0
    assert all(not grad.any() for grad in torch.autograd.grad(loss, student))


@pytest.mark.parametrize("numbers", [1, 20, 49, 50, 98, 7 * 7 * 5, 10**6])
def test_blocks_cover_everything_and_stay_below_their_size(numbers):
    batch, heads, length = 3, 5, 7
    sequences, block_heads, rows = relations.block_shape(batch, heads, length, numbers)
    assert sequences * block_heads * rows * length <= max(numbers, length)
    assert sequences == 1 or (block_heads == heads and rows == length)
    assert block_heads == 1 or rows == length
    for whole, part in ((batch, sequences), (heads, block_heads), (length, rows)):
        covered = [i for piece in relations.slices(whole, part) for i in range(piece.start, piece.stop)]
        assert covered == list(range(whole))


def test_logits_that_are_far_apart_give_no_infinity():
    """Rows whose exponentials under- and overflow fp32 by far."""
    teacher = QKV(*(1000 * x for x in random_qkv(1, 6, 8, 1, torch.float32)))
    student = QKV(*(1000 * x.detach() for x in random_qkv(1, 6, 8, 2, torch.float32)))
    student = QKV(*(x.requires_grad_() for x in student))
    loss = relation_loss(teacher, student, ("qk", "vv"), 2)["loss"]
    assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, student, allow_unused=True))


def test_without_gradients_their_products_are_not_made(monkeypatch):
    teacher, student = random_qkv(2, 4, 8, 1), random_qkv(2, 4, 8, 2, grad=True)
    expected = relation_loss(teacher, student, ("qk", "vv"), 2)["loss"].detach()
    monkeypatch.setattr(torch.Tensor, "baddbmm_", lambda *_: pytest.fail("a product for a gradient"))
    with torch.no_grad():
        assert torch.equal(relation_loss(teacher, student, ("qk", "vv"), 2)["loss"], expected)
    with pytest.raises(pytest.fail.Exception):
        relation_loss(teacher, student, ("qk", "vv"), 2)


def test_plain_tuples_serve_as_well():
    teacher, student = random_qkv(2, 4, 8, 1), random_qkv(2, 4, 8, 2)
    loss = relation_loss(tuple(teacher), tuple(student), ("qk", "vv"), 2)["loss"]
    assert torch.equal(loss, relation_loss(teacher, student, ("qk", "vv"), 2)["loss"])


def test_gradients_reach_the_student_only():
    teacher, student = random_qkv(1, 4, 8, 1, grad=True), random_qkv(1, 4, 8, 2, grad=True)
    relation_loss(teacher, student, ("qk", "vv"), 2)["loss"].backward()
    assert all(x.grad is None for x in teacher)
    assert all(x.grad is not None for x in student)


def test_autocast_and_bf16_inputs_do_not_lower_the_precision_inside():
    teacher, student = (random_qkv(2, 16, 32, seed, torch.bfloat16) for seed in (1, 2))
    exact = relation_loss(QKV(*(x.double() for x in teacher)), QKV(*(x.double() for x in student)), ("qk",), 4)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = relation_loss(teacher, student, ("qk",), 4)["loss"]
    assert loss.dtype == torch.float32
    assert abs(float(loss) - float(exact)) < 1e-6


def test_qk_with_the_models_own_heads_is_its_own_attention():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    model = BertModel(config, add_pooling_layer=False).eval()
    model.set_attn_implementation("eager")
    ids = torch.randint(5, 50, (2, 11))
    with torch.no_grad():
        attention = model(ids, output_attentions=True).attentions[-1]
        qkv = cut_encoder(model, layer=2)(ids)
    torch.testing.assert_close(relation(qkv.q, qkv.k, 4), attention, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"heads": 3}, "heads = 3 does not divide the teacher's width 16"),
        ({"heads": 16}, "heads = 16 does not divide the student's width 8"),
        ({"heads": 0}, "heads = 0 does not divide"),
        ({"pairs": ("qx",)}, "pairs = ('qx',)"),
        ({"pairs": ("qk", "qk")}, "different pairs"),
        ({"pairs": ()}, "pairs = ()"),
        ({"lengths": torch.tensor([1])}, "need one for each of the 2 sequences"),
        ({"lengths": torch.tensor([4, 5])}, "lengths = [4, 5]: each must be 0 to T = 4"),
        ({"lengths": torch.tensor([-1, 4])}, "lengths = [-1, 4]: each must be 0 to T = 4"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"pairs": ("qk",), "heads": 2, "lengths": None} | change
    with pytest.raises(ValueError) as error:
        relation_loss(random_qkv(2, 4, 16, 1), random_qkv(2, 4, 8, 2), **arguments)
    assert message in str(error.value)


def test_different_batch_shapes_are_named():
    with pytest.raises(ValueError, match=r"student.q is \(2, 5, 8\)"):
        relation_loss(random_qkv(2, 4, 8, 1), random_qkv(2, 5, 8, 2), ("qk",), 2)


def test_the_difference_of_values_is_a_mean_over_what_is_real():
    teacher, student = random_qkv(3, 7, 12, 1).v.requires_grad_(), random_qkv(3, 7, 12, 2, grad=True).v
    lengths = [7, 1, 4]
    expected = sum(
        float(sum((teacher[i, t, j] - student[i, t, j]) ** 2 for t in range(n) for j in range(12))) / (3 * n * 12)
        for i, n in enumerate(lengths)
    )
    loss = value_mse(teacher, student, torch.tensor(lengths))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert teacher.grad is None and not student.grad[1, 1:].any() and student.grad[2, 3].any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert value_mse(teacher.float(), student.float()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"the teacher's values are \(3, 7, 12\), the student's \(3, 7, 11\)"):
        value_mse(teacher, student[..., :11])


# --- rows of several sequences ----------------------------------------------------------------------------------------

PIECES = [[3, 4, 1], [8], [], [5, 1]]  # positions of each row's sequences; the rest of 8 is padding


def bounds_of(rows=PIECES, length=8, sequences=None):
    """Bounds of sequences one after the other in rows of ``length`` positions."""
    first, stop = torch.zeros(len(rows), length, dtype=torch.int32), torch.zeros(len(rows), length, dtype=torch.int32)
    for row, sizes in enumerate(rows):
        for begin, end in itertools.pairwise(itertools.accumulate(sizes, initial=0)):
            first[row, begin:end], stop[row, begin:end] = begin, end
    return Bounds(first, stop, sequences or sum(map(len, rows)))


def one_by_one(rows=PIECES):
    """Row and positions of each sequence."""
    return [
        (slice(row, row + 1), slice(begin, end))
        for row, sizes in enumerate(rows)
        for begin, end in itertools.pairwise(itertools.accumulate(sizes, initial=0))
    ]


def of_packed(dtype, pairs, heads, bounds, divergence=divergence_and_gradient):
    """Losses and gradients of random numbers by ``bounds``; what is padding is far off."""
    teacher, student = (QKV(*(x.to(dtype) for x in random_qkv(4, 8, *of))) for of in ((24, 1), (16, 2)))
    for x in (*teacher, *student):
        x[bounds.stop == 0] = 37.0
    student = QKV(*(x.requires_grad_() for x in student))
    losses = relation_loss(teacher, student, pairs, heads, None, divergence, None, bounds)
    return losses, torch.autograd.grad(losses["loss"], student, allow_unused=True, materialize_grads=True)


@functools.cache
def literal_of_packed(pairs, heads):
    """The same by the literal formula, of each sequence alone."""
    teacher, student = random_qkv(4, 8, 24, 1), random_qkv(4, 8, 16, 2, grad=True)
    found = [
        literal_relation_loss([x[where] for x in teacher], [x[where] for x in student], pairs, heads, [size])
        for where in one_by_one()
        for size in [where[1].stop - where[1].start]
    ]
    losses = {name: sum(each[name] for each in found) / len(found) for name in ("loss", *pairs)}
    return losses, torch.autograd.grad(losses["loss"], student, allow_unused=True, materialize_grads=True)


def assert_same(ours, theirs, tolerance):
    for name, loss in theirs[0].items():
        assert abs(float(ours[0][name]) - float(loss)) < tolerance
    for grad, exact in zip(ours[1], theirs[1], strict=True):
        assert (grad.double() - exact.double()).abs().max() < tolerance


@pytest.mark.parametrize("readable", [True, False], ids=["by sequence", "by mask"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("pairs, heads", [(("qk", "vv"), 2), (("qq", "kk", "vv"), 8), (("vq",), 4)])
@pytest.mark.parametrize("block", [1, 100, 700, 2**22])
def test_sequences_that_share_a_row_are_each_as_if_alone(monkeypatch, readable, dtype, tolerance, pairs, heads, block):
    monkeypatch.setattr(relations, "block_bytes", lambda device: block)
    monkeypatch.setattr(relations, "_readable", lambda x: readable)
    found = of_packed(dtype, pairs, heads, bounds_of())
    assert_same(found, literal_of_packed(pairs, heads), tolerance)
    for grad in found[1]:
        assert not grad[2].any() and not grad[3, 6:].any()


@pytest.mark.parametrize("divergence", [divergence_and_gradient, COMPILED], ids=["eager", "compiled"])
@pytest.mark.parametrize("lengths", [[8, 0, 3, 1], [0, 0, 5, 0]])
def test_masks_give_what_sequences_cut_out_give(monkeypatch, divergence, lengths):
    """A device whose numbers cannot be read without waiting is given masks."""
    for bounds in (bounds_of(), bounds_of_lengths(torch.tensor(lengths), 8)):
        found = {}
        for readable in (True, False):
            monkeypatch.setattr(relations, "_readable", lambda x, readable=readable: readable)
            found[readable] = of_packed(torch.float32, ("qk", "vv"), 2, bounds, divergence)
        assert_same(found[False], found[True], 1e-6)
        assert all(not grad[bounds.stop == 0].any() for each in found.values() for grad in each[1])


def test_sequences_of_a_step_are_counted_not_those_of_a_batch():
    part, whole = (of_packed(torch.float64, ("qk", "vv"), 2, bounds_of(sequences=n)) for n in (3.5, 7))
    assert_same(part, ({name: 2 * loss for name, loss in whole[0].items()}, [2 * x for x in whole[1]]), 1e-12)


def test_bounds_that_do_not_fit_are_named():
    teacher, student = random_qkv(4, 8, 24, 1), random_qkv(4, 8, 16, 2)
    lengths = torch.tensor([8, 8, 8, 8])
    for loss in (
        lambda *told: relation_loss(teacher, student, ("qk",), 2, told[0], bounds=told[1]),
        lambda *told: value_mse(student.q, student.v, *told),
    ):
        with pytest.raises(ValueError, match=r"^lengths and bounds: give one of them$"):
            loss(lengths, bounds_of())
        with pytest.raises(ValueError, match=r"^bounds are of \(4, 9\), the batch is \(4, 8\)$"):
            loss(None, bounds_of(length=9))


def test_the_difference_of_values_is_a_mean_over_each_sequence_that_shares_a_row():
    teacher, student = random_qkv(4, 8, 12, 1).v, random_qkv(4, 8, 12, 2, grad=True).v
    loss = value_mse(teacher, student, bounds=bounds_of())
    alone = torch.stack([value_mse(teacher[where], student[where]) for where in one_by_one()]).mean()
    torch.testing.assert_close(loss, alone, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(each, student)[0] for each in (loss, alone))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    assert not ours[2].any() and not ours[3, 6:].any()
