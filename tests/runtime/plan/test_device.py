"""A plan for GPUs nobody has here: against the backend's own sizes, and against what fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tuili.errors import InvalidRequestError
from tuili.runtime.devices.gpu_memory import GpuMemory
from tuili.runtime.plan import device as device_module
from tuili.runtime.plan.device import DeviceOptions, DevicePlan, PlannedGpu, make_device_plan, planned_gpu
from tuili.runtime.plan.plan import PlanOptions

MIB = 1 << 20


def plan(path: Path, memory: int, devices: dict[str, Any] | None = None, **options: Any) -> DevicePlan:
    asked = DeviceOptions(memory_bytes=memory, **devices or {})
    gpu = planned_gpu(asked)
    assert gpu is not None
    return make_device_plan(str(path), PlanOptions(**options), asked, gpu, lambda _: None)


def test_parts_are_what_can_be_said_of_them(smollm2_gguf: Path) -> None:
    """SmolLM2: 30 layers, 3 key-value heads of 64, tied embeddings of 49152 x 576, Q4_1 and Q8_0."""
    found = plan(smollm2_gguf, 8192 * MIB, ctx=4096, parallel=8)
    assert found.fits
    assert found.num_host_layers == found.need.host_bytes == 0
    assert found.kv_token_bytes == 30 * 2 * 3 * 64 * 2
    assert found.need.kv_cache_bytes == 8 * 4096 * 23040
    assert 0.95 * found.file_bytes < found.need.weight_bytes < 1.05 * found.file_bytes
    assert found.largest_parallel > 8
    most = plan(smollm2_gguf, 8192 * MIB, ctx=4096, parallel=found.largest_parallel)
    assert most.fits
    assert most.need.kv_cache_bytes <= most.kv_limit_bytes
    more = plan(smollm2_gguf, 8192 * MIB, ctx=4096, parallel=found.largest_parallel + 1)
    assert not more.fits
    assert more.need.kv_cache_bytes > more.kv_limit_bytes
    changes = [alternative.change for alternative in more.alternatives]
    assert changes[:2] == ["--kv-cache-dtype int8", "--tensor-parallel-size 2"]
    assert f"--parallel {found.largest_parallel}" in changes


def test_what_is_proposed_fits(smollm2_gguf: Path) -> None:
    asked = plan(smollm2_gguf, 7000 * MIB, ctx=8192, parallel=20)
    assert not asked.fits
    assert asked.alternatives
    for alternative in asked.alternatives:
        name, value = alternative.change.split()
        options: dict[str, Any] = {"ctx": 8192, "parallel": 20}
        devices: dict[str, Any] = {}
        if name.endswith("-parallel-size"):
            devices[name[2:].replace("-", "_")] = int(value)
        elif name in ("--ctx", "--parallel"):
            options[name[2:]] = int(value)
        else:
            options["kv_cache_dtype" if name.startswith("--kv") else "quantization"] = value
        found = plan(smollm2_gguf, 7000 * MIB, devices, **options)
        assert found.fits, alternative
        need = found.need
        assert alternative.peak_own_bytes == need.weight_bytes + need.kv_cache_bytes + need.workspace_bytes


def test_layers_that_have_no_room_are_the_cpus(smollm2_gguf: Path) -> None:
    whole = plan(smollm2_gguf, 8192 * MIB, ctx=512)
    asked = plan(smollm2_gguf, 8192 * MIB, {"gpu_layers": 12}, ctx=512)
    assert asked.num_host_layers == 18
    assert asked.need.weight_bytes < whole.need.weight_bytes
    assert asked.kv_token_bytes * 30 == whole.kv_token_bytes * 12
    assert asked.need.host_bytes > 18 * 512 * whole.kv_token_bytes / 30
    small = plan(smollm2_gguf, 880 * MIB, ctx=64)  # the driver has 600 of them
    assert 0 < small.num_host_layers < 30


def test_stages_have_layers_each_and_the_fullest_decides(smollm2_gguf: Path) -> None:
    whole = plan(smollm2_gguf, 8192 * MIB, ctx=4096, parallel=8)
    asked = plan(smollm2_gguf, 8192 * MIB, {"pipeline_parallel_size": 3}, ctx=4096, parallel=8)
    first, middle, last = asked.stages
    assert first.first_layer == 0
    assert first.num_layers + middle.num_layers + last.num_layers == 30
    head = 49152 * 576 * 34 // 32  # tied, and quantized as Q8_0: on both ends
    assert first.weight_bytes + middle.weight_bytes + last.weight_bytes == whole.need.weight_bytes + head
    assert middle.num_layers > first.num_layers
    assert middle.weight_bytes / middle.num_layers == pytest.approx((first.weight_bytes - head) / first.num_layers)
    assert sum(stage.kv_cache_bytes for stage in asked.stages) == whole.need.kv_cache_bytes
    assert first.workspace_bytes < last.workspace_bytes  # which has the logits
    assert asked.need.kv_cache_bytes == max(stage.kv_cache_bytes for stage in asked.stages)
    assert (asked.need.weight_bytes, asked.need.workspace_bytes) == (last.weight_bytes, last.workspace_bytes)
    assert asked.kv_token_bytes * 30 == whole.kv_token_bytes * middle.num_layers
    both = plan(
        smollm2_gguf, 8192 * MIB, {"pipeline_parallel_size": 3, "tensor_parallel_size": 3}, ctx=4096, parallel=8
    )
    assert [stage.num_layers for stage in both.stages] == [stage.num_layers for stage in asked.stages]
    assert both.kv_token_bytes * 3 == asked.kv_token_bytes
    assert whole.stages[0].weight_bytes == whole.need.weight_bytes
    assert len(whole.stages) == 1


def test_which_gpu_is_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "gpu_memory", lambda device: GpuMemory(7, 9))
    monkeypatch.setattr(device_module, "expected_backend", lambda *_: "torch")
    assert planned_gpu(DeviceOptions()) == PlannedGpu("cuda", 7, 9)
    assert planned_gpu(DeviceOptions(device="cuda:1")) == PlannedGpu("cuda:1", 7, 9)
    assert planned_gpu(DeviceOptions(device="cuda:1", memory_bytes=5)) == PlannedGpu("a GPU", 5, 5)
    assert planned_gpu(DeviceOptions(device="cpu")) is None
    monkeypatch.setattr(device_module, "gpu_memory", lambda device: None)
    assert planned_gpu(DeviceOptions()) is None
    with pytest.raises(InvalidRequestError, match="no NVIDIA driver tells of its memory here; say it: --device-memory"):
        planned_gpu(DeviceOptions(device="xpu"))
    with pytest.raises(InvalidRequestError, match="tensor_parallel_size must be left out without a GPU"):
        planned_gpu(DeviceOptions(tensor_parallel_size=2))


def test_wrong_options_are_named(smollm2_gguf: Path) -> None:
    for options in ({"gpu_memory_utilization": 1.5}, {"tensor_parallel_size": 0}, {"dtype": "int3"}):
        with pytest.raises(InvalidRequestError, match=next(iter(options))):
            DeviceOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="tensor_parallel_size must be at most 9"):
        plan(smollm2_gguf, 8192 * MIB, {"tensor_parallel_size": 10})
    with pytest.raises(InvalidRequestError, match="pipeline_parallel_size must be at most 30"):
        plan(smollm2_gguf, 8192 * MIB, {"pipeline_parallel_size": 31})
    with pytest.raises(InvalidRequestError, match="times pipeline_parallel_size must be at most 64"):
        DeviceOptions(tensor_parallel_size=9, pipeline_parallel_size=8)
    with pytest.raises(InvalidRequestError, match="gpu_layers must be left out where GPUs share a model"):
        DeviceOptions(pipeline_parallel_size=2, gpu_layers=3)
    with pytest.raises(InvalidRequestError, match="ctx must be in"):
        plan(smollm2_gguf, 8192 * MIB, ctx=9000)
