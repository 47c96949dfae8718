"""Which layers a device's memory has room for, and which run on the host instead. Reads sizes; no weights.

The first layers, with the embedding, are the host's: hidden states go to the device once, before its first layer.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass

import torch

from tuili.backend import BackendOptions
from tuili.backends.torch.devices import synchronize
from tuili.backends.torch.memory import device_memory
from tuili.backends.torch.ops import PACKABLE
from tuili.backends.torch_sizes.footprint import LEAST_CONTEXT, WORK_SHARE, asked_host_layers, layers_that_fit
from tuili.errors import InsufficientMemoryError
from tuili.machine import available_memory
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.quant.format import Tensor as FileTensor

_FLOAT_BYTES = 4
_TIMED_BYTES = 32 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """Bytes of a model on a device."""

    layers: tuple[int, ...]  # weights
    caches: tuple[int, ...]  # of the least context, by layer
    rest: int  # head and final norm, and the embedding where that is the head

    @property
    def num_bytes(self) -> int:
        return sum(self.layers) + self.rest


def model_sizes(
    spec: ModelSpec, packed: Mapping[str, FileTensor], dtype: torch.dtype, max_model_len: int
) -> ModelSizes:
    """As WeightReader will keep the weights: of `packed` those that stay so, the others as dtype."""
    layers, rest = [0] * len(spec.layers), 0
    for name, shape in tensor_shapes(spec).items():
        tensor = packed.get(name)
        item = _FLOAT_BYTES if len(shape) == 1 else dtype.itemsize
        is_packed = tensor is not None and tensor.format.name in PACKABLE
        size = tensor.data.nbytes if tensor is not None and is_packed else math.prod(shape) * item
        if name.startswith("layers."):
            layers[int(name.split(".")[1])] += size
        elif not name.startswith(("embed_", "project_in")) or (
            spec.tie_word_embeddings and name == "embed_tokens.weight"
        ):
            rest += size
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]
    context = min(max_model_len, LEAST_CONTEXT)
    caches = tuple(2 * a.num_kv_heads * a.head_dim * dtype.itemsize * context for a in mixers)
    return ModelSizes(layers=tuple(layers), caches=caches, rest=rest)


def num_host_layers(sizes: ModelSizes, options: BackendOptions, device: torch.device) -> int:
    """How many of the first layers run on the host beside a device: as many as asked for, else as few as memory lets.

    Raises InsufficientMemoryError, with the numbers, where not even the head fits on the device.
    """
    count, memory = len(sizes.layers), device_memory(device)
    if device.type == "cpu":
        return 0
    asked = asked_host_layers(sizes.layers, options.gpu_layers, options.cpu_offload_bytes)
    if memory is None or options.gpu_layers is not None:
        return asked
    total, free = memory.total_bytes(), memory.free_bytes() + memory.reserved_bytes()
    room = int((1 - WORK_SHARE) * (free - total + int(options.gpu_memory_utilization * total))) - sizes.rest
    if room < 0:
        raise InsufficientMemoryError(
            f"of the weights, {sizes.num_bytes / 2**30:.2f} GiB, not even the head's {sizes.rest / 2**30:.2f} fit on "
            f"{device}: {free / 2**30:.2f} of its {total / 2**30:.2f} GiB are free, and gpu_memory_utilization is "
            f"{options.gpu_memory_utilization:g}"
        )
    return max(asked, count - layers_that_fit(sizes.layers, sizes.caches, room))


def tell_split(sizes: ModelSizes, num_host: int, device: torch.device) -> None:
    """Warns of what will be slow. Raises InsufficientMemoryError where the host has no room for its layers."""
    on_host, on_device = sum(sizes.layers[:num_host]), sizes.num_bytes - sum(sizes.layers[:num_host])
    if on_host > (free := available_memory()):
        raise InsufficientMemoryError(
            f"{num_host} of {len(sizes.layers)} layers would run on the CPU, whose memory has {free / 2**30:.2f} GiB "
            f"free for their {on_host / 2**30:.2f} GiB"
        )
    host_rate, device_rate = (_bytes_per_s(where) for where in (torch.device("cpu"), device))
    slowdown = (on_host / host_rate + on_device / device_rate) / ((on_host + on_device) / device_rate)
    _log.warning(
        "layers 0 to %d of %d, %.2f GiB, run on the CPU, the others with the head, %.2f GiB, on %s: a token of one "
        "text takes about %.0f times as long as if all were there (memory is read at %.0f and %.0f GB/s)",
        *(num_host - 1, len(sizes.layers), on_host / 2**30, on_device / 2**30, device),
        *(max(1.0, slowdown), host_rate / 1e9, device_rate / 1e9),
    )


def _bytes_per_s(device: torch.device) -> float:
    """At which memory is read and written."""
    source = torch.zeros(_TIMED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found: ListLike[float] = [_seconds(source, target, device) for _ in range(4)]
    return 2 * _TIMED_BYTES / max(min(found), 1e-9)


def _seconds(source: torch.Tensor, target: torch.Tensor, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    target.copy_(source)
    synchronize(device)
    return time.perf_counter() - started
