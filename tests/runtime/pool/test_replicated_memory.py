"""A model of several engines takes as much as all of them."""

from __future__ import annotations

from dataclasses import replace

from tuili.backend import CacheGroup
from tuili.config import EngineConfig
from tuili.runtime.pool.model_memory import Footprint

ONE = Footprint(
    groups=[CacheGroup(kind="full", block_bytes=1 << 20, block_size=64)],
    config=EngineConfig(max_model_len=1024, max_num_seqs=4),
    weight_bytes=100 << 20,
    workspace_bytes=10 << 20,
    other_bytes=5 << 20,
    may_shorten=True,
)
THREE = replace(ONE, num_replicas=3)


def test_plans_are_of_all_replicas_together() -> None:
    one, three = ONE.fit(1 << 30), THREE.fit(3 << 30)
    assert one is not None
    assert three is not None
    assert three.max_model_len == one.max_model_len
    assert three.by_kind() == {name: 3 * size for name, size in one.by_kind().items()}
    assert THREE.least().num_bytes == 3 * ONE.least().num_bytes


def test_memory_for_one_is_too_little_for_three() -> None:
    least = ONE.least().num_bytes
    assert ONE.fit(least) is not None
    assert THREE.fit(least) is None
