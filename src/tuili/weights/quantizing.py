"""Float weights in a narrower format, each quantized when it is asked for. Knows names, recipes, and the slow way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from tuili.errors import InvalidRequestError, ModelFileError
from tuili.models.spec import ModelSpec
from tuili.quant.format import QuantFormat, Tensor
from tuili.weights.recipes import Recipe
from tuili.weights.tensor_table import TensorTable

# target, tensor, name for errors -> the tensor in the target format; ModelFileError for weights that are not finite
Quantizer = Callable[[QuantFormat, Tensor, str], Tensor]

_CHUNK = 1 << 22  # weights quantized at once

_LOOKED_UP = ("embed_positions.weight",)  # added as they are, never multiplied


def quantized_weights(
    weights: Mapping[str, Tensor], spec: ModelSpec, recipe: Recipe, quantize: Quantizer
) -> Mapping[str, Tensor]:
    """`weights` with every float matrix in the format that the recipe gives it, where that is narrower.

    What is quantized already stays as it is: its numbers would suffer twice. Raises what check_quantizable raises.
    """
    check_quantizable(weights, spec, recipe)
    return TensorTable({name: partial(_quantized, weights, name, spec, recipe, quantize) for name in weights})


def check_quantizable(weights: Mapping[str, Tensor], spec: ModelSpec, recipe: Recipe) -> None:
    """Raises InvalidRequestError where the recipe makes no weight smaller."""
    # No family transforms these, so asking for them copies nothing.
    samples = [name for name in weights if name.endswith(("embed_tokens.weight", "lm_head.weight", "down_proj.weight"))]
    if all(target_format(weights[name], recipe, name, spec) is weights[name].format for name in samples):
        found = weights["embed_tokens.weight"].format.name
        raise InvalidRequestError(
            f"quantization={recipe.name!r}: the weights are {found} already, only wider floats can be quantized",
            param="quantization",
        )


def target_format(tensor: Tensor, recipe: Recipe, name: str, spec: ModelSpec) -> QuantFormat:
    """The format a weight is run in: the recipe's for a float matrix, if that is narrower, else its own."""
    if len(tensor.shape) != 2 or tensor.format.group_size > 1 or name in _LOOKED_UP:
        return tensor.format
    found = recipe.format_of(name, tensor.shape[-1], spec)
    return found if found is not None and _bits(found) < _bits(tensor.format) else tensor.format


def _quantized(
    weights: Mapping[str, Tensor], name: str, spec: ModelSpec, recipe: Recipe, quantize: Quantizer
) -> Tensor:
    tensor = weights[name]
    target = target_format(tensor, recipe, name, spec)
    return tensor if target is tensor.format else quantize(target, tensor, name)


def _bits(f: QuantFormat) -> float:
    return f.group_bytes * 8 / f.group_size


def quantize_tensor(target: QuantFormat, tensor: Tensor, name: str) -> Tensor:
    """A Quantizer in NumPy, a few rows at a time: exact, and slow for all but float formats."""
    cols = tensor.shape[-1]
    data = np.empty((len(tensor.data), target.row_bytes(cols)), np.uint8)
    step = max(1, _CHUNK // cols)
    for start in range(0, len(data), step):
        values = tensor.format.dequantize(tensor.data[start : start + step])
        if not np.isfinite(values).all():
            raise not_finite(name)
        data[start : start + step] = target.quantize(values)
    return Tensor(target, tensor.shape, data)


def not_finite(name: str) -> ModelFileError:
    """What a weight is refused with that holds NaN or infinity."""
    return ModelFileError(f"weight {name} is not finite, which cannot be quantized")
