"""What a model will take in the torch backend, told from its description. Imports no torch: a server asks, too."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tuili.backend import CacheGroup, window_groups
from tuili.backends import expected_backend
from tuili.config import KvCacheDtype
from tuili.models.spec import AttentionSpec, MlpSpec, ModelSpec
from tuili.quant import BY_NAME

LIBRARY_BYTES = 400 << 20  # of a process that has imported torch
GPU_CONTEXT_BYTES = 600 << 20  # that the driver and its libraries take on a GPU for each process
GPU_BATCHED_TOKENS = 8192  # devices.BATCHED_TOKENS of the GPUs whose memory a server can count
_FLOAT = 4
_LOGITS = 3 << 23  # that exist at one time, as floats: raw, as the dtype has them, and one more while they are scored
_CACHE_BYTES: Mapping[KvCacheDtype, int] = {"bfloat16": 2, "int8": 1, "fp8": 1}

PACKED = frozenset(("Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"))  # formats that stay packed on a GPU

Stored = Mapping[str, tuple[str, tuple[int, ...]]]  # weight -> format name and shape


def item_bytes(dtype: str, device: str | None) -> int:
    """Of a weight: as devices.choose_dtype chooses."""
    if dtype == "auto":
        is_cpu = device == "cpu" or (device in (None, "auto") and expected_backend(None, None) == "cpu")
        return _FLOAT if is_cpu else 2
    return _FLOAT if dtype in ("float", "float32") else 2


def weight_bytes(stored: Stored, item: int, *, keeps_packed: bool = False) -> int:
    """Bytes of the weights, as a GPU keeps them packed, or where none stays so."""
    num_bytes = 0
    for name, shape in stored.values():
        if keeps_packed and name in PACKED:
            num_bytes += math.prod(shape) // BY_NAME[name].group_size * BY_NAME[name].group_bytes
        else:
            num_bytes += math.prod(shape) * (_FLOAT if len(shape) == 1 else item)
    return num_bytes


def cache_groups(spec: ModelSpec, dtype: KvCacheDtype, item: int, block_size: int) -> tuple[CacheGroup, ...]:
    """What TorchBackend.cache_groups will answer."""
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]
    value = _CACHE_BYTES.get(dtype, item)
    windows = sorted({a.sliding_window for a in mixers}, key=lambda window: window or 0)
    sizes = [
        block_size
        * sum(
            2 * a.num_kv_heads * (a.head_dim * value + (_FLOAT if value == 1 else 0))
            for a in mixers
            if a.sliding_window == window
        )
        for window in windows
    ]
    return window_groups(windows, sizes, block_size)


def workspace_bytes(spec: ModelSpec, *, num_tokens: int, num_positions: int) -> int:
    """Bytes that steps of up to `num_tokens` tokens come to work in: a layer's intermediates, rotary tables, logits."""
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]
    heads = max((2 * a.num_heads + 2 * a.num_kv_heads) * a.head_dim for a in mixers)
    inner = max(layer.mlp.intermediate_size for layer in spec.layers if isinstance(layer.mlp, MlpSpec))
    per_token = (4 * spec.hidden_size + 2 * heads + 4 * inner) * _FLOAT
    ropes = {a.rope for a in mixers if a.rope is not None}
    tables = sum(num_positions * rope.dim * _FLOAT for rope in ropes)
    return num_tokens * per_token + tables + max(_LOGITS, 3 * spec.vocab_size) * _FLOAT
