"""Attention over a paged cache: keys are folded into float32 running sums, tile by tile from absolute positions.

A tile has the queries of one kv head: row r is query token r // GROUP of the tile, head r % GROUP. Scores are in units
of log2. Key tiles begin at multiples of BLOCK_N, so that a row's sums do not depend on the rows beside it: a tile that
is hidden from a row adds exact zeros to it.
"""

import triton
import triton.language as tl

from tuili.backends.torch.ops.kernels.scalars import tanh

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _key_tile(
    plane, scales, table, stride_block, stride_token, stride_head, scale_block, scale_token, scale_head,
    kv_head, positions, is_there, d, dtype,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr, MASKED: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """Elements [BLOCK_N, BLOCK_D] in dtype and scales [BLOCK_N] (ones where the cache has none)."""
    if MASKED:
        blocks = tl.load(table + positions // BLOCK_SIZE, mask=is_there, other=0).to(tl.int64)
    else:
        blocks = tl.load(table + positions // BLOCK_SIZE).to(tl.int64)
    offsets = (positions % BLOCK_SIZE).to(tl.int64)
    places = plane + (blocks * stride_block + offsets * stride_token + kv_head * stride_head)[:, None] + d[None, :]
    if MASKED:
        elements = tl.load(places, mask=is_there[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    elif BLOCK_D != HEAD_DIM:
        elements = tl.load(places, mask=(d < HEAD_DIM)[None, :], other=0.0)
    else:
        elements = tl.load(places)
    if SCALED:
        at = scales + blocks * scale_block + offsets * scale_token + kv_head * scale_head
        factors = tl.load(at, mask=is_there, other=0.0) if MASKED else tl.load(at)
    else:
        factors = tl.full(positions.shape, 1.0, tl.float32)
    return elements, factors


@triton.jit
def _fold(
    acc, top, mass, queries, rows, slopes, begin, end, lowest,
    keys, values, key_scales, value_scales, table, stride_block, stride_token, stride_head,
    scale_block, scale_token, scale_head, kv_head, d, scale, softcap, window,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, SCALED: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Folds the keys at [begin, end) into the running sums; MASKED where some are hidden from some row.

    acc [BLOCK_M, BLOCK_D] and mass [BLOCK_M] are sums of exp2(score - top).
    """
    n = tl.arange(0, BLOCK_N)
    for start in range(begin, end, BLOCK_N):
        positions = start + n
        is_there = (positions >= lowest) & (positions < end)
        k, k_factors = _key_tile(
            keys, key_scales, table, stride_block, stride_token, stride_head, scale_block, scale_token, scale_head,
            kv_head, positions, is_there, d, queries.dtype, HEAD_DIM, BLOCK_D, BLOCK_SIZE, MASKED, SCALED,
        )  # fmt: skip
        scores = tl.dot(queries, tl.trans(k.to(queries.dtype)), input_precision="ieee") * scale
        if SCALED:
            scores = scores * k_factors[None, :]
        if HAS_SOFTCAP:
            scores = tanh(scores / softcap) * softcap
        distance = rows[:, None] - positions[None, :]
        if HAS_ALIBI:
            scores = scores - slopes[:, None] * distance.to(tl.float32)
        scores = scores * LOG2E
        if MASKED:
            seen = is_there[None, :] & (distance >= 0)
            if HAS_WINDOW:
                seen = seen & (distance < window)
            scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # A row that has seen nothing yet keeps -inf; it must not become inf - inf.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - base[:, None])
        kept = tl.exp2(top - base)
        mass = mass * kept + tl.sum(weights, 1)
        v, v_factors = _key_tile(
            values, value_scales, table, stride_block, stride_token, stride_head, scale_block, scale_token, scale_head,
            kv_head, positions, is_there, d, queries.dtype, HEAD_DIM, BLOCK_D, BLOCK_SIZE, MASKED, SCALED,
        )  # fmt: skip
        if SCALED:
            v = v.to(tl.float32) * v_factors[:, None]
        acc = acc * kept[:, None]
        acc = tl.dot(weights.to(queries.dtype), v.to(queries.dtype), acc, input_precision="ieee")
        top = new_top
    return acc, top, mass


@triton.jit
def _sequence_of(tile, query_start, num_sequences, TOKENS: tl.constexpr):
    """The last sequence that begins at this tile or before."""
    low = 0
    high = num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        is_before = tl.load(query_start + middle) // TOKENS + middle <= tile
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
    return low


@triton.jit(
    do_not_specialize=["num_sequences", "stride_table"],
    do_not_specialize_on_alignment=["query_start", "seq_lens", "block_table"],
)
def prefill_kernel(
    out, queries, query_start, seq_lens, block_table, keys, values, key_scales, value_scales, sinks, slopes,
    num_sequences, stride_q_token, stride_q_head, stride_o_token, stride_o_head, stride_table,
    stride_block, stride_token, stride_head, scale_block, scale_token, scale_head, scale, softcap, window,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SCALED: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_WINDOW: tl.constexpr, SKIPS_DECODES: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_M // GROUP query tokens of one sequence, for one kv head, over all keys it sees.

    Grid: (T // tokens per tile + S, num_kv_heads). Sequence s begins at tile query_start[s] // tokens + s, which leaves
    room for the tiles of all before it; tiles left over return.
    """
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    # The last tiles of a prompt see most keys: they begin first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    s = _sequence_of(tile, query_start, num_sequences, TOKENS)
    first_row = tl.load(query_start + s)
    num_queries = tl.load(query_start + s + 1) - first_row
    seq_len = tl.load(seq_lens + s)
    token = (tile - first_row // TOKENS - s) * TOKENS
    if token >= num_queries or (SKIPS_DECODES and num_queries == 1):
        return
    r = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    tokens = token + r // GROUP
    heads = kv_head * GROUP + r % GROUP
    is_row = (tokens < num_queries) & (r < TOKENS * GROUP)
    is_kept = is_row[:, None] & (d < HEAD_DIM)[None, :]
    q_rows = (first_row + tokens).to(tl.int64)
    q_places = queries + (q_rows * stride_q_token + heads * stride_q_head)[:, None] + d[None, :]
    q = tl.load(q_places, mask=is_kept, other=0.0)
    slope = tl.load(slopes + heads, mask=is_row, other=0.0) if HAS_ALIBI else tl.zeros([BLOCK_M], tl.float32)
    first_position = seq_len - num_queries + token
    rows = first_position + r // GROUP
    end = tl.minimum(seq_len, first_position + TOKENS)
    lowest = tl.maximum(first_position - window + 1, 0) if HAS_WINDOW else first_position * 0
    begin = lowest // BLOCK_N * BLOCK_N
    # Up to here every row sees every key; beside a window's edge, none can be said to.
    open_end = begin if HAS_WINDOW else tl.maximum(first_position + 1, 0) // BLOCK_N * BLOCK_N
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    table = block_table + s.to(tl.int64) * stride_table
    if not HAS_WINDOW:
        acc, top, mass = _fold(
            acc, top, mass, q, rows, slope, begin, open_end, lowest, keys, values, key_scales, value_scales, table,
            stride_block, stride_token, stride_head, scale_block, scale_token, scale_head, kv_head, d, scale, softcap,
            window, HEAD_DIM, BLOCK_D, BLOCK_SIZE, BLOCK_N, False, SCALED, HAS_SOFTCAP, HAS_ALIBI, HAS_WINDOW,
        )  # fmt: skip
    acc, top, mass = _fold(
        acc, top, mass, q, rows, slope, open_end, end, lowest, keys, values, key_scales, value_scales, table,
        stride_block, stride_token, stride_head, scale_block, scale_token, scale_head, kv_head, d, scale, softcap,
        window, HEAD_DIM, BLOCK_D, BLOCK_SIZE, BLOCK_N, True, SCALED, HAS_SOFTCAP, HAS_ALIBI, HAS_WINDOW,
    )  # fmt: skip
    if HAS_SINKS:
        acc, mass = _with_sink(acc, top, mass, tl.load(sinks + heads, mask=is_row, other=0.0).to(tl.float32) * LOG2E)
    _store_rows(out + q_rows * stride_o_token + heads * stride_o_head, acc, mass, d, is_kept)


@triton.jit
def _store_rows(out, acc, mass, d, is_kept):
    """Rows that see nothing (padding of a captured graph) become 0."""
    result = acc / tl.where(mass == 0.0, 1.0, mass)[:, None]
    tl.store(out[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=is_kept)


@triton.jit
def _with_sink(acc, top, mass, sink):
    """A sink takes weight and gives nothing."""
    new_top = tl.maximum(top, sink)
    kept = tl.exp2(top - new_top)
    return acc * kept[:, None], mass * kept + tl.exp2(sink - new_top)


@triton.jit(
    do_not_specialize=["max_chunks", "stride_table"],
    do_not_specialize_on_alignment=["query_start", "seq_lens", "block_table"],
)
def decode_kernel(
    sums, masses, queries, query_start, seq_lens, block_table, keys, values, key_scales, value_scales, slopes,
    max_chunks, stride_q_token, stride_q_head, stride_table,
    stride_block, stride_token, stride_head, scale_block, scale_token, scale_head, scale, softcap, window,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr, SCALED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """One sequence's only query, one kv head: every chunk c = p, p + P, ... of its keys, each from zero.

    Grid: (num_kv_heads, S, P). Chunks of CHUNK keys begin at absolute positions; chunk i after the first one seen
    leaves sums [S, num_heads, max_chunks, HEAD_DIM] and, in masses [S, num_heads, max_chunks, 2], (top, mass).
    """
    kv_head, s, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(query_start + s)
    seq_len = tl.load(seq_lens + s)
    if tl.load(query_start + s + 1) - row != 1:
        return
    r = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    heads = kv_head * GROUP + r
    is_row = r < GROUP
    is_kept = is_row[:, None] & (d < HEAD_DIM)[None, :]
    q_places = queries + row.to(tl.int64) * stride_q_token + (heads * stride_q_head)[:, None] + d[None, :]
    q = tl.load(q_places, mask=is_kept, other=0.0)
    slope = tl.load(slopes + heads, mask=is_row, other=0.0) if HAS_ALIBI else tl.zeros([BLOCK_M], tl.float32)
    rows = tl.full([BLOCK_M], seq_len - 1, tl.int32)
    lowest = tl.maximum(seq_len - window, 0) if HAS_WINDOW else seq_len * 0
    first_chunk = lowest // CHUNK
    num_chunks = tl.cdiv(seq_len, CHUNK) - first_chunk
    table = block_table + s.to(tl.int64) * stride_table
    num_heads = tl.num_programs(0) * GROUP
    for chunk in range(part, num_chunks, tl.num_programs(2)):
        start = (first_chunk + chunk) * CHUNK
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        mass = tl.zeros([BLOCK_M], tl.float32)
        acc, top, mass = _fold(
            acc, top, mass, q, rows, slope, start, tl.minimum(start + CHUNK, seq_len), lowest, keys, values, key_scales,
            value_scales, table, stride_block, stride_token, stride_head, scale_block, scale_token, scale_head, kv_head,
            d, scale, softcap, window, HEAD_DIM, BLOCK_D, BLOCK_SIZE, BLOCK_N, True, SCALED, HAS_SOFTCAP, HAS_ALIBI,
            HAS_WINDOW,
        )  # fmt: skip
        at = (s.to(tl.int64) * num_heads + heads) * max_chunks + chunk
        tl.store(sums + (at * HEAD_DIM)[:, None] + d[None, :], acc, mask=is_kept)
        tl.store(masses + at * 2, top, mask=is_row)
        tl.store(masses + at * 2 + 1, mass, mask=is_row)


@triton.jit(do_not_specialize=["max_chunks"], do_not_specialize_on_alignment=["query_start", "seq_lens"])
def merge_kernel(
    out, sums, masses, query_start, seq_lens, sinks, max_chunks, stride_o_token, stride_o_head, window,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, RUN: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Adds the chunks of one head of one sequence, RUN at a time in ascending order. Grid: (num_heads, S).

    Chunks that are not there add zeros, so the order of additions does not depend on how many were reckoned with.
    """
    head, s = tl.program_id(0), tl.program_id(1)
    row = tl.load(query_start + s)
    seq_len = tl.load(seq_lens + s)
    if tl.load(query_start + s + 1) - row != 1:
        return
    lowest = tl.maximum(seq_len - window, 0) if HAS_WINDOW else seq_len * 0
    num_chunks = tl.cdiv(seq_len, CHUNK) - lowest // CHUNK
    base = (s.to(tl.int64) * tl.num_programs(0) + head) * max_chunks
    c = tl.arange(0, RUN)
    d = tl.arange(0, BLOCK_D)
    sink = tl.load(sinks + head).to(tl.float32) * LOG2E if HAS_SINKS else float("-inf")
    tops = tl.full([RUN], float("-inf"), tl.float32)
    for start in range(0, num_chunks, RUN):
        at = base + start + c
        tops = tl.maximum(tops, tl.load(masses + at * 2, mask=start + c < num_chunks, other=float("-inf")))
    top = tl.maximum(tl.max(tops, 0), sink)
    top = tl.where(top == float("-inf"), 0.0, top)
    acc = tl.zeros([BLOCK_D], tl.float32)
    mass = tl.exp2(sink - top) if HAS_SINKS else top * 0.0
    for start in range(0, num_chunks, RUN):
        is_there = start + c < num_chunks
        at = base + start + c
        kept = tl.exp2(tl.load(masses + at * 2, mask=is_there, other=float("-inf")) - top)
        mass += tl.sum(kept * tl.load(masses + at * 2 + 1, mask=is_there, other=0.0), 0)
        places = sums + (at * HEAD_DIM)[:, None] + d[None, :]
        part = tl.load(places, mask=is_there[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        acc += tl.sum(kept[:, None] * part, 0)
    result = acc / tl.where(mass == 0.0, 1.0, mass)
    place = out + row.to(tl.int64) * stride_o_token + head * stride_o_head + d
    tl.store(place, result.to(out.dtype.element_ty), mask=d < HEAD_DIM)
