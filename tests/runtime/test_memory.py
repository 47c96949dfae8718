"""Sizing the KV cache: pure arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuili.backend import CacheGroup
from tuili.errors import InsufficientMemoryError
from tuili.runtime.memory import CACHE_SHARE, CacheDemand, fitting_model_len, kv_cache_bytes

FULL = CacheGroup(kind="full", block_bytes=1000, block_size=64)
WINDOW = CacheGroup(kind="window", block_bytes=500, block_size=64, window=512)


def _demand(max_model_len: int, max_num_seqs: int = 4) -> CacheDemand:
    return CacheDemand(groups=(FULL, WINDOW), max_model_len=max_model_len, max_num_seqs=max_num_seqs)


def test_a_window_group_asks_for_no_more_than_its_window() -> None:
    assert _demand(64).one_sequence_bytes == 1000 + 500
    assert _demand(6400).one_sequence_bytes == 100 * 1000 + 10 * 500


def test_the_cache_holds_every_sequence_when_memory_allows() -> None:
    assert kv_cache_bytes(_demand(64), 10**9) == 4 * 1500
    assert kv_cache_bytes(_demand(64), int(2000 / CACHE_SHARE)) == 2000


def test_a_context_that_does_not_fit_is_refused_with_the_length_that_does() -> None:
    with pytest.raises(InsufficientMemoryError, match=r"6400 tokens needs .* lower max_model_len to 64$"):
        kv_cache_bytes(_demand(6400), int(1600 / CACHE_SHARE))


@given(length=st.integers(1, 10**6), free=st.integers(0, 10**9))
def test_the_fitting_length_is_the_largest(length: int, free: int) -> None:
    fitting = fitting_model_len(_demand(length), free)
    limit = int(free * CACHE_SHARE)
    assert fitting == 0 or _demand(length).bytes_for(fitting) <= limit
    assert fitting == length or _demand(length).bytes_for(fitting + 1) > limit
