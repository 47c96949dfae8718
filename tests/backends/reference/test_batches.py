"""What the reference refuses, and what it rounds. Batches: tests/backends/test_batches.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from support import tiny_models
from support.batches import Driver
from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.errors import InsufficientMemoryError, InvalidRequestError, ModelFileError, UnsupportedModelError
from tuili.models.families import for_hf
from tuili.models.spec import DeltaNetSpec, ModelSpec, MoeSpec
from tuili.quant.format import Tensor

TEXT = np.random.default_rng(5).integers(0, 97, 43).tolist()
OPTIONS = BackendOptions(max_model_len=64)
GEMMA = {
    "head_dim": 8,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


def parts(model_type: str, **config: Any) -> tuple[ModelSpec, dict[str, Tensor]]:
    model = tiny_models.build(model_type, **config)
    spec = tiny_models.spec_of(model)
    return spec, tiny_models.canonical(model, for_hf(model_type), spec)


@pytest.fixture(scope="module")
def llama() -> Backend:
    return load_backend("reference", *parts("llama"), OPTIONS)


def test_query_tiles_do_not_matter(llama: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Driver(llama).logits(TEXT)
    monkeypatch.setattr("tuili.backends.reference.layers.QUERY_TILE", 4)
    np.testing.assert_allclose(Driver(llama).logits(TEXT), whole, rtol=0, atol=1e-5)


def test_an_int8_cache_rounds_each_head() -> None:
    from tuili.backends.reference.cache import through_int8

    heads = np.float32([[1.27, -0.014, 0.016], [0, 0, 0]])
    np.testing.assert_allclose(through_int8(heads), [[1.27, -0.01, 0.02], [0, 0, 0]], rtol=1e-6)
    exact = Driver(load_backend("reference", *parts("llama"), OPTIONS)).logits(TEXT[:12])
    options = BackendOptions(max_model_len=OPTIONS.max_model_len, kv_cache_dtype="int8")
    rounded = Driver(load_backend("reference", *parts("llama"), options)).logits(TEXT[:12])
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()


def test_a_cache_that_does_not_fit_is_refused() -> None:
    backend = load_backend("reference", *parts("llama"), OPTIONS)
    backend.cache_groups(16)
    with pytest.raises(InsufficientMemoryError, match="a cache of 10000000000000 blocks of 16 does not fit"):
        backend.allocate_cache([10_000_000_000_000])


def test_spec_members_it_does_not_run_are_refused_by_name() -> None:
    spec, weights = parts("llama")
    layer = spec.layers[0]
    moe = replace(layer, mlp=MoeSpec(num_experts=4, num_experts_per_tok=2, expert=layer.mlp))  # type: ignore[arg-type]
    delta = DeltaNetSpec(num_key_heads=2, num_value_heads=2, key_head_dim=8, value_head_dim=8, conv_kernel=4)
    for layers, name in (((moe,), "mlp=MoeSpec"), ((replace(layer, mixer=delta),), "mixer=DeltaNetSpec")):
        with pytest.raises(UnsupportedModelError, match=f"llama: the reference backend does not implement {name}"):
            load_backend("reference", replace(spec, layers=layers), weights, OPTIONS)


def test_weights_must_be_the_specs() -> None:
    spec, weights = parts("llama")
    with pytest.raises(ModelFileError, match=r"weights missing or not the spec's: norm\.weight"):
        load_backend("reference", spec, {k: t for k, t in weights.items() if k != "norm.weight"}, OPTIONS)
    with pytest.raises(ModelFileError, match=r"weight norm\.weight has shape \(97, 32\); allowed: \(32,\)"):
        load_backend("reference", spec, weights | {"norm.weight": weights["lm_head.weight"]}, OPTIONS)


def test_names_and_options() -> None:
    spec, weights = parts("llama")
    with pytest.raises(InvalidRequestError, match="backend must be one of cpu, reference, torch, got 'gpu'"):
        load_backend("gpu", spec, weights, OPTIONS)
    with pytest.raises(InvalidRequestError, match="isa must be None for the reference backend, got 'avx2'"):
        load_backend("reference", spec, weights, replace(OPTIONS, isa="avx2"))
