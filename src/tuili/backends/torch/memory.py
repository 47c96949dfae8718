"""What a device's memory has left for a cache, found by running the largest step. Knows no layers and no engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from typing import Any, Protocol

import numpy as np
import torch

from tuili.backend import Batch, CacheGroup, DeviceRoom, SamplingArrays
from tuili.backends.torch.cache import is_out_of_memory
from tuili.backends.torch.devices import release_memory
from tuili.config import EngineConfig
from tuili.errors import InsufficientMemoryError

_NUM_LOGPROBS = 20
_TOP_P = 0.9
_log = logging.getLogger(__name__)


class DeviceMemory(Protocol):
    """Counts bytes of one device; `reserved` are those that torch holds in this process."""

    def total_bytes(self) -> int: ...

    def free_bytes(self) -> int:
        """Which no process has."""

    def reserved_bytes(self) -> int: ...

    def peak_bytes(self) -> int:
        """The most that was reserved since reset_peak()."""

    def reset_peak(self) -> None:
        """Gives back what torch holds without using it, and starts to look anew."""


class TorchMemory:
    """A device that has a memory of its own, as torch counts it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = getattr(torch, device.type)

    def total_bytes(self) -> int:
        total: int = self._module.mem_get_info(self._device)[1]
        return total

    def free_bytes(self) -> int:
        free: int = self._module.mem_get_info(self._device)[0]
        return free

    def reserved_bytes(self) -> int:
        reserved: int = self._module.memory_reserved(self._device)
        return reserved

    def peak_bytes(self) -> int:
        peak: int = self._module.max_memory_reserved(self._device)
        return peak

    def reset_peak(self) -> None:
        self._module.synchronize(self._device)
        release_memory(self._device)
        self._module.reset_peak_memory_stats(self._device)


def device_memory(device: torch.device) -> DeviceMemory | None:
    """None where the device's memory is the host's."""
    return TorchMemory(device) if device.type in ("cuda", "xpu") else None


def measure_room(
    memory: DeviceMemory, run_largest: Callable[[], int], device: str, config: EngineConfig, utilization: float
) -> DeviceRoom:
    """run_largest allocates a cache, runs the largest step, frees the cache, and returns what is only that one's.

    Raises InsufficientMemoryError where it finds no memory.
    """
    started = time.monotonic()
    memory.reset_peak()
    weights = memory.reserved_bytes()
    try:
        cache_bytes = run_largest()
    except (RuntimeError, InsufficientMemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        raise InsufficientMemoryError(
            f"beside weights of {weights / 2**30:.2f} GiB, a step of {config.max_num_batched_tokens} tokens in texts "
            f"of up to {config.max_model_len} finds no memory on {device}: of its "
            f"{memory.total_bytes() / 2**30:.2f} GiB {memory.free_bytes() / 2**30:.2f} are free; lower "
            "max_num_batched_tokens, max_num_seqs or max_model_len"
        ) from error.with_traceback(None)
    step_bytes = max(0, memory.peak_bytes() - weights - cache_bytes)
    memory.reset_peak()
    total = memory.total_bytes()
    room = DeviceRoom(
        device=device,
        total_bytes=total,
        other_bytes=max(0, total - memory.free_bytes() - memory.reserved_bytes()),
        weight_bytes=weights,
        step_bytes=step_bytes,
        utilization=utilization,
    )
    _log.info(
        "%s has %.2f GiB: weights take %.2f, a step of %d tokens %.2f, others %.2f; %.2f are left for the KV cache at "
        "gpu_memory_utilization %g (measured in %.1f s)",
        *(device, total / 2**30, weights / 2**30, config.max_num_batched_tokens, step_bytes / 2**30),
        *(room.other_bytes / 2**30, room.cache_bytes / 2**30, utilization, time.monotonic() - started),
    )
    return room


def largest_batch(config: EngineConfig, groups: ListLike[CacheGroup], vocab_size: int) -> Batch:
    """As many tokens and sequences as there may be, one at the end of the longest context, all scored, S drawn.

    All share the first blocks of the cache, as many as the longest chunk needs: what is computed means nothing.
    """
    lengths = _lengths(config)
    num_tokens, num_seqs = int(lengths.sum()), len(lengths)
    query_start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    contexts = lengths.copy()
    contexts[-1] = config.max_model_len
    offsets = np.arange(num_tokens, dtype=np.int32) - np.repeat(query_start[:-1], lengths)
    chosen = np.isin(np.arange(num_tokens), query_start[1:] - 1)
    width = -(-config.max_model_len // config.block_size)
    table = np.arange(width, dtype=np.int32) % num_blocks(config)
    return Batch(
        input_ids=np.arange(num_tokens, dtype=np.int32) % np.int32(vocab_size),
        positions=offsets + np.repeat(contexts - lengths, lengths),
        query_start=query_start,
        seq_lens=contexts,
        block_tables=np.tile(table, (len(groups), num_seqs, 1)),
        slot_mapping=np.tile(offsets, (len(groups), 1)),
        block_copies=np.empty((0, 3), np.int32),
        slots=np.arange(num_seqs, dtype=np.int32),
        carry=np.zeros(num_seqs, np.bool_),
        sample_rows=np.arange(num_tokens, dtype=np.int32),
        targets=np.where(chosen, -1, 0).astype(np.int32),
        num_logprobs=np.full(num_tokens, min(_NUM_LOGPROBS, vocab_size), np.int32),
        sampling=_draws(num_tokens),
    )


def num_blocks(config: EngineConfig) -> int:
    """Blocks of each group that largest_batch writes to."""
    return -(-int(_lengths(config).max()) // config.block_size)


def _lengths(config: EngineConfig) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Tokens of each sequence: one, the first ones as many as there is place for."""
    count = min(config.max_num_seqs, config.max_num_batched_tokens)
    lengths = np.ones(count, np.int32)
    left = config.max_num_batched_tokens - count
    for s in range(count):
        more = min(left, config.max_model_len - 1)
        lengths[s] += more
        left -= more
    return lengths


def _draws(num_rows: int) -> SamplingArrays:
    """Rows that sort their whole vocabulary."""
    starts, ids = np.zeros(num_rows + 1, np.int32), np.empty(0, np.int32)
    ones, zeros, values = np.ones(num_rows, np.float32), np.zeros(num_rows, np.float32), np.empty(0, np.float32)
    indexes = np.arange(num_rows, dtype=np.int32)
    return SamplingArrays(
        temperature=ones,
        top_k=np.zeros(num_rows, np.int32),
        top_p=np.full(num_rows, _TOP_P, np.float32),
        min_p=zeros,
        repetition_penalty=ones,
        presence_penalty=zeros,
        frequency_penalty=zeros,
        seed=np.zeros(num_rows, np.uint64),
        sample_index=np.zeros(num_rows, np.int32),
        position=indexes,
        history_start=starts,
        history_ids=ids,
        history_counts=ids,
        bias_start=starts,
        bias_ids=ids,
        bias_values=values,
        chain_start=starts,
        chain_kinds=ids,
        chain_values=np.empty((0, 3), np.float32),
        dry_start=starts,
        dry_ids=ids,
        dry_values=values,
        sampler_state=np.full(num_rows, np.nan, np.float32),
    )
