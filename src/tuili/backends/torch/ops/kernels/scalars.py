"""Functions of float32 elements that Triton's language lacks or spells apart."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def rounded_to_even(x):
    """For |x| < 2**22: adding 1.5 * 2**23 leaves no bit below one."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "relu":
        y = tl.maximum(x, 0.0)
    else:
        tl.static_assert(ACTIVATION == "relu2", "an activation without a kernel")
        y = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    return y
