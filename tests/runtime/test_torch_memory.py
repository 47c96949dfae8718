"""What a server expects of a model in torch, against what the backend takes."""

from __future__ import annotations

from typing import Any

import pytest

from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch.backend import TorchBackend
from tuili.models.shapes import tensor_shapes
from tuili.runtime.torch_memory import cache_groups, item_bytes, weight_bytes


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("cache", ["auto", "bfloat16", "int8", "fp8"])
def test_weights_and_caches_take_what_was_expected(dtype: str, cache: Any) -> None:
    spec = decoder(layer(), layer(sliding_window=9), layer(sliding_window=40))
    options = BackendOptions(max_model_len=64, device="cpu", dtype=dtype, kv_cache_dtype=cache)
    backend = load_backend("torch", spec, random_weights(spec), options)
    assert isinstance(backend, TorchBackend)
    item = item_bytes(dtype, "cpu")
    stored = {name: ("F32", shape) for name, shape in tensor_shapes(spec).items()}
    assert weight_bytes(stored, item) == backend.weight_bytes
    assert cache_groups(spec, cache, item, 32) == backend.cache_groups(32)
