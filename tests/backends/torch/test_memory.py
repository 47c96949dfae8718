"""A cache as large as what a device's memory has left, measured; and its blocks in host memory."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from support.batches import Driver, Work
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions, CacheGroup, DeviceRoom
from tuili.backends import load_backend
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.memory import largest_batch, num_blocks
from tuili.backends.torch.model import Model
from tuili.config import EngineConfig
from tuili.errors import InsufficientMemoryError

SPEC = decoder(layer(), layer(sliding_window=9))
GIB = 1 << 30


def loaded(**options: Any) -> TorchBackend:
    values = {"max_model_len": 256, "device": "cpu", **options}
    backend = load_backend("torch", SPEC, random_weights(SPEC), BackendOptions(**values))
    assert isinstance(backend, TorchBackend)
    return backend


class Card:
    """A device of 10 GiB: others have one, weights two, and steps come to three at most."""

    def __init__(self) -> None:
        self.reserved, self.peak, self.num_resets = 2 * GIB, 0, 0

    def total_bytes(self) -> int:
        return 10 * GIB

    def free_bytes(self) -> int:
        return 10 * GIB - GIB - self.reserved

    def reserved_bytes(self) -> int:
        return self.reserved

    def peak_bytes(self) -> int:
        return self.peak

    def reset_peak(self) -> None:
        self.num_resets += 1
        self.peak = 5 * GIB


def config(**limits: Any) -> EngineConfig:
    values = {"max_model_len": 200, "max_num_seqs": 4, "max_num_batched_tokens": 64, "block_size": 16, **limits}
    return EngineConfig(**values)


def test_a_cache_gets_what_weights_steps_and_others_leave(caplog: pytest.LogCaptureFixture) -> None:
    backend = loaded()
    backend.memory = Card()
    with caplog.at_level(logging.INFO, logger="tuili.backends.torch"):
        room = backend.measure_room(config(), 0.9)
    assert room is not None
    small = sum(group.block_bytes for group in backend.cache_groups(16)) * num_blocks(config())
    assert room == DeviceRoom(
        device="cpu",
        total_bytes=10 * GIB,
        other_bytes=GIB,
        weight_bytes=2 * GIB,
        step_bytes=3 * GIB - small,
        utilization=0.9,
    )
    assert room.cache_bytes == 9 * GIB - 6 * GIB + small
    assert room.free_bytes == 4 * GIB + small
    assert "cpu has 10.00 GiB: weights take 2.00, a step of 64 tokens 3.00, others 1.00; 3.00 are left" in caplog.text
    Driver(backend).logits([1, 2, 3])  # it goes on with a cache of its own


def test_what_is_reserved_takes_the_place_of_what_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else ever larger steps would leave the smaller blocks to torch, which keeps them."""
    backend = loaded()
    backend.memory = Card()
    told: list[str] = []
    monkeypatch.setattr(TorchBackend, "release", lambda _: told.append("released"))
    monkeypatch.setattr(torch, "empty", lambda size, **_: told.append(f"took {size}"))
    backend.reserve(7)
    assert told == ["released", "took 7"]


def test_a_device_that_shares_the_hosts_memory_is_not_measured() -> None:
    assert loaded().measure_room(config(), 0.9) is None


def test_a_step_too_large_to_be_measured_is_an_error_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    backend = loaded()
    backend.memory = Card()
    monkeypatch.setattr(Model, "hidden", fail)
    message = (
        r"beside weights of 2\.00 GiB, a step of 64 tokens in texts of up to 200 finds no memory on cpu: of its "
        r"10\.00 GiB 7\.00 are free; lower max_num_batched_tokens, max_num_seqs or max_model_len"
    )
    with pytest.raises(InsufficientMemoryError, match=message):
        backend.measure_room(config(), 0.9)


@pytest.mark.parametrize(
    ("limits", "lengths"),
    [
        ({}, [61, 1, 1, 1]),
        ({"max_model_len": 20}, [20, 20, 20, 4]),
        ({"max_num_seqs": 1}, [64]),
        ({"max_num_seqs": 1, "max_model_len": 50}, [50]),
        ({"max_num_batched_tokens": 4}, [1, 1, 1, 1]),
    ],
)
def test_the_largest_step_is_as_large_as_the_limits_allow(limits: dict[str, Any], lengths: list[int]) -> None:
    limited = config(**limits)
    groups = [CacheGroup(kind="full", block_bytes=1, block_size=16)] * 2
    batch = largest_batch(limited, groups, SPEC.vocab_size)
    assert np.diff(batch.query_start).tolist() == lengths
    assert batch.seq_lens.tolist() == [*lengths[:-1], limited.max_model_len]
    assert batch.positions.max() == limited.max_model_len - 1
    assert (batch.targets < 0).sum() == len(lengths)
    assert batch.block_tables.max() < num_blocks(limited)
    assert batch.slot_mapping.max() < 16 * num_blocks(limited)
    backend = loaded()
    backend.cache_groups(16)
    backend.allocate_cache([num_blocks(limited)] * 2)
    assert len(backend.execute(batch).result().token_ids) == sum(lengths)


@pytest.mark.parametrize("cache", ["auto", "int8"])
def test_blocks_come_back_from_host_memory_as_they_went(cache: str) -> None:
    backend = loaded(kv_cache_dtype=cache)
    driver = Driver(backend)
    assert backend.allocate_swap([12, 12]) > 0
    text = driver.text()
    tokens = np.random.default_rng(0).integers(0, SPEC.vocab_size, 60).tolist()
    driver.step([Work(text, tokens[:50])])
    expected = driver.step([Work(text, tokens[50:55], 5)]).logits
    text.length = 50
    backend.swap_out(np.array([(g, b, 11 - i) for g in range(2) for i, b in enumerate(text.tables[g])], np.int32))
    held = [list(table) for table in text.tables]
    driver.logits(tokens[::-1])  # others
    for g, table in enumerate(held):
        text.tables[g] = [driver.new_block(g) for _ in table]
    backend.swap_in(np.array([(g, 11 - i, b) for g in range(2) for i, b in enumerate(text.tables[g])], np.int32))
    np.testing.assert_array_equal(driver.step([Work(text, tokens[50:55], 5)]).logits, expected)


def test_more_host_memory_than_there_is_is_refused() -> None:
    backend = loaded()
    Driver(backend)
    with pytest.raises(InsufficientMemoryError, match=r"swap_space: \d+ MiB do not fit into the host's memory"):
        backend.allocate_swap([10**9, 10**9])
