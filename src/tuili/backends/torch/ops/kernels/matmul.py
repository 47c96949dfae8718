"""Products with weights in planes, as a PackedFormat tells them (see packed.py), and with dense ones in a fixed order.

Weights are taken in runs of LANE levels that share a scale, which lie side by side in the plane: a byte of nibbles
holds a weight of each half, 32 weights apart. Sums run over ascending runs, in float32, never split between programs.
"""

import triton
import triton.language as tl


@triton.jit
def _first_weight(runs, LANE: tl.constexpr, NIBBLES: tl.constexpr):
    """Where in its row a run begins; the upper halves of nibbles are 32 weights on."""
    if NIBBLES:
        RUNS_PER_SPAN: tl.constexpr = 32 // LANE
        return runs // RUNS_PER_SPAN * 64 + runs % RUNS_PER_SPAN * LANE
    return runs * LANE


@triton.jit
def _scale(scales, factors, rows, first, is_there, stride_scales, stride_factors, GROUP_SIZE: tl.constexpr,
           FACTOR_GROUPS: tl.constexpr):  # fmt: skip
    """float32 [BLOCK_N, RUNS] of the runs that begin at weight `first`."""
    group = first // GROUP_SIZE if GROUP_SIZE > 0 else first * 0
    values = tl.load(scales + rows[:, None] * stride_scales + group[None, :], mask=is_there, other=0.0).to(tl.float32)
    if FACTOR_GROUPS > 0:
        at = factors + rows[:, None] * stride_factors + (group // FACTOR_GROUPS)[None, :]
        values = values * tl.load(at, mask=is_there, other=0.0).to(tl.float32)
    return values


@triton.jit
def _half(levels, scales, minimums, factors, min_factors, rows, first, is_there, stride_scales, stride_factors,
          GROUP_SIZE: tl.constexpr, FACTOR_GROUPS: tl.constexpr, MIN_SIGN: tl.constexpr):  # fmt: skip
    """Weights of levels [BLOCK_N, RUNS, LANE]. Every product here is exact in float32, so fusing changes nothing."""
    scale = _scale(scales, factors, rows, first, is_there, stride_scales, stride_factors, GROUP_SIZE, FACTOR_GROUPS)
    values = levels.to(tl.float32) * scale[:, :, None]
    if MIN_SIGN != 0:
        low = _scale(minimums, min_factors, rows, first, is_there, stride_scales, stride_factors, GROUP_SIZE,
                     FACTOR_GROUPS)  # fmt: skip
        values = values + MIN_SIGN * low[:, :, None]
    return values


@triton.jit
def _unpacked(
    levels, high, scales, minimums, factors, min_factors, rows, is_row, runs, num_runs,
    stride_levels, stride_high, stride_scales, stride_factors,
    LANE: tl.constexpr, NIBBLES: tl.constexpr, HIGH_BITS: tl.constexpr, GROUP_SIZE: tl.constexpr, ZERO: tl.constexpr,
    FACTOR_GROUPS: tl.constexpr, MIN_SIGN: tl.constexpr,
):  # fmt: skip
    """The runs' weights, float32 [BLOCK_N, RUNS, LANE]: (lower halves, upper halves), or twice the same."""
    j = tl.arange(0, LANE)[None, None, :]
    is_there = is_row[:, None] & (runs < num_runs)[None, :]
    places = levels + (rows * stride_levels)[:, None, None] + (runs * LANE)[None, :, None] + j
    packed = tl.load(places, mask=is_there[:, :, None], other=0 if NIBBLES else 0.0)
    first = _first_weight(runs, LANE, NIBBLES)
    if NIBBLES:
        packed = packed.to(tl.int32)
        lower = packed & 15
        upper = packed >> 4
        if HIGH_BITS > 0:
            FIELDS: tl.constexpr = 8 // HIGH_BITS
            TOP: tl.constexpr = (1 << HIGH_BITS) - 1
            byte = first // (32 * FIELDS) * 32 + first % 32
            at = high + (rows * stride_high)[:, None, None] + byte[None, :, None] + j
            bits = tl.load(at, mask=is_there[:, :, None], other=0).to(tl.int32)
            shift = (first // 32 % FIELDS * HIGH_BITS)[None, :, None]
            lower = lower | ((bits >> shift) & TOP) << 4
            upper = upper | ((bits >> (shift + HIGH_BITS)) & TOP) << 4
        lows = _half(lower - ZERO, scales, minimums, factors, min_factors, rows, first, is_there, stride_scales,
                     stride_factors, GROUP_SIZE, FACTOR_GROUPS, MIN_SIGN)  # fmt: skip
        highs = _half(upper - ZERO, scales, minimums, factors, min_factors, rows, first + 32, is_there, stride_scales,
                      stride_factors, GROUP_SIZE, FACTOR_GROUPS, MIN_SIGN)  # fmt: skip
    else:
        lows = _half(packed, scales, minimums, factors, min_factors, rows, first, is_there, stride_scales,
                     stride_factors, GROUP_SIZE, FACTOR_GROUPS, MIN_SIGN)  # fmt: skip
        highs = lows
    return lows, highs


@triton.jit
def gemv_kernel(
    out, x, bias, levels, high, scales, minimums, factors, min_factors, num_rows, num_cols, num_runs, stride_x,
    stride_levels, stride_high, stride_scales, stride_factors,
    LANE: tl.constexpr, NIBBLES: tl.constexpr, HIGH_BITS: tl.constexpr, GROUP_SIZE: tl.constexpr, ZERO: tl.constexpr,
    FACTOR_GROUPS: tl.constexpr, MIN_SIGN: tl.constexpr, BLOCK_N: tl.constexpr, RUNS: tl.constexpr,
    STAGES: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of one row of x. Grid: (parts of the outputs, rows of x). out is contiguous."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1).to(tl.int64)
    rows = n.to(tl.int64)
    is_row = n < num_rows
    j = tl.arange(0, LANE)[None, :]
    acc = tl.zeros([BLOCK_N, RUNS, LANE], tl.float32)
    for start in tl.range(0, num_runs, RUNS, num_stages=STAGES):
        runs = start + tl.arange(0, RUNS)
        lows, highs = _unpacked(
            levels, high, scales, minimums, factors, min_factors, rows, is_row, runs, num_runs, stride_levels,
            stride_high, stride_scales, stride_factors, LANE, NIBBLES, HIGH_BITS, GROUP_SIZE, ZERO, FACTOR_GROUPS,
            MIN_SIGN,
        )  # fmt: skip
        k = _first_weight(runs, LANE, NIBBLES)[:, None] + j
        acc += lows * tl.load(x + m * stride_x + k, mask=k < num_cols, other=0.0).to(tl.float32)[None, :, :]
        if NIBBLES:
            upper_x = tl.load(x + m * stride_x + k + 32, mask=k + 32 < num_cols, other=0.0).to(tl.float32)
            acc += highs * upper_x[None, :, :]
    total = tl.sum(tl.sum(acc, 2), 1)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out + m * num_rows + n, total.to(out.dtype.element_ty), mask=is_row)


@triton.jit(do_not_specialize=["num_tokens"])
def gemm_kernel(
    out, x, bias, levels, high, scales, minimums, factors, min_factors, num_tokens, num_rows, num_cols, num_runs,
    stride_x, stride_levels, stride_high, stride_scales, stride_factors,
    LANE: tl.constexpr, NIBBLES: tl.constexpr, HIGH_BITS: tl.constexpr, GROUP_SIZE: tl.constexpr, ZERO: tl.constexpr,
    FACTOR_GROUPS: tl.constexpr, MIN_SIGN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    RUNS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of BLOCK_M rows of x: weights become x's dtype in registers, as the left side of the product.

    Grid: (parts of the tokens, parts of the outputs), tokens first, so that a weight comes from memory once.
    """
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = n.to(tl.int64)
    is_row = n < num_rows
    is_token = m < num_tokens
    c = tl.arange(0, RUNS * LANE)
    x_rows = x + (m.to(tl.int64) * stride_x)[:, None]
    dtype = x.dtype.element_ty
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, num_runs, RUNS):
        runs = start + tl.arange(0, RUNS)
        lows, highs = _unpacked(
            levels, high, scales, minimums, factors, min_factors, rows, is_row, runs, num_runs, stride_levels,
            stride_high, stride_scales, stride_factors, LANE, NIBBLES, HIGH_BITS, GROUP_SIZE, ZERO, FACTOR_GROUPS,
            MIN_SIGN,
        )  # fmt: skip
        k = (_first_weight(start + c // LANE, LANE, NIBBLES) + c % LANE)[None, :]
        columns = tl.load(x_rows + k, mask=is_token[:, None] & (k < num_cols), other=0.0)
        weights = tl.reshape(lows.to(dtype), [BLOCK_N, RUNS * LANE])
        acc = tl.dot(weights, tl.trans(columns), acc, input_precision="ieee")
        if NIBBLES:
            columns = tl.load(x_rows + k + 32, mask=is_token[:, None] & (k + 32 < num_cols), other=0.0)
            weights = tl.reshape(highs.to(dtype), [BLOCK_N, RUNS * LANE])
            acc = tl.dot(weights, tl.trans(columns), acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=is_row, other=0.0).to(tl.float32)[:, None]
    places = out + (m.to(tl.int64) * num_rows)[None, :] + n[:, None]
    tl.store(places, acc.to(out.dtype.element_ty), mask=is_row[:, None] & is_token[None, :])


@triton.jit
def unpack_kernel(
    out, levels, high, scales, minimums, factors, min_factors, num_rows, num_cols, num_runs,
    stride_levels, stride_high, stride_scales, stride_factors,
    LANE: tl.constexpr, NIBBLES: tl.constexpr, HIGH_BITS: tl.constexpr, GROUP_SIZE: tl.constexpr, ZERO: tl.constexpr,
    FACTOR_GROUPS: tl.constexpr, MIN_SIGN: tl.constexpr, BLOCK_N: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """Weights [num_rows, num_cols], contiguous, in out's dtype. Grid: (parts of a row, parts of the rows)."""
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = n.to(tl.int64)
    runs = tl.program_id(0) * RUNS + tl.arange(0, RUNS)
    lows, highs = _unpacked(
        levels, high, scales, minimums, factors, min_factors, rows, n < num_rows, runs, num_runs, stride_levels,
        stride_high, stride_scales, stride_factors, LANE, NIBBLES, HIGH_BITS, GROUP_SIZE, ZERO, FACTOR_GROUPS, MIN_SIGN,
    )  # fmt: skip
    k = (_first_weight(runs, LANE, NIBBLES)[:, None] + tl.arange(0, LANE)[None, :])[None, :, :]
    places = out + (rows * num_cols)[:, None, None] + k
    is_row = (n < num_rows)[:, None, None]
    tl.store(places, lows.to(out.dtype.element_ty), mask=is_row & (k < num_cols))
    if NIBBLES:
        tl.store(places + 32, highs.to(out.dtype.element_ty), mask=is_row & (k + 32 < num_cols))


@triton.jit(do_not_specialize=["num_tokens"])
def dense_kernel(
    out, x, bias, weight, num_tokens, num_rows, num_cols, stride_x, stride_weight,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """x times the transpose of weight [num_rows, num_cols] in one order for any number of tokens. Grid: as above."""
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = n < num_rows
    is_token = m < num_tokens
    x_rows = x + (m.to(tl.int64) * stride_x)[:, None]
    weight_rows = weight + (n.to(tl.int64) * stride_weight)[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, num_cols, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K))[None, :]
        columns = tl.load(x_rows + k, mask=is_token[:, None] & (k < num_cols), other=0.0)
        weights = tl.load(weight_rows + k, mask=is_row[:, None] & (k < num_cols), other=0.0)
        acc = tl.dot(columns, tl.trans(weights), acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=is_row, other=0.0).to(tl.float32)[None, :]
    places = out + (m.to(tl.int64) * num_rows)[:, None] + n[None, :]
    tl.store(places, acc.to(out.dtype.element_ty), mask=is_token[:, None] & is_row[None, :])
