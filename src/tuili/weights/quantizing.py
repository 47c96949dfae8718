"""Float weights in a narrower format, each quantized when it is asked for. Knows names, recipes, and the slow way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from tuili import quant
from tuili.errors import InvalidRequestError, ModelFileError, TuiliError
from tuili.models.shapes import Shape, tensor_shapes
from tuili.models.spec import ModelSpec
from tuili.quant.format import Bytes, Floats, QuantFormat, Tensor
from tuili.weights.recipes import Recipe
from tuili.weights.tensor_table import TensorTable

# target, tensor, name for errors -> the tensor in the target format; raises what quantize_tensor raises
Quantizer = Callable[[QuantFormat, Tensor, str], Tensor]

_CHUNK = 1 << 22  # weights quantized at once
_ALWAYS_FITS = np.float32(2.0**15)  # no format's numbers or float16 scales overflow for weights up to here

_GAINS = "norm.weight"  # multiplied one by one, also where there is a row of them for each head
_LOOKED_UP = ("embed_positions.weight",)  # added as they are, never multiplied


def quantized_weights(weights: TensorTable, spec: ModelSpec, recipe: Recipe, quantize: Quantizer) -> TensorTable:
    """`weights` with every float matrix in the format that the recipe gives it, where that is narrower.

    What is quantized already stays as it is: its numbers would suffer twice. Raises what check_quantizable raises.
    """
    check_quantizable(weights, spec, recipe)
    shapes = tensor_shapes(spec)
    return TensorTable(
        {name: partial(_quantized, weights, name, spec, recipe, quantize) for name in weights},
        {name: partial(_format_name, weights, name, shapes[name], recipe, spec) for name in weights},
    )


def check_quantizable(weights: TensorTable, spec: ModelSpec, recipe: Recipe) -> None:
    """Raises InvalidRequestError where the recipe makes no weight smaller. Reads no values."""
    shapes = {name: shape for name, shape in tensor_shapes(spec).items() if len(shape) == 2}
    stored = {name: quant.BY_NAME[weights.stored_format(name)] for name in shapes}
    if all(target_format(stored[name], shapes[name], recipe, name, spec) is stored[name] for name in shapes):
        found = stored["embed_tokens.weight"].name
        raise InvalidRequestError(
            f"quantization={recipe.name!r}: the weights are {found} already, only wider floats can be quantized",
            param="quantization",
        )


def target_format(stored: QuantFormat, shape: Shape, recipe: Recipe, name: str, spec: ModelSpec) -> QuantFormat:
    """The format a weight is run in: the recipe's for a float matrix, if that is narrower, else its own."""
    is_matrix = len(shape) == 2 and not name.endswith(_GAINS)
    if not is_matrix or stored.group_size > 1 or name in _LOOKED_UP:
        return stored
    found = recipe.format_of(name, shape[-1], spec)
    return found if found is not None and _bits(found) < _bits(stored) else stored


def _quantized(weights: TensorTable, name: str, spec: ModelSpec, recipe: Recipe, quantize: Quantizer) -> Tensor:
    tensor = weights[name]
    target = target_format(tensor.format, tensor.shape, recipe, name, spec)
    return tensor if target is tensor.format else quantize(target, tensor, name)


def _format_name(weights: TensorTable, name: str, shape: Shape, recipe: Recipe, spec: ModelSpec) -> str:
    return target_format(quant.BY_NAME[weights.stored_format(name)], shape, recipe, name, spec).name


def _bits(f: QuantFormat) -> float:
    return f.group_bytes * 8 / f.group_size


def quantize_tensor(target: QuantFormat, tensor: Tensor, name: str) -> Tensor:
    """A Quantizer in NumPy, a few rows at a time: exact, and slow for all but float formats.

    Raises ModelFileError for weights that are not finite, InvalidRequestError for those `target` cannot hold.
    """
    data = np.empty((len(tensor.data), target.row_bytes(tensor.shape[-1])), np.uint8)
    for rows, values in _chunks(tensor):
        largest = np.abs(values).max()
        if not np.isfinite(largest):
            raise _not_finite(name)
        data[rows] = _quantized_rows(target, values)
        if largest > _ALWAYS_FITS and not np.isfinite(target.dequantize(data[rows])).all():
            raise _too_large(name, target)
    return Tensor(target, tensor.shape, data)


def refusal(target: QuantFormat, tensor: Tensor, name: str) -> TuiliError:
    """What a weight is refused with that has no finite form in `target`."""
    is_finite = all(np.isfinite(values).all() for _, values in _chunks(tensor))
    return _too_large(name, target) if is_finite else _not_finite(name)


def _chunks(tensor: Tensor) -> Iterator[tuple[slice, Floats]]:
    step = max(1, _CHUNK // tensor.shape[-1])
    for start in range(0, len(tensor.data), step):
        rows = slice(start, start + step)
        yield rows, tensor.format.dequantize(tensor.data[rows])


def _quantized_rows(target: QuantFormat, values: Floats) -> Bytes:
    with np.errstate(over="ignore", invalid="ignore"):  # of what is refused afterwards
        return target.quantize(values)


def _not_finite(name: str) -> ModelFileError:
    return ModelFileError(f"weight {name} is not finite, which cannot be quantized")


def _too_large(name: str, target: QuantFormat) -> InvalidRequestError:
    return InvalidRequestError(
        f"weight {name} holds numbers too large for {target.name}, allowed: a format that reaches as far, as BF16",
        param="quantization",
    )
