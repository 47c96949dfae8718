"""What happens to queries, keys and values between their products and attention: norm, factor, rotation, cache.

A head is held as three tiles [BLOCK_T, ...]: the first and second halves of the rotated pairs, and the rest. BLOCK_T
tokens belong to a program whatever their number, so that a token's sums never depend on it.
"""

import triton
import triton.language as tl

from tuili.backends.torch.ops.kernels.scalars import rounded_to_even


@triton.jit
def _load_head(x, rows, head, stride_token, stride_head, is_token, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
               REST: tl.constexpr, BLOCK_REST: tl.constexpr):  # fmt: skip
    j = tl.arange(0, BLOCK_HALF)
    k = tl.arange(0, BLOCK_REST)
    places = x + (rows * stride_token + head * stride_head)[:, None]
    is_pair = is_token[:, None] & (j < HALF)[None, :]
    is_rest = is_token[:, None] & (k < REST)[None, :]
    first = tl.load(places + j[None, :], mask=is_pair, other=0.0).to(tl.float32)
    second = tl.load(places + HALF + j[None, :], mask=is_pair, other=0.0).to(tl.float32)
    rest = tl.load(places + 2 * HALF + k[None, :], mask=is_rest, other=0.0).to(tl.float32)
    return first, second, rest


@triton.jit
def _store_head(out, first, second, rest, offsets, is_token, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
                REST: tl.constexpr, BLOCK_REST: tl.constexpr):  # fmt: skip
    j = tl.arange(0, BLOCK_HALF)
    k = tl.arange(0, BLOCK_REST)
    places = out + offsets[:, None]
    is_pair = is_token[:, None] & (j < HALF)[None, :]
    dtype = out.dtype.element_ty
    tl.store(places + j[None, :], first.to(dtype), mask=is_pair)
    tl.store(places + HALF + j[None, :], second.to(dtype), mask=is_pair)
    tl.store(places + 2 * HALF + k[None, :], rest.to(dtype), mask=is_token[:, None] & (k < REST)[None, :])


@triton.jit
def _normed(first, second, rest, gain, bias, head, stride_gain, eps, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
            REST: tl.constexpr, BLOCK_REST: tl.constexpr, IS_LAYER: tl.constexpr, HAS_BIAS: tl.constexpr):  # fmt: skip
    j = tl.arange(0, BLOCK_HALF)
    k = tl.arange(0, BLOCK_REST)
    size = 2 * HALF + REST
    if IS_LAYER:
        mean = ((tl.sum(first, 1) + tl.sum(second, 1) + tl.sum(rest, 1)) / size)[:, None]
        first = tl.where((j < HALF)[None, :], first - mean, 0.0)
        second = tl.where((j < HALF)[None, :], second - mean, 0.0)
        rest = tl.where((k < REST)[None, :], rest - mean, 0.0)
    squares = tl.sum(first * first, 1) + tl.sum(second * second, 1) + tl.sum(rest * rest, 1)
    factor = (1.0 / tl.sqrt(squares / size + eps))[:, None]
    gains = gain + head * stride_gain
    first = first * factor * tl.load(gains + j, mask=j < HALF, other=0.0).to(tl.float32)[None, :]
    second = second * factor * tl.load(gains + HALF + j, mask=j < HALF, other=0.0).to(tl.float32)[None, :]
    rest = rest * factor * tl.load(gains + 2 * HALF + k, mask=k < REST, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        biases = bias + head * stride_gain
        first += tl.load(biases + j, mask=j < HALF, other=0.0).to(tl.float32)[None, :]
        second += tl.load(biases + HALF + j, mask=j < HALF, other=0.0).to(tl.float32)[None, :]
        rest += tl.load(biases + 2 * HALF + k, mask=k < REST, other=0.0).to(tl.float32)[None, :]
    return first, second, rest


@triton.jit
def _rotated(first, second, cos, sin, rows, is_token, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    j = tl.arange(0, BLOCK_HALF)
    is_pair = is_token[:, None] & (j < HALF)[None, :]
    at = rows[:, None] * HALF + j[None, :]
    c = tl.load(cos + at, mask=is_pair, other=0.0)
    s = tl.load(sin + at, mask=is_pair, other=0.0)
    return first * c - second * s, second * c + first * s


@triton.jit
def _to_cache(plane, scales, first, second, rest, slots, head, is_token, stride_block, stride_token, stride_head,
              scale_block, scale_token, scale_head, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, REST: tl.constexpr,
              BLOCK_REST: tl.constexpr, BLOCK_SIZE: tl.constexpr, TOP: tl.constexpr):  # fmt: skip
    """TOP > 0: the largest level of a quantized cache, to which a head's largest element is brought."""
    slots = tl.load(slots, mask=is_token, other=-1)
    is_kept = is_token & (slots >= 0)
    blocks = (slots // BLOCK_SIZE).to(tl.int64)
    offsets = (slots % BLOCK_SIZE).to(tl.int64)
    if TOP > 0:
        pairs = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
        scale = tl.maximum(pairs, tl.max(tl.abs(rest), 1)) / TOP
        places = scales + blocks * scale_block + offsets * scale_token + head * scale_head
        tl.store(places, scale, mask=is_kept)
        inverse = tl.where(scale > 0.0, 1.0 / tl.where(scale > 0.0, scale, 1.0), 0.0)[:, None]
        first, second, rest = first * inverse, second * inverse, rest * inverse
        first = tl.minimum(tl.maximum(first, -TOP), TOP)
        second = tl.minimum(tl.maximum(second, -TOP), TOP)
        rest = tl.minimum(tl.maximum(rest, -TOP), TOP)
        if plane.dtype.element_ty == tl.int8:
            first, second, rest = rounded_to_even(first), rounded_to_even(second), rounded_to_even(rest)
    at = blocks * stride_block + offsets * stride_token + head * stride_head
    _store_head(plane, first, second, rest, at, is_kept, HALF, BLOCK_HALF, REST, BLOCK_REST)


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["slots"])
def heads_kernel(
    out_queries, out_keys, queries, keys, values, cos, sin, factors, query_gain, query_bias, key_gain, key_bias,
    cache_keys, cache_values, key_scales, value_scales, slots, num_tokens, num_heads, num_kv_heads,
    stride_q_token, stride_q_head, stride_k_token, stride_k_head, stride_v_token, stride_v_head,
    query_stride_gain, key_stride_gain, query_eps, key_eps,
    stride_block, stride_token, stride_head, scale_block, scale_token, scale_head,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, REST: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_T: tl.constexpr,
    HAS_ROTATION: tl.constexpr, HAS_FACTORS: tl.constexpr, QUERY_NORM: tl.constexpr, KEY_NORM: tl.constexpr,
    HAS_QUERY_BIAS: tl.constexpr, HAS_KEY_BIAS: tl.constexpr, WRITES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TOP: tl.constexpr,
):  # fmt: skip
    """One head of BLOCK_T tokens. Grid: (parts of the tokens, num_heads + num_kv_heads, and num_kv_heads if WRITES).

    Queries go to out_queries [T, num_heads, head_dim]; keys to out_keys, or with WRITES to the cache, with the values.
    """
    head = tl.program_id(1)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token = t < num_tokens
    rows = t.to(tl.int64)
    size: tl.constexpr = 2 * HALF + REST
    if head < num_heads:
        a, b, c = _load_head(queries, rows, head, stride_q_token, stride_q_head, is_token, HALF, BLOCK_HALF, REST,
                             BLOCK_REST)  # fmt: skip
        if QUERY_NORM != "none":
            a, b, c = _normed(a, b, c, query_gain, query_bias, head, query_stride_gain, query_eps, HALF, BLOCK_HALF,
                              REST, BLOCK_REST, QUERY_NORM == "layer", HAS_QUERY_BIAS)  # fmt: skip
        if HAS_FACTORS:
            f = tl.load(factors + rows, mask=is_token, other=0.0)[:, None]
            a, b, c = a * f, b * f, c * f
        if HAS_ROTATION:
            a, b = _rotated(a, b, cos, sin, rows, is_token, HALF, BLOCK_HALF)
        at = (rows * num_heads + head) * size
        _store_head(out_queries, a, b, c, at, is_token, HALF, BLOCK_HALF, REST, BLOCK_REST)
    elif head < num_heads + num_kv_heads:
        head -= num_heads
        a, b, c = _load_head(keys, rows, head, stride_k_token, stride_k_head, is_token, HALF, BLOCK_HALF, REST,
                             BLOCK_REST)  # fmt: skip
        if KEY_NORM != "none":
            a, b, c = _normed(a, b, c, key_gain, key_bias, head, key_stride_gain, key_eps, HALF, BLOCK_HALF, REST,
                              BLOCK_REST, KEY_NORM == "layer", HAS_KEY_BIAS)  # fmt: skip
        if HAS_ROTATION:
            a, b = _rotated(a, b, cos, sin, rows, is_token, HALF, BLOCK_HALF)
        if WRITES:
            # Rounded to the model's dtype first, as keys that pass through memory are.
            dtype = keys.dtype.element_ty
            a, b, c = a.to(dtype).to(tl.float32), b.to(dtype).to(tl.float32), c.to(dtype).to(tl.float32)
            _to_cache(cache_keys, key_scales, a, b, c, slots + rows, head, is_token, stride_block, stride_token,
                      stride_head, scale_block, scale_token, scale_head, HALF, BLOCK_HALF, REST, BLOCK_REST, BLOCK_SIZE,
                      TOP)  # fmt: skip
        else:
            at = (rows * num_kv_heads + head) * size
            _store_head(out_keys, a, b, c, at, is_token, HALF, BLOCK_HALF, REST, BLOCK_REST)
    elif WRITES:
        head -= num_heads + num_kv_heads
        a, b, c = _load_head(values, rows, head, stride_v_token, stride_v_head, is_token, HALF, BLOCK_HALF, REST,
                             BLOCK_REST)  # fmt: skip
        _to_cache(cache_values, value_scales, a, b, c, slots + rows, head, is_token, stride_block, stride_token,
                  stride_head, scale_block, scale_token, scale_head, HALF, BLOCK_HALF, REST, BLOCK_REST, BLOCK_SIZE,
                  TOP)  # fmt: skip
