"""The fused loss against the formula in fp64, in Triton's interpreter."""

import pytest
import torch

from pipeline.fused import twin
from pipeline.fused.choice import literal
from pipeline.relations import QKV, relation_loss

pytest.importorskip("triton")

import triton
import triton.language as tl

from pipeline.bounds import Bounds, bounds_of_lengths
from pipeline.fused import kernels
from pipeline.fused.loss import PairLoss, rows_of

# NumPy's warnings, of what is computed of padding and thrown away.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def operands(batch, length, widths, heads, pair, dtype, size=1.0, seed=0):
    """(teacher, student): a and b of each, [B, T, heads · width]; the student's want gradients."""
    generator = torch.Generator().manual_seed(seed)
    models = []
    for width in widths:
        made = [(size * torch.randn(batch, length, heads * width, generator=generator)).to(dtype) for _ in set(pair)]
        models.append(made * (2 // len(made)))
    for x in models[1]:
        x.requires_grad_()
    return models


def compare(teacher, student, heads, lengths=None):
    """(error of the loss in nats, of each gradient relative to its norm, what rounding the exact one costs)."""
    rows = None if lengths is None else rows_of(bounds_of_lengths(lengths, student[0].shape[1]), heads)
    loss = PairLoss.apply(*teacher, *student, heads, rows)
    wanted = literal(teacher, student, heads, lengths)
    inputs = student[:1] if student[0] is student[1] else student
    gradients = torch.autograd.grad(loss, inputs)
    exact = exact_gradients(teacher, student, heads, lengths)
    errors, roundings = [], []
    for own, other in zip(gradients, exact, strict=True):
        assert own.dtype == student[0].dtype
        norm = other.norm().clamp(min=1e-300)
        errors.append(float((own.double() - other).norm() / norm))
        roundings.append(float((other.to(own.dtype).double() - other).norm() / norm))
    return float((loss - wanted).detach().abs()), errors, roundings


def exact_gradients(teacher, student, heads, lengths):
    """In fp64, where autograd would round them to the inputs' dtype."""
    wide = [x.detach().double().requires_grad_() for x in student[: 1 if student[0] is student[1] else 2]]
    loss = literal(teacher, wide * (2 // len(wide)), heads, lengths)
    return torch.autograd.grad(loss, wide)


RAGGED = torch.tensor([70, 33, 1])


@pytest.mark.parametrize("pair", ["qk", "vv"])
@pytest.mark.parametrize(
    ("widths", "length", "lengths", "dtype"),
    [
        ((16, 8), 130, None, BF16),  # a tile and a part of one
        ((16, 6), 64, torch.tensor([64, 40]), BF16),  # a width that is not a power of two
        ((64, 32), 100, torch.tensor([100, 1, 65]), BF16),
        ((128, 128), 70, torch.tensor([70, 0]), BF16),  # an empty sequence
        ((32, 16), 70, RAGGED, FP16),
        ((12, 24), 70, RAGGED, FP32),
        ((32, 32), 1, None, FP32),
    ],
)
def test_loss_and_gradients_are_those_of_the_formula(pair, widths, length, lengths, dtype):
    batch = 2 if lengths is None else len(lengths)
    teacher, student = operands(batch, length, widths, 2, pair, dtype)
    loss_error, errors, roundings = compare(teacher, student, 2, lengths)
    assert loss_error < 5e-7
    for error, rounding in zip(errors, roundings, strict=True):
        if length > 1:  # of a single token the gradient is 0
            assert error < (1.05 * rounding if dtype != FP32 else 5e-6)


@pytest.mark.parametrize("size", [4.0, 40.0])
@pytest.mark.parametrize("pair", ["qk", "kk"])
def test_logits_beyond_the_range_of_sums_without_maxima(size, pair):
    teacher, student = operands(1, 130, (16, 16), 1, pair, BF16, size)
    loss_error, errors, roundings = compare(teacher, student, 1)
    logit = size**2 * 16**0.5 * 3
    assert loss_error < 1e-6 * max(1, logit)
    assert errors[0] < 1.25 * roundings[0]


def test_a_common_offset_of_all_keys_costs_nothing():
    """Keys often have a large part in common: their sums are all far from 1, and near each other."""
    teacher, student = operands(1, 128, (16, 16), 1, "kk", BF16)
    for x in (teacher[0], student[0].detach()):
        x += 12.0
    loss_error, errors, _ = compare(teacher, student, 1)
    assert loss_error < 2e-3 and errors[0] < 0.05  # of logits of 600 fp32 keeps 5e-5


def test_documents_in_a_row_are_as_each_alone():
    documents, heads = [40, 64, 20], 2
    teacher, student = operands(1, 130, (16, 8), heads, "qq", FP32)
    ends = torch.tensor(documents).cumsum(0)
    position = torch.arange(130)
    number = torch.bucketize(position, ends, right=True)
    real = number < len(documents)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), ends])
    first = torch.where(real, starts[number.clamp(max=len(documents))], 0)
    stop = torch.where(real, torch.cat([ends, ends[:1]])[number], 0)
    rows = rows_of(Bounds(*(x[None].int() for x in (first, stop)), 1), heads)
    loss = PairLoss.apply(*teacher, *student, heads, rows)
    (gradient,) = torch.autograd.grad(loss, student[:1])
    for start, end in zip(starts[:-1], ends, strict=True):
        own = [[x.detach()[:, start:end].requires_grad_() for x in model[:1]] * 2 for model in (teacher, student)]
        alone = PairLoss.apply(*own[0], *own[1], heads, None)
        loss = loss - alone
        torch.testing.assert_close(
            gradient[:, start:end], torch.autograd.grad(alone, own[1][0])[0], rtol=1e-4, atol=1e-8
        )
    assert abs(float(loss.detach())) < 1e-6
    assert not gradient[:, ends[-1] :].any()


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_the_same_bits_every_time_and_for_views_of_a_larger_tensor(dtype):
    teacher, student = operands(2, 100, (16, 8), 2, "qk", dtype)
    fused = torch.cat([x.detach() for x in student], -1)  # as a projection of q and k in one product leaves them
    views = [x.requires_grad_() for x in fused.unflatten(-1, (2, -1)).unbind(-2)]
    results = []
    for own in (student, student, views):
        loss = PairLoss.apply(*teacher, *own, 2, None)
        results.append([loss.detach(), *torch.autograd.grad(loss, own)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_upstream_gradient_scales_before_rounding():
    """fp16 gradients of a large batch are below its range unless the loss is scaled, as autocast's scaler does."""
    teacher, student = operands(2, 64, (16, 8), 2, "qk", FP16)
    loss = PairLoss.apply(*teacher, *student, 2, None)
    scaled = torch.autograd.grad(loss * 2.0**14, student)
    for own, exact in zip(scaled, exact_gradients(teacher, student, 2, None), strict=True):
        assert float((own.double() / 2**14 - exact).norm() / exact.norm()) < 3e-4
        assert float((own == 0).double().mean()) < 0.01


@pytest.mark.parametrize("pairs", [("qk", "vv"), ("qq", "kk", "vv")])
def test_behind_relation_loss(pairs):
    torch.manual_seed(0)
    teacher, student = (QKV(*torch.randn(3, 2, 70, width)) for width in (32, 16))
    student = QKV(*(x.requires_grad_() for x in student))
    lengths = torch.tensor([70, 30])
    results = []
    for fused in (True, False):
        losses = relation_loss(teacher, student, pairs, 2, lengths, fused=fused)
        results.append([*losses.values(), *torch.autograd.grad(losses["loss"], student, allow_unused=True)])
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lengths", [None, torch.tensor([90])])
def test_the_twin_is_the_formula(lengths):
    teacher, student = operands(1, 130, (16, 8), 1, "qk", torch.float64)
    real = 130 if lengths is None else int(lengths)
    inside = torch.arange(130) < real
    stop, weight = torch.where(inside, real, 0), inside.double() / real
    own = twin.passes(*(x[0].detach() for x in (*teacher, *student)), weight, torch.zeros_like(stop), stop)
    wanted = literal(teacher, student, 1, lengths)
    exact = torch.autograd.grad(wanted, student)
    torch.testing.assert_close(own[0], wanted.detach(), rtol=1e-12, atol=1e-12)
    for gradient, other in zip(own[1:], exact, strict=True):
        torch.testing.assert_close(gradient, other[0], rtol=1e-10, atol=1e-14)


def test_sequences_whose_places_are_beyond_32_bits():
    stride, width = 2**30, 16
    whole = torch.empty(3 * stride + 64 * width, dtype=BF16)  # whose pages in between are never touched
    far = whole.as_strided((4, 64, width), (stride, width, 1))
    teacher, student = operands(4, 64, (width, width), 1, "vv", BF16)
    wanted = float(PairLoss.apply(*teacher, *student, 1, None).detach())
    far.copy_(teacher[0])
    assert float(PairLoss.apply(far, far, *student, 1, None).detach()) == wanted


def test_logits_that_are_all_far_below_zero():
    """Sums of their exponentials are 0 unless maxima are subtracted."""
    teacher, student = operands(1, 130, (16, 16), 1, "qk", BF16)
    with torch.no_grad():
        for a, b in (teacher, student):
            a += 10.0
            b -= 10.0
    loss_error, errors, roundings = compare(teacher, student, 1)
    assert loss_error < 2e-4  # of logits of -400 fp32 keeps 3e-5
    assert max(errors) < 2 * max(roundings)


@pytest.mark.parametrize(("degree", "error"), [(4, 3e-6), (5, 2.5e-7)])
def test_exponentials_as_polynomials(degree, error):
    @triton.jit
    def apply(x, y, DEGREE: tl.constexpr):
        places = tl.arange(0, 4096)
        tl.store(y + places, kernels._exp2_polynomial(tl.load(x + places), DEGREE))

    x = torch.linspace(-125.0, 100.0, 4096)
    y = torch.empty_like(x)
    apply[(1,)](x, y, degree)
    assert float((y.double() / torch.exp2(x.double()) - 1).abs().max()) < error
    low = torch.full((4096,), -1e30)
    apply[(1,)](low, y, degree)
    assert float(y.max()) < 2e-38


@pytest.mark.parametrize("place", [0, 20, 40, 60])
@pytest.mark.parametrize("pair", ["qk", "vv"])
def test_one_token_far_from_all_others(pair, place):
    teacher, student = operands(1, 100, (16, 8), 1, pair, BF16)
    with torch.no_grad():
        for model in (teacher, student):
            for x in model[: len(set(pair))]:
                x[:, place] *= 8.0
    loss_error, errors, roundings = compare(teacher, student, 1)
    assert loss_error < 2e-5
    assert max(errors) < 1.25 * max(roundings)


def test_rows_of_the_last_tile_far_below_the_first():
    teacher, student = operands(1, 100, (16, 8), 1, "vv", BF16)
    with torch.no_grad():
        for model in (teacher, student):
            model[0][:, :70] += 12.0
            model[0][:, 70:] *= 0.1
    _, errors, _ = compare(teacher, student, 1)
    assert errors[0] < 0.05


@pytest.mark.parametrize("pair", ["qk", "vv"])
@pytest.mark.parametrize("held", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(pair, held):
    lengths = torch.tensor([100, 40])
    teacher, student = operands(2, 100, (16, 8), 1, pair, BF16)
    clean = PairLoss.apply(*teacher, *student, 1, rows_of(bounds_of_lengths(lengths, 100), 1))
    inputs = student[: len(set(pair))]
    gradients = torch.autograd.grad(clean, inputs)
    with torch.no_grad():
        for x in (*teacher, *student):
            x[1, 40:] = held
    loss = PairLoss.apply(*teacher, *student, 1, rows_of(bounds_of_lengths(lengths, 100), 1))
    assert torch.equal(loss, clean)
    for own, other in zip(torch.autograd.grad(loss, inputs), gradients, strict=True):
        assert torch.equal(own, other)


def test_a_student_whose_queries_are_its_keys_and_a_teacher_whose_are_not():
    teacher, _ = operands(1, 70, (16, 8), 1, "qk", FP32)
    _, student = operands(1, 70, (16, 8), 1, "qq", FP32)
    gradient = torch.autograd.grad(PairLoss.apply(*teacher, *student, 1, None), student[0])[0]
    exact = torch.autograd.grad(literal(teacher, student, 1, None), student[0])[0]
    torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-7)
