"""Which layers each stage of a pipeline has, so that all have about as many bytes. Reads a spec and formats only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as ListLike

from tuili.backends.torch.ops import PACKABLE
from tuili.backends.torch.parallel.cutting import stored_format
from tuili.checks import refusal
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import ModelSpec
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor

_FLOAT_BYTES = 4


def check_stages(spec: ModelSpec, size: int) -> None:
    """Raises InvalidRequestError for more stages than layers."""
    if size > spec.num_layers:
        raise refusal(
            "pipeline_parallel_size", size, f"at most {spec.num_layers}, as the model has {spec.num_layers} layers"
        )


def stage_ends(
    spec: ModelSpec, weights: Mapping[str, Tensor], size: int, item_bytes: int, *, keep_packed: bool
) -> tuple[int, ...]:
    """Where each of `size` stages ends: the layer behind its last one. The largest stage is as small as can be.

    item_bytes are a weight's in the model's dtype, which matrices become that are not kept packed. Reads no values
    where the table can tell formats. Raises what check_stages raises.
    """
    check_stages(spec, size)
    layers, first, last = [0] * spec.num_layers, 0, 0
    for name, shape in tensor_shapes(spec).items():
        kept = stored_format(weights, name) if keep_packed and len(shape) > 1 else ""
        num_bytes = _num_bytes(shape, kept if kept in PACKABLE else "", item_bytes)
        if name.startswith("layers."):
            layers[int(name.split(".")[1])] += num_bytes
        elif name.startswith(("embed_", "project_in")):
            first += num_bytes
            last += num_bytes if spec.tie_word_embeddings and name == "embed_tokens.weight" else 0
        else:
            last += num_bytes
    layers[0] += first
    layers[-1] += last
    return shared_out(layers, size)


def _num_bytes(shape: tuple[int, ...], packed: str, item_bytes: int) -> int:
    if packed:
        kept = BY_NAME[packed]
        return math.prod(shape) // kept.group_size * kept.group_bytes
    return math.prod(shape) * (_FLOAT_BYTES if len(shape) == 1 else item_bytes)


def shared_out(sizes: ListLike[int], count: int) -> tuple[int, ...]:
    """Ends of `count` runs of sizes, none empty: the largest sum is least, then the sum of squares."""
    before = [0]
    for size in sizes:
        before.append(before[-1] + size)
    total = len(sizes)
    best: dict[int, tuple[tuple[int, int], tuple[int, ...]]] = {0: ((0, 0), ())}
    for run in range(1, count + 1):
        found = {}
        for end in range(run, total - count + run + 1):
            choices = []
            for start, ((largest, squares), ends) in best.items():
                if start < end:
                    own = before[end] - before[start]
                    choices.append(((max(largest, own), squares + own * own), (*ends, end)))
            found[end] = min(choices)
        best = found
    return best[total][1]
