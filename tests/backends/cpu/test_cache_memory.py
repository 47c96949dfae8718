"""Blocks that go back to the system: their memory is free, and nobody else's words change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.batches import Driver, Work
from support.random_models import decoder, layer, random_weights
from tuili.backend import Backend, BackendOptions, GivesBlocksBack
from tuili.backends import load_backend
from tuili.machine import process_memory

TEXT = list(range(60))
NUM_BLOCKS = 4000


@pytest.fixture(params=["bfloat16", "int8"])
def backend(request: pytest.FixtureRequest) -> Backend:
    spec = decoder(layer(sliding_window=24), layer())
    options = BackendOptions(max_model_len=64, num_threads=1, kv_cache_dtype=request.param)
    return load_backend("cpu", spec, random_weights(spec, "Q8_0"), options)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process's own memory")
def test_blocks_given_back_take_no_memory_until_they_are_written_again(backend: Backend) -> None:
    assert isinstance(backend, GivesBlocksBack)
    driver = Driver(backend, num_blocks=NUM_BLOCKS)
    sizes = [group.block_bytes for group in driver.groups]
    expected, text = driver.logits(TEXT), driver.text()
    found = driver.step([Work(text, TEXT[:50])])
    free = [[b for b in range(NUM_BLOCKS) if b not in table] for table in text.tables]
    copies = [(g, text.tables[g][0], block) for g in range(len(sizes)) for block in free[g]]
    driver.step([Work(driver.text(), TEXT[:1])], copies=copies)
    before = process_memory()[0]
    for group, blocks in enumerate(free):
        backend.give_back_blocks(group, blocks[::-1])
    assert before - process_memory()[0] > 0.9 * NUM_BLOCKS * sum(sizes)
    last = driver.step([Work(text, TEXT[50:])])
    np.testing.assert_array_equal(np.concatenate([found.logits, last.logits]), expected[[49, 59]])
    np.testing.assert_array_equal(driver.logits(TEXT), expected)


@pytest.mark.parametrize(("group", "blocks"), [(2, [0]), (-1, [0]), (0, [-1]), (0, [NUM_BLOCKS - 1, NUM_BLOCKS])])
def test_a_block_that_does_not_exist_is_refused(backend: Backend, group: int, blocks: list[int]) -> None:
    assert isinstance(backend, GivesBlocksBack)
    Driver(backend, num_blocks=NUM_BLOCKS)
    with pytest.raises(ValueError, match=r"out of range|no cache group"):
        backend.give_back_blocks(group, blocks)
