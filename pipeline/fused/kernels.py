"""The relation loss in two passes over tiles of the maps, in Triton. twin.py has the same in plain torch: read that first.

A program takes a block of rows of one head of one sequence, and streams the tiles of their keys past. Products take the
operands as they are and add up in fp32; logits are scaled afterwards, into powers of two. Nothing is written but two numbers
a row, one a program, and the gradients; sums have a fixed order, so the same input gives the same bits.

Half of the work is exponentials. A GPU has units for them that do 16 a clock; up to an eighth of them is computed as
polynomials on the units for sums and products, which are less busy.

Common arguments: ``t_a``, ``t_b``, ``s_a``, ``s_b``: [B, T, heads · D] of teacher and student, the last stride 1.
``first``, ``stop``, ``weight`` [B, T]: of each row its range of keys, empty for padding, and its weight; not read if ``WHOLE``,
when every row has all keys and the weight ``even``. ``unit``: what weights are counted in, so that no entry of a gradient's map
leaves fp16's range. ``c_t``, ``c_s``: log2(e) / √D. D: head widths, P: the same padded to what tensor cores take.
"""

import triton
import triton.language as tl

NEVER = tl.constexpr(-1e30)  # a logit whose exponential is 0
FLOOR = tl.constexpr(-1e20)  # of maxima, so that a row that has seen no key yet has sums of 0
# Of sums of exponentials in which no term is lost, and none overflows.
LEAST = tl.constexpr(2.0**-80)
MOST = tl.constexpr(2.0**100)
# Powers of two by which the sums of rows may differ before factors between them would leave fp32's range.
SPREAD = tl.constexpr(100.0)


@triton.jit
def _load(x, rows, length, stride, D: tl.constexpr, P: tl.constexpr, ENDS: tl.constexpr):
    """Rows [n, P] of a head; zeros beyond its width and, if some may be beyond ``length`` (``ENDS``), there."""
    columns = tl.arange(0, P)
    places = x + rows[:, None] * stride + columns[None, :]
    if ENDS:
        return tl.load(places, mask=(rows[:, None] < length) & (columns[None, :] < D), other=0.0)
    if D == P:
        return tl.load(places)
    return tl.load(places, mask=columns[None, :] < D, other=0.0)


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b. "widened" is for Triton's interpreter, whose products of bf16 are wrong; in fp32 such products are exact."""
    if PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _rounded(x, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """x [fp32] in ``dtype``, to nearest. Triton's interpreter cuts bits off instead where it makes bf16."""
    if PRECISION == "widened" and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _exp2_polynomial(x, DEGREE: tl.constexpr):
    """2^x for x up to 126 by sums and products alone: 2^whole · 2^rest, |rest| ≤ 1/2. Relative error 3e-6, of degree 5 2e-7."""
    x = tl.minimum(tl.maximum(x, -126.0), 126.0)  # beyond, a sum is not within its bounds, and the block starts over
    shifted = x + 12582912.0  # 1.5 · 2^23: the last bits of the sum are those of the nearest whole number
    rest = x - (shifted - 12582912.0)
    if DEGREE == 5:
        power = tl.fma(tl.full(x.shape, 0.00132764719, tl.float32), rest, 0.00967554133)
        power = tl.fma(power, rest, 0.0555071327)
        power = tl.fma(power, rest, 0.240221197)
        power = tl.fma(power, rest, 0.693146967)
        power = tl.fma(power, rest, 1.00000007)
    else:
        power = tl.fma(tl.full(x.shape, 0.00957010186, tl.float32), rest, 0.0559178603)
        power = tl.fma(power, rest, 0.240247448)
        power = tl.fma(power, rest, 0.693121815)
        power = tl.fma(power, rest, 0.999999261)
    return (power.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)).to(tl.float32, bitcast=True)


@triton.jit
def _halves(x):
    """The left and the right half of the columns. A thread has columns of both, so nothing moves."""
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), (0, 2, 1)))


@triton.jit
def _joined(left, right):
    return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), [left.shape[0], 2 * left.shape[1]])


@triton.jit
def _exp2_shared(x, SHARED: tl.constexpr, DEGREE: tl.constexpr):
    """2^x; the last columns, one in ``SHARED`` (4 or 8; 0: none), as polynomials."""
    if SHARED == 0:
        return tl.exp2(x)
    left, right = _halves(x)
    third, last = _halves(right)
    if SHARED == 4:
        return _joined(tl.exp2(left), _joined(tl.exp2(third), _exp2_polynomial(last, DEGREE)))
    seventh, last = _halves(last)
    last = _joined(tl.exp2(seventh), _exp2_polynomial(last, DEGREE))
    return _joined(tl.exp2(left), _joined(tl.exp2(third), last))


@triton.jit
def _add_product(acc, d, b, PRECISION: tl.constexpr):
    """acc + d b for d in fp32. Rounding d to b's type would cost as much as rounding the result: so d is taken in two parts."""
    if b.dtype != tl.float32:
        TAIL: tl.constexpr = 16 if b.dtype == tl.bfloat16 else 13  # bits of fp32 that the type has not
        large = (d.to(tl.int32, bitcast=True) >> TAIL << TAIL).to(tl.float32, bitcast=True)
        acc = _dot(large.to(b.dtype), b, acc, PRECISION)
        d = d - large
    return _dot(_rounded(d, b.dtype, PRECISION), b, acc, PRECISION)


@triton.jit
def _rows(pid, first, stop, weight, even, length, heads, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """What a program works on: (sequence, head, rows, first and stop of each, whether it is real, weight, four columns).

    From column ``low`` to ``high`` there are keys for some row; tiles from ``begin`` to ``end`` are keys of every real row.
    """
    blocks = tl.cdiv(length, BM)
    rows = pid % blocks * BM + tl.arange(0, BM)
    head = pid // blocks % heads
    sequence = (pid // blocks // heads).to(tl.int64)
    inside = rows < length
    if WHOLE:
        starts = tl.zeros([BM], tl.int32)
        stops = tl.where(inside, length, 0)
        weights = tl.zeros([BM], tl.float32) + even
    else:
        places = sequence * length + rows
        starts = tl.load(first + places, mask=inside, other=0)
        stops = tl.load(stop + places, mask=inside, other=0)
        weights = tl.load(weight + places, mask=inside, other=0.0)
    real = stops > starts
    low = tl.min(tl.where(real, starts, length)) // BN * BN
    high = tl.max(stops)
    begin = tl.cdiv(tl.max(tl.where(real, starts, 0)), BN) * BN
    end = tl.maximum(tl.minimum(tl.min(tl.where(real, stops, length)), high) // BN * BN, begin)
    return sequence, head, rows, starts, stops, real, weights, low, high, begin, end


@triton.jit
def _operands(
    t_a, t_b, s_a, s_b, sequence, head, rows, stride_tb, stride_tt, stride_sb, stride_st, length,
    D_T: tl.constexpr, P_T: tl.constexpr, D_S: tl.constexpr, P_S: tl.constexpr,
):  # fmt: skip
    """a of both models for a program's rows, [BM, P_T] and [BM, P_S], and where b of its head begins in both."""
    teacher = sequence * stride_tb + head * D_T
    student = sequence * stride_sb + head * D_S
    ta = _load(t_a + teacher, rows, length, stride_tt, D_T, P_T, True)
    sa = _load(s_a + student, rows, length, stride_st, D_S, P_S, True)
    return ta, sa, t_b + teacher, s_b + student


@triton.jit
def _logits(j, ta, sa, t_b, s_b, stride_t, stride_s, high, starts, stops, PRECISION: tl.constexpr,
            D_T: tl.constexpr, P_T: tl.constexpr, D_S: tl.constexpr, P_S: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Unscaled logits [BM, BN] of both models against the keys ``j`` [BN], and the student's keys [BN, P_S].

    Keys from ``high`` on are padding and not read: whatever they hold, even NaN, comes to nothing.
    """
    tb = _load(t_b, j, high, stride_t, D_T, P_T, MASKED)
    sb = _load(s_b, j, high, stride_s, D_S, P_S, MASKED)
    nothing = tl.zeros([ta.shape[0], j.shape[0]], tl.float32)
    t = _dot(ta, tl.trans(tb), nothing, PRECISION)
    s = _dot(sa, tl.trans(sb), nothing, PRECISION)
    if MASKED:
        seen = (j[None, :] >= starts[:, None]) & (j[None, :] < stops[:, None])
        t = tl.where(seen, t, NEVER)
        s = tl.where(seen, s, NEVER)
    return t, s, sb


@triton.jit
def _statistics_tile(t, s, c_t, c_s, max_t, max_s, sum_t, sum_s, mixed):
    """Add a tile to the maxima [BM] of the scaled logits, and to the sums of exponentials relative to them.

    ``mixed`` is Σ exp2(t) (t − s), both relative to their maxima; when these move, so does it.
    """
    new_t = tl.maximum(max_t, tl.max(t, 1) * c_t)
    new_s = tl.maximum(max_s, tl.max(s, 1) * c_s)
    x = tl.fma(t, c_t, -new_t[:, None])
    y = tl.fma(s, c_s, -new_s[:, None])
    exp_t = tl.exp2(x)
    moved_t = max_t - new_t
    moved_s = max_s - new_s
    shrunk = tl.exp2(moved_t)
    mixed = shrunk * (mixed + sum_t * (moved_t - moved_s)) + tl.sum(exp_t * (x - y), 1)
    sum_t = shrunk * sum_t + tl.sum(exp_t, 1)
    sum_s = tl.exp2(moved_s) * sum_s + tl.sum(tl.exp2(y), 1)
    return new_t, new_s, sum_t, sum_s, mixed


@triton.jit(do_not_specialize=["length", "heads"])
def statistics(
    t_a, t_b, s_a, s_b, first, stop, weight, log_t, log_s, loss,
    stride_tb, stride_tt, stride_sb, stride_st, length, heads, even, unit, c_t, c_s,
    D_T: tl.constexpr, P_T: tl.constexpr, D_S: tl.constexpr, P_S: tl.constexpr, WHOLE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """The first pass: for each row log2 of its sum of exponentials over its weight, and its divergence.

    Writes ``log_t`` and ``log_s`` [B, heads, T] fp32, weights being in ``unit``s and padding +inf, and ``loss`` [programs], the
    sum of the weighted divergences of a program's rows, in powers of two.
    """
    pid = tl.program_id(0)
    sequence, head, rows, starts, stops, real, weights, low, high, begin, end = _rows(
        pid, first, stop, weight, even, length, heads, WHOLE, BM, BN
    )
    ta, sa, t_b, s_b = _operands(t_a, t_b, s_a, s_b, sequence, head, rows, stride_tb, stride_tt, stride_sb, stride_st,
                                 length, D_T, P_T, D_S, P_S)  # fmt: skip

    sum_t = tl.zeros([BM], tl.float32)
    sum_s = tl.zeros([BM], tl.float32)
    mixed = tl.zeros([BM], tl.float32)
    for start in tl.range(begin, end, BN, num_stages=STAGES):
        t, s, _ = _logits(start + tl.arange(0, BN), ta, sa, t_b, s_b, stride_tt, stride_st, high, starts, stops,
                          PRECISION, D_T, P_T, D_S, P_S, False)  # fmt: skip
        x = t * c_t
        y = s * c_s
        exp_t = _exp2_shared(x, SHARED, 5)
        sum_t += tl.sum(exp_t, 1)
        sum_s += tl.sum(tl.exp2(y), 1)
        mixed += tl.sum(exp_t * (x - y), 1)
    # Sums tell whether a term can have overflowed, or been lost: then, and where there are none yet, maxima are needed.
    within = (tl.minimum(sum_t, sum_s) > LEAST) & (tl.maximum(sum_t, sum_s) < MOST)
    start_over = tl.max(tl.where(real & ~within, 1, 0)) > 0
    if start_over:
        begin = low
        end = low
    maximum = tl.where(start_over, FLOOR, 0.0)
    max_t = tl.zeros([BM], tl.float32) + maximum
    max_s = tl.zeros([BM], tl.float32) + maximum
    sum_t = tl.where(start_over, 0.0, sum_t)
    sum_s = tl.where(start_over, 0.0, sum_s)
    mixed = tl.where(start_over, 0.0, mixed)
    before = (begin - low) // BN
    for number in tl.range(0, before + tl.cdiv(high - end, BN), num_stages=1):
        start = tl.where(number < before, low + number * BN, end + (number - before) * BN)
        t, s, _ = _logits(start + tl.arange(0, BN), ta, sa, t_b, s_b, stride_tt, stride_st, high, starts, stops,
                          PRECISION, D_T, P_T, D_S, P_S, True)  # fmt: skip
        max_t, max_s, sum_t, sum_s, mixed = _statistics_tile(t, s, c_t, c_s, max_t, max_s, sum_t, sum_s, mixed)

    log_sum_t = tl.log2(sum_t)
    log_sum_s = tl.log2(sum_s)
    divergence = mixed / sum_t + log_sum_s - log_sum_t
    tl.store(loss + pid, tl.sum(tl.where(real, divergence * weights, 0.0)))
    log_weight = tl.log2(weights / unit)
    places = (sequence * heads + head) * length + rows
    tl.store(log_t + places, tl.where(real, max_t + log_sum_t - log_weight, float("inf")), mask=rows < length)
    tl.store(log_s + places, tl.where(real, max_s + log_sum_s - log_weight, float("inf")), mask=rows < length)


@triton.jit
def _spread(log_t, log_s, row_t, row_s, real, base_t, base_s, begin, end, BN: tl.constexpr):
    """How far from the bases, in powers of two, are the sums of a program's own rows and of those from ``begin`` to ``end``."""
    furthest = tl.zeros([BN], tl.float32)
    for start in range(begin, end, BN):
        j = start + tl.arange(0, BN)
        furthest = tl.maximum(furthest, tl.abs(tl.load(log_t + j) - base_t))
        furthest = tl.maximum(furthest, tl.abs(tl.load(log_s + j) - base_s))
    own = tl.where(real, tl.maximum(tl.abs(row_t - base_t), tl.abs(row_s - base_s)), 0.0)
    return tl.maximum(tl.max(furthest), tl.max(own))


@triton.jit
def _difference(t, s, j, row_t, row_s, log_t, log_s, own_t, own_s, share_t, share_s, base_t, base_s, c_t, c_s,
                SIDE: tl.constexpr, SHARED: tl.constexpr):  # fmt: skip
    """d, or d + dᵀ for both sides, [BM, BN], in a tile that every row sees whole."""
    if SIDE == "rows":
        exp_t = _exp2_shared(tl.fma(t, c_t, -row_t[:, None]), SHARED, 4)
        return tl.exp2(tl.fma(s, c_s, -row_s[:, None])) - exp_t
    if SIDE == "columns":
        exp_t = _exp2_shared(tl.fma(t, c_t, -tl.load(log_t + j)[None, :]), SHARED, 4)
        return tl.exp2(tl.fma(s, c_s, -tl.load(log_s + j)[None, :])) - exp_t
    exp_t = _exp2_shared(tl.fma(t, c_t, -base_t), SHARED, 4)
    exp_s = tl.exp2(tl.fma(s, c_s, -base_s))
    of_t = own_t[:, None] + tl.load(share_t + j)[None, :]
    of_s = own_s[:, None] + tl.load(share_s + j)[None, :]
    return exp_s * of_s - exp_t * of_t


@triton.jit
def _masked_difference(t, s, j, length, row_t, row_s, log_t, log_s, c_t, c_s, SIDE: tl.constexpr):
    """The same in any other tile, each exponential for itself."""
    d = tl.zeros(t.shape, tl.float32)
    if SIDE != "columns":
        d += tl.exp2(tl.fma(s, c_s, -row_s[:, None])) - tl.exp2(tl.fma(t, c_t, -row_t[:, None]))
    if SIDE != "rows":
        column_t = tl.load(log_t + j, mask=j < length, other=float("inf"))
        column_s = tl.load(log_s + j, mask=j < length, other=float("inf"))
        d += tl.exp2(tl.fma(s, c_s, -column_s[None, :])) - tl.exp2(tl.fma(t, c_t, -column_t[None, :]))
    return d


@triton.jit(do_not_specialize=["length", "heads"])
def gradient(
    t_a, t_b, s_a, s_b, first, stop, weight, log_t, log_s, share_t, share_s, upstream, grad,
    stride_tb, stride_tt, stride_sb, stride_st, stride_gb, stride_gt, length, heads, even, c_t, c_s, factor,
    SIDE: tl.constexpr, D_T: tl.constexpr, P_T: tl.constexpr, D_S: tl.constexpr, P_S: tl.constexpr, WHOLE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """The second pass: ``grad`` [B, T, heads · D_S], the gradient by the student's a, which is s_a here.

    ``SIDE`` "rows": the rows of the maps are those of a, d = w (R_S − R_T), and the gradient is d b. "columns": a is the other
    operand, the rows are b's, and it is dᵀ b. "both": a is b, and it is (d + dᵀ) a. There logits are symmetric, and with
    ``share`` = exp2(log of row 0 − log) one exponential of an entry serves both its row and its column. That needs sums that
    do not differ by more than 2^100; where they do, each is computed for itself.
    """
    pid = tl.program_id(0)
    sequence, head, rows, starts, stops, real, _, low, high, begin, end = _rows(
        pid, first, stop, weight, even, length, heads, WHOLE, BM, BN
    )
    ta, sa, t_b, s_b = _operands(t_a, t_b, s_a, s_b, sequence, head, rows, stride_tb, stride_tt, stride_sb, stride_st,
                                 length, D_T, P_T, D_S, P_S)  # fmt: skip
    of_head = (sequence * heads + head) * length
    log_t += of_head
    log_s += of_head
    row_t = tl.load(log_t + rows, mask=rows < length, other=float("inf"))
    row_s = tl.load(log_s + rows, mask=rows < length, other=float("inf"))
    own_t, own_s, base_t, base_s = row_t, row_s, 0.0, 0.0
    if SIDE == "both":
        share_t += of_head
        share_s += of_head
        base_t = tl.load(log_t)
        base_s = tl.load(log_s)
        if _spread(log_t, log_s, row_t, row_s, real, base_t, base_s, begin, end, BN) > SPREAD:
            begin = low
            end = low
        own_t = tl.load(share_t + rows, mask=rows < length, other=0.0)
        own_s = tl.load(share_s + rows, mask=rows < length, other=0.0)

    acc = tl.zeros([BM, P_S], tl.float32)
    for start in tl.range(begin, end, BN, num_stages=STAGES):
        j = start + tl.arange(0, BN)
        t, s, sb = _logits(j, ta, sa, t_b, s_b, stride_tt, stride_st, high, starts, stops,
                           PRECISION, D_T, P_T, D_S, P_S, False)  # fmt: skip
        d = _difference(t, s, j, row_t, row_s, log_t, log_s, own_t, own_s, share_t, share_s, base_t, base_s, c_t, c_s,
                        SIDE, SHARED)  # fmt: skip
        acc = _add_product(acc, d, sb, PRECISION)
    before = (begin - low) // BN
    for number in tl.range(0, before + tl.cdiv(high - end, BN), num_stages=1):
        start = tl.where(number < before, low + number * BN, end + (number - before) * BN)
        j = start + tl.arange(0, BN)
        t, s, sb = _logits(j, ta, sa, t_b, s_b, stride_tt, stride_st, high, starts, stops,
                           PRECISION, D_T, P_T, D_S, P_S, True)  # fmt: skip
        d = _masked_difference(t, s, j, length, row_t, row_s, log_t, log_s, c_t, c_s, SIDE)
        acc = _add_product(acc, d, sb, PRECISION)

    columns = tl.arange(0, P_S)
    places = grad + sequence * stride_gb + rows[:, None] * stride_gt + head * D_S + columns[None, :]
    acc = tl.where(real[:, None], acc, 0.0) * (factor * tl.load(upstream))
    inside = (rows[:, None] < length) & (columns[None, :] < D_S)
    tl.store(places, _rounded(acc, grad.dtype.element_ty, PRECISION), mask=inside)
