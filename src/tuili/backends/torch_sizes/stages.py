"""Which layers each stage of a pipeline has, so that all have about as many bytes. Reads a spec and formats only."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ListLike

from tuili.backends.torch_sizes.footprint import kept_bytes
from tuili.checks import refusal
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import ModelSpec

FormatOf = Callable[[str], str]  # weight -> the name of the format that it is stored in


def check_stages(spec: ModelSpec, size: int) -> None:
    """Raises InvalidRequestError for more stages than layers."""
    if size > spec.num_layers:
        raise refusal(
            "pipeline_parallel_size", size, f"at most {spec.num_layers}, as the model has {spec.num_layers} layers"
        )


def stage_of(rank: int, width: int, size: int) -> int:
    """Of a rank, where `width` share a layer: the first are the last stage, the next ones the first."""
    return (rank // width - 1) % size


def is_of_stage(name: str, layers: range, *, is_first: bool, is_last: bool, is_tied: bool) -> bool:
    """Whether a stage with these layers has that weight; is_tied: the embedding is the head, too."""
    if name.startswith("layers."):
        return int(name.split(".")[1]) in layers
    if is_tied and name == "embed_tokens.weight":
        return is_first or is_last
    return is_first if name.startswith(("embed_", "project_in")) else is_last


def stage_ends(
    spec: ModelSpec, format_of: FormatOf, size: int, item_bytes: int, *, keeps_packed: bool
) -> tuple[int, ...]:
    """Where each of `size` stages ends: the layer behind its last one. The largest stage is as small as can be.

    item_bytes are a weight's in the model's dtype, which matrices become that are not kept packed. Raises what
    check_stages raises.
    """
    check_stages(spec, size)
    if size == 1:
        return (spec.num_layers,)
    sizes = [0] * spec.num_layers
    for name, shape in tensor_shapes(spec).items():
        num_bytes = kept_bytes(shape, format_of(name) if keeps_packed else "", item_bytes)
        for i in _owners(name, spec):
            sizes[i] += num_bytes
    return shared_out(sizes, size)


def _owners(name: str, spec: ModelSpec) -> list[int]:
    """The layers that the weight goes with: its own, or the first, the last, or both."""
    if name.startswith("layers."):
        return [int(name.split(".")[1])]
    own, is_tied = range(0), spec.tie_word_embeddings
    is_first = is_of_stage(name, own, is_first=True, is_last=False, is_tied=is_tied)
    is_last = is_of_stage(name, own, is_first=False, is_last=True, is_tied=is_tied)
    return [0] * is_first + [spec.num_layers - 1] * is_last


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
