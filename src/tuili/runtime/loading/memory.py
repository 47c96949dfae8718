"""How long a context and how large a KV cache the free memory holds. Arithmetic over a measured limit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from tuili.backend import Backend, CacheGroup, DeviceRoom, MeasuredBackend
from tuili.config import GPU_MEMORY_UTILIZATION, EngineConfig
from tuili.engine.cache.cache_plan import needed_bytes
from tuili.errors import InsufficientMemoryError

CACHE_SHARE = 0.4  # of the memory that is free before the weights are packed
_log = logging.getLogger(__name__)


def size_cache(
    groups: Sequence[CacheGroup],
    config: EngineConfig,
    free_bytes: int,
    *,
    may_shorten: bool,
) -> EngineConfig:
    """`config` with kv_cache_memory_bytes for all its sequences at full length, but at most a share of what is free.

    With may_shorten, max_model_len comes down to what one sequence can have. Raises
    InsufficientMemoryError, with the numbers, when not even one sequence fits.
    """
    return _within(groups, config, int(free_bytes * CACHE_SHARE), may_shorten, "", "free some memory")


def measured_room(backend: Backend, config: EngineConfig, utilization: float | None) -> DeviceRoom | None:
    """What the backend's device has left, None where its memory is the host's. Raises InsufficientMemoryError."""
    if not isinstance(backend, MeasuredBackend):
        return None
    return backend.measure_room(config, GPU_MEMORY_UTILIZATION if utilization is None else utilization)


def size_device_cache(
    groups: Sequence[CacheGroup], config: EngineConfig, room: DeviceRoom, *, may_shorten: bool
) -> EngineConfig:
    """As size_cache within what was measured; of a kv_cache_memory_bytes that was given, what is there.

    Raises InsufficientMemoryError, with the numbers.
    """
    given = config.kv_cache_memory_bytes
    limit = room.cache_bytes if given is None else min(given, room.free_bytes)
    if given is not None and limit < given:
        _log.warning(
            "kv_cache_memory_bytes: of %.2f GiB %.2f are there on %s", given / 2**30, limit / 2**30, room.device
        )
    sizes = (room.total_bytes, room.other_bytes, room.weight_bytes, room.step_bytes)
    total, others, weights, step = (size / 2**30 for size in sizes)
    share = room.utilization
    found = (
        f" (of {total:.2f} GiB on {room.device} gpu_memory_utilization {share:g} grants {total * share:.2f}; weights "
        f"take {weights:.2f}, a step of {config.max_num_batched_tokens} tokens {step:.2f}, others {others:.2f})"
    )
    advice = "raise gpu_memory_utilization or lower max_num_batched_tokens"
    return _within(groups, config, limit, may_shorten, found, advice)


def _within(
    groups: Sequence[CacheGroup], config: EngineConfig, limit: int, may_shorten: bool, found: str, advice: str
) -> EngineConfig:
    """`found` says where the limit comes from, `advice` what to do where no context at all has room."""
    fitting = _fitting_len(groups, config, limit)
    if fitting < (1 if may_shorten else config.max_model_len):
        need = needed_bytes(groups, config, 1)
        if fitting:
            advice = f"lower max_model_len to {fitting}" + (f", {advice}" if found else "")
        raise InsufficientMemoryError(
            f"a context of {config.max_model_len} tokens needs {need / 2**20:.1f} MiB of KV cache, "
            f"{limit / 2**20:.1f} MiB are available for it{found}: {advice}"
        )
    config = replace(config, max_model_len=fitting)
    if config.kv_cache_memory_bytes is not None:
        return replace(config, kv_cache_memory_bytes=limit)
    return replace(config, kv_cache_memory_bytes=min(needed_bytes(groups, config, config.max_num_seqs), limit))


def _fitting_len(groups: Sequence[CacheGroup], config: EngineConfig, limit: int) -> int:
    """The largest context, up to config.max_model_len, of which one sequence fits into `limit` bytes; 0: none."""
    low, high = 0, config.max_model_len
    while low < high:
        middle = (low + high + 1) // 2
        fits = needed_bytes(groups, replace(config, max_model_len=middle), 1) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
