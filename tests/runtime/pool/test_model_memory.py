"""What models of several processes take: of each device its own part, and of a shared one all that are there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.gguf_models import seeds
from tuili.backend import CacheGroup
from tuili.backends.torch_sizes.footprint import SUPPORTED
from tuili.config import EngineConfig
from tuili.errors import InvalidRequestError
from tuili.runtime.devices.torch_memory import GPU_CONTEXT_BYTES
from tuili.runtime.loading.load_options import LoadOptions
from tuili.runtime.pool import model_memory
from tuili.runtime.pool.engine_parts import EnginePart, Gpus
from tuili.runtime.pool.memory_plan import HOST
from tuili.runtime.pool.model_memory import Footprint, read_footprint
from tuili.store.store import Store

MIB, GIB = 1 << 20, 1 << 30
PART = EnginePart(device=HOST, weight_bytes=100 * MIB, workspace_bytes=10 * MIB, other_bytes=5 * MIB, cache_ratio=1.0)
ONE = Footprint(
    groups=[CacheGroup(kind="full", block_bytes=MIB, block_size=64)],
    config=EngineConfig(max_model_len=1024, max_num_seqs=4),
    parts=[PART],
    may_shorten=True,
)
THREE = replace(ONE, parts=[PART] * 3)


def test_plans_are_of_all_replicas_together() -> None:
    one, three = ONE.fit({HOST: GIB}), THREE.fit({HOST: 3 * GIB})
    assert one is not None
    assert three is not None
    assert three.max_model_len == one.max_model_len
    assert three.cache_bytes == one.cache_bytes
    assert three.by_kind() == {name: 3 * size for name, size in one.by_kind().items()}
    assert THREE.least().num_bytes == 3 * ONE.least().num_bytes


def test_memory_for_one_is_too_little_for_three() -> None:
    least = ONE.least().num_bytes
    assert ONE.fit({HOST: least}) is not None
    assert THREE.fit({HOST: least}) is None


def test_the_device_with_least_room_decides_the_cache() -> None:
    """The second has half of each block, and twice the weights; the host has no part of the cache."""
    first = replace(PART, device="cuda:0")
    second = replace(PART, device="cuda:1", weight_bytes=200 * MIB, cache_ratio=0.5)
    host = replace(PART, weight_bytes=0, cache_ratio=0.0)
    both = replace(ONE, parts=[first, second, host], cache_share=1.0)
    free = {"cuda:0": 200 * MIB, "cuda:1": 300 * MIB, HOST: GIB}
    plan = both.fit(free)
    assert plan is not None
    assert plan.cache_bytes == 64 * MIB  # all that four sequences can use
    assert [part.kv_cache for part in plan.parts] == [64 * MIB, 32 * MIB, 0]
    assert plan.devices == {"cuda:0": 179 * MIB, "cuda:1": 247 * MIB, HOST: 15 * MIB}
    assert plan.gpu_bytes == 426 * MIB
    for device, size, cache in (("cuda:0", 145, 30), ("cuda:1", 230, 30)):
        scarce = both.fit(free | {device: size * MIB})
        assert scarce is not None
        assert scarce.cache_bytes == cache * MIB
    short = free | {"cuda:1": 220 * MIB}
    assert both.fit(short) is None
    assert both.lacking(short) == {"cuda:1"}
    assert both.shortage(short, 1) == (
        "the model needs 223 MiB of cuda:1 (weights 200 MiB, KV cache of one context of 1024 tokens 8 MiB), 220 MiB "
        "may be taken, 1 pinned models aside"
    )
    assert both.lacking(free | {HOST: MIB}) == {HOST}
    assert both.fit(free | {HOST: MIB}) is None


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    return path


def footprint(path: Path, names: tuple[str, ...], num_replicas: int = 1, **options: Any) -> Footprint:
    load = LoadOptions(backend="torch", device="cuda", max_num_seqs=2, max_model_len=64, **options)
    gpus = Gpus(names=names, granted_bytes=GIB, cache_share=0.5)
    return read_footprint(str(path), Store(path.parent), load, may_cap=True, num_replicas=num_replicas, gpus=gpus)


def test_every_process_is_counted_on_its_own_gpu(tiny: Path) -> None:
    names = ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    alone = footprint(tiny, names[:1])
    shared = footprint(tiny, names, 2, pipeline_parallel_size=2)
    assert [part.device for part in shared.parts] == ["cuda:0", "cuda:1", HOST, "cuda:2", "cuda:3", HOST]
    whole, (last, first, host) = alone.parts[0], shared.parts[:3]
    assert list(shared.parts[3:]) == [replace(last, device="cuda:2"), replace(first, device="cuda:3"), host]
    assert last.weight_bytes < whole.weight_bytes <= last.weight_bytes + first.weight_bytes
    assert first.workspace_bytes < last.workspace_bytes  # which has the logits
    assert first.other_bytes == GPU_CONTEXT_BYTES
    assert (last.cache_ratio, host.weight_bytes, host.cache_ratio) == (1.0, 0, 0.0)
    assert sum(group.block_bytes for group in shared.groups) < sum(group.block_bytes for group in alone.groups)
    (one,) = [part for part in alone.parts if part.device == HOST]
    assert host.other_bytes > one.other_bytes  # of two processes


def test_layers_on_the_host_are_the_hosts(tiny: Path) -> None:
    whole, split = footprint(tiny, ("cuda:0",)), footprint(tiny, ("cuda:0",), gpu_layers=1)
    (gpu, host), (all_gpu, _) = split.parts, whole.parts
    assert gpu.weight_bytes < all_gpu.weight_bytes
    assert host.weight_bytes > 0
    assert (gpu.cache_ratio, host.cache_ratio) == (1.0, 1.0)  # two layers: one each
    plan = split.fit({"cuda:0": 8 * GIB, HOST: GIB})
    assert plan is not None
    assert {part.device: part.kv_cache for part in plan.parts} == {"cuda:0": plan.cache_bytes, HOST: plan.cache_bytes}
    swapped = footprint(tiny, ("cuda:0",), swap_space=1.0)
    assert swapped.parts[1].other_bytes == whole.parts[1].other_bytes + GIB


def test_what_torch_does_not_implement_is_the_hosts_where_nobody_chose(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_memory, "expected_backend", lambda *_: "torch")
    gpus = Gpus(names=("cuda:0",), granted_bytes=GIB, cache_share=0.5)
    load = LoadOptions(max_num_seqs=2, max_model_len=64)

    def devices() -> list[str]:
        found = read_footprint(str(tiny), Store(tiny.parent), load, may_cap=True, gpus=gpus)
        return [part.device for part in found.parts]

    assert devices() == ["cuda:0", HOST]
    monkeypatch.setattr(
        model_memory, "unsupported_features", lambda spec, known: ["MoeSpec"] if known == SUPPORTED else []
    )
    assert devices() == [HOST]


def test_more_processes_than_can_share_the_model_are_refused(tiny: Path) -> None:
    with pytest.raises(InvalidRequestError, match="pipeline_parallel_size must be at most 2"):
        footprint(tiny, ("cuda:0", "cuda:1", "cuda:2"), pipeline_parallel_size=3)
