"""What a server expects of a model in torch, against what the backend takes."""

from __future__ import annotations

from typing import Any

import pytest

from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.devices import BATCHED_TOKENS
from tuili.backends.torch.ops import PACKABLE
from tuili.backends.torch_sizes.footprint import PACKED, kept_bytes
from tuili.models.shapes import tensor_shapes
from tuili.runtime.devices.torch_memory import GPU_BATCHED_TOKENS, item_bytes
from tuili.runtime.devices.torch_ranks import Parts, deal_out


def test_what_stays_packed_is_what_has_kernels() -> None:
    assert PACKED == PACKABLE
    assert BATCHED_TOKENS["cuda"] == GPU_BATCHED_TOKENS
    stored = {"a": ("Q4_K", (3, 512)), "b": ("Q5_1", (3, 512)), "c": ("F32", (512,))}
    assert [kept_bytes(shape, name, 2) for name, shape in stored.values()] == [3 * 2 * 144, 3 * 512 * 2, 512 * 4]
    assert [kept_bytes(shape, "", 2) for _, shape in stored.values()] == [3 * 512 * 2, 3 * 512 * 2, 512 * 4]


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("cache", ["auto", "bfloat16", "int8", "fp8"])
def test_weights_and_caches_take_what_was_expected(dtype: str, cache: Any) -> None:
    spec = decoder(layer(), layer(sliding_window=9), layer(sliding_window=40))
    options = BackendOptions(max_model_len=64, device="cpu", dtype=dtype, kv_cache_dtype=cache)
    backend = load_backend("torch", spec, random_weights(spec), options)
    assert isinstance(backend, TorchBackend)
    item = item_bytes(dtype, "cpu")
    stored = {name: ("F32", shape) for name, shape in tensor_shapes(spec).items()}
    (rank,) = deal_out(spec, stored, Parts(), item, keeps_packed=False)
    assert rank.weight_bytes == backend.weight_bytes
    assert rank.cache_groups(cache, 32) == backend.cache_groups(32)
