"""Sizing the KV cache: what is promised as max_model_len can really be held."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuili.backend import CacheGroup, DeviceRoom
from tuili.config import EngineConfig
from tuili.engine.cache.block_manager import BlockManager
from tuili.engine.cache.cache_plan import plan_cache
from tuili.errors import InsufficientMemoryError
from tuili.runtime.loading.memory import CACHE_SHARE, size_cache, size_device_cache

FULL = CacheGroup(kind="full", block_bytes=1000, block_size=64)
WINDOW = CacheGroup(kind="window", block_bytes=5000, block_size=64, window=512)
GROUPS = (FULL, WINDOW)


def _config(max_model_len: int, max_num_seqs: int = 4) -> EngineConfig:
    return EngineConfig(max_model_len=max_model_len, max_num_seqs=max_num_seqs, max_num_batched_tokens=256)


def test_the_cache_holds_every_sequence_when_memory_allows() -> None:
    sized = size_cache((FULL,), _config(640), 10**9, may_shorten=False)
    assert sized.kv_cache_memory_bytes == 4 * 10 * 1000
    assert sized.max_model_len == 640


def test_a_window_group_asks_for_no_more_than_its_windows() -> None:
    short, long = (size_cache(GROUPS, _config(n, 1), 10**9, may_shorten=False) for n in (6400, 12800))
    assert short.kv_cache_memory_bytes is not None
    assert long.kv_cache_memory_bytes == short.kv_cache_memory_bytes + 100 * 1000


def test_no_more_than_a_share_of_the_free_memory_is_taken() -> None:
    assert (
        size_cache((FULL,), _config(640), int(25_000 / CACHE_SHARE), may_shorten=False).kv_cache_memory_bytes == 25_000
    )


def test_a_context_that_does_not_fit_is_refused_with_the_length_that_does() -> None:
    with pytest.raises(InsufficientMemoryError, match=r"6400 tokens needs 0\.1 MiB .* lower max_model_len to 192$"):
        size_cache((FULL,), _config(6400), int(3500 / CACHE_SHARE), may_shorten=False)
    assert size_cache((FULL,), _config(6400), int(3500 / CACHE_SHARE), may_shorten=True).max_model_len == 192


def test_memory_for_not_even_one_block_is_an_error_with_the_numbers() -> None:
    with pytest.raises(InsufficientMemoryError, match=r"0\.0 MiB are available for it: free some memory"):
        size_cache(GROUPS, _config(6400), 100, may_shorten=True)


@settings(deadline=None)
@given(
    length=st.integers(1, 200_000), num_seqs=st.integers(1, 40), free=st.integers(20_000, 10**8), shorten=st.booleans()
)
def test_what_is_promised_fits_one_sequence(length: int, num_seqs: int, free: int, shorten: bool) -> None:
    try:
        config = size_cache(GROUPS, _config(length, num_seqs), free, may_shorten=shorten)
    except InsufficientMemoryError:
        return
    assert config.kv_cache_memory_bytes is not None
    assert config.kv_cache_memory_bytes <= free * CACHE_SHARE
    assert shorten or config.max_model_len == length
    manager = BlockManager(
        GROUPS,
        plan_cache(GROUPS, config),
        max_num_seqs=num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
    )
    assert manager.capacity is None or manager.capacity >= config.max_model_len


ROOM = DeviceRoom(
    device="cuda:0",
    total_bytes=100 << 30,
    other_bytes=10 << 30,
    weight_bytes=60 << 30,
    step_bytes=15 << 30,
    utilization=0.9,
)
LARGE = CacheGroup(kind="full", block_bytes=1 << 30, block_size=64)


def test_a_devices_cache_is_what_was_measured() -> None:
    assert ROOM.cache_bytes == 5 << 30
    sized = size_device_cache((LARGE,), _config(640), ROOM, may_shorten=True)
    assert (sized.max_model_len, sized.kv_cache_memory_bytes) == (320, 5 << 30)
    small = size_device_cache((FULL,), _config(640), ROOM, may_shorten=False)
    assert small.kv_cache_memory_bytes == 4 * 10 * 1000


def test_a_given_cache_may_take_what_nobody_has(caplog: pytest.LogCaptureFixture) -> None:
    asked = replace(_config(640), kv_cache_memory_bytes=12 << 30)
    assert size_device_cache((LARGE,), asked, ROOM, may_shorten=False).kv_cache_memory_bytes == 12 << 30
    assert not caplog.records
    more = replace(asked, kv_cache_memory_bytes=16 << 30)
    assert size_device_cache((LARGE,), more, ROOM, may_shorten=False).kv_cache_memory_bytes == 15 << 30
    assert "kv_cache_memory_bytes: of 16.00 GiB 15.00 are there on cuda:0" in caplog.text


def test_a_device_without_room_for_a_context_says_who_has_its_memory() -> None:
    found = (
        r"a context of 640 tokens needs 10240\.0 MiB of KV cache, 5120\.0 MiB are available for it \(of 100\.00 GiB on "
        r"cuda:0 gpu_memory_utilization 0\.9 grants 90\.00; weights take 60\.00, a step of 256 tokens 15\.00, others "
        r"10\.00\): lower max_model_len to 320, raise gpu_memory_utilization or lower max_num_batched_tokens$"
    )
    with pytest.raises(InsufficientMemoryError, match=found):
        size_device_cache((LARGE,), _config(640), ROOM, may_shorten=False)
    full = replace(ROOM, weight_bytes=80 << 30)
    assert full.cache_bytes == full.free_bytes == 0
    with pytest.raises(InsufficientMemoryError, match=r"\): raise gpu_memory_utilization or lower max_num_batched_"):
        size_device_cache((LARGE,), _config(640), full, may_shorten=True)
