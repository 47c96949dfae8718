"""What a model will take in this backend, told from its description before a weight is read.

The sizes are those of csrc: arena and panels (weights.cpp), cache planes (kv_cache.cpp), step buffers (workspace.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping

from tuili.backend import CacheGroup, window_groups
from tuili.backends.cpu import _native
from tuili.backends.cpu.native_model import LayerGroups, attention_specs, check_supported
from tuili.config import KvCacheDtype
from tuili.errors import UnsupportedModelError
from tuili.models.spec import MlpSpec, ModelSpec

_LINE = 64  # the arena's alignment
_VECTOR_PADDING = 32 * 4
_FLOAT = 4
_MAX_LOGITS, _MIN_HEAD_ROWS, _MAX_HEAD_ROWS = 8 << 20, 8, 128
_SAMPLER_BYTES = 2 * _FLOAT + 2 * 8  # of each worker for a vocabulary entry: logits, weights, sums, candidates
_STACK_BYTES = 256 << 10  # of a thread: its stack, its allocator's arena, its attention scratch

Stored = Mapping[str, tuple[str, tuple[int, ...]]]  # weight -> format name and shape


def weight_bytes(stored: Stored) -> int:
    """Bytes of the packed weights. Raises UnsupportedModelError for a format without kernels."""
    return sum(_packed_bytes(name, weight_format, shape) for name, (weight_format, shape) in stored.items())


def _packed_bytes(name: str, weight_format: str, shape: tuple[int, ...]) -> int:
    if len(shape) == 1:
        num_bytes = shape[0] * _FLOAT + _VECTOR_PADDING
    else:
        try:
            num_bytes = _native.packed_bytes(weight_format, shape[0], shape[1])
        except ValueError as error:
            raise UnsupportedModelError(f"{name}: {error}") from error
    return -(-num_bytes // _LINE) * _LINE


def cache_groups(spec: ModelSpec, kv_cache_dtype: KvCacheDtype, block_size: int) -> tuple[CacheGroup, ...]:
    """What CpuBackend.cache_groups will answer. Raises UnsupportedModelError naming what the backend lacks."""
    check_supported(spec)
    groups = LayerGroups.of(spec)
    block_bytes = [0] * len(groups.windows)
    for group, mixer in zip(groups.of_layer, attention_specs(spec), strict=True):
        plane = _native.cache_plane_bytes(kv_cache_dtype, mixer.head_dim, block_size)
        block_bytes[group] += mixer.num_kv_heads * plane
    return window_groups(groups.windows, block_bytes, block_size)


def workspace_bytes(spec: ModelSpec, *, num_tokens: int, num_rows: int, num_positions: int, num_threads: int) -> int:
    """Bytes that steps of up to `num_tokens` tokens and `num_rows` sampled rows come to work in.

    num_positions: how far a text gets; rotary tables are made up to there.
    """
    mixers = attention_specs(spec)
    q_size = max(a.num_heads * a.head_dim for a in mixers)
    qkv_size = max((a.num_heads + 2 * a.num_kv_heads) * a.head_dim for a in mixers)
    mlp_size = max(y.mlp.intermediate_size for y in spec.layers if isinstance(y.mlp, MlpSpec))
    codes = spec.hidden_size + q_size + mlp_size  # int8, with three numbers for each 32 of them
    per_token = (spec.hidden_size + qkv_size + q_size) * _FLOAT + codes + codes // 32 * 3 * _FLOAT
    if any(y.norms != "pre" for y in spec.layers) or spec.norm != "rms":
        per_token += spec.hidden_size * _FLOAT
    head_rows = min(num_rows, max(_MIN_HEAD_ROWS, min(_MAX_HEAD_ROWS, _MAX_LOGITS // spec.vocab_size)))
    ropes = {a.rope for a in mixers if a.rope is not None}
    tables = sum(num_positions * rope.dim * _FLOAT for rope in ropes)
    sampling = num_threads * spec.vocab_size * _SAMPLER_BYTES
    threads = num_threads * _STACK_BYTES
    return num_tokens * per_token + head_rows * spec.vocab_size * _FLOAT + tables + sampling + threads
