"""What a family may ask to be done to a weight so that its values are canonical. Knows no files.

A transform keeps the shape. It works on packed bytes where it can, so nothing is quantized twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from tuili import quant
from tuili.errors import UnsupportedModelError
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.quant.format import Tensor

Transform = Callable[[Tensor, ModelSpec, str], Tensor]


def unpermute_rope(tensor: Tensor, spec: ModelSpec, name: str) -> Tensor:
    """GGUF's llama order of a q or k projection's rows, rotated pairs side by side, to half-split order.

    Among the rotated rows of a head, row 2 j + s becomes row s * dim / 2 + j; rows that are not rotated stay.
    Takes weights [heads * head_dim, hidden] of any format, unquantized biases [heads * head_dim] and gains
    [heads, head_dim].
    Source: LLM_ROPE_TYPE_NORM of llama.cpp, and `permute` of its convert_hf_to_gguf.py.
    """
    mixer = spec.layers[int(name.split(".")[1])].mixer
    assert isinstance(mixer, AttentionSpec)
    is_vector = len(tensor.shape) == 1 or name.endswith("norm.weight")
    if is_vector and tensor.format.group_size > 1:
        raise UnsupportedModelError(f"{name} is a bias in {tensor.format.name}, only unquantized biases are allowed")
    rotated = mixer.rope.dim if mixer.rope is not None else 0
    order = np.arange(mixer.head_dim)
    order[:rotated] = order[:rotated].reshape(-1, 2).T.ravel()
    num_rows = math.prod(tensor.shape) if is_vector else tensor.shape[0]
    rows = tensor.data.reshape(-1, mixer.head_dim, tensor.data.size // num_rows)  # [heads, head_dim, row_bytes]
    return Tensor(tensor.format, tensor.shape, rows[:, order].reshape(tensor.data.shape))


def add_one(tensor: Tensor, spec: ModelSpec, name: str) -> Tensor:
    """A norm gain stored as its difference from one, as Gemma's are: in float32 afterwards."""
    gain = tensor.dequantize() + np.float32(1)
    float32 = quant.BY_NAME["F32"]
    return Tensor(float32, tensor.shape, float32.quantize(gain.reshape(1, -1)))


# Not a function here: the loader takes it along with the rows it reads.
TRANSPOSE = "transpose"

TRANSFORMS: Mapping[str, Transform] = MappingProxyType({"unpermute_rope": unpermute_rope, "add_one": add_one})
