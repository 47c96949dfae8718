"""What the torch backend adds to its contract: dtypes, packed weights, small caches, draws, refusals."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from support.batches import Driver, Work, sampling_arrays
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch import backend as backend_module
from tuili.backends.torch import quantizer
from tuili.backends.torch import rows as rows_module
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.model import build_model
from tuili.backends.torch.ops import choose_ops
from tuili.backends.torch.weights import WeightReader
from tuili.errors import EngineUnavailableError, InsufficientMemoryError, InvalidRequestError, ModelFileError
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import MlpSpec, ModelSpec
from tuili.quant.format import Tensor
from tuili.weights.quantizing import quantize_tensor

TEXT = np.random.default_rng(3).integers(0, 101, 40).tolist()
OPTIONS = BackendOptions(max_model_len=64, device="cpu")
CPU = torch.device("cpu")
PACKED = ("Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def packed_backend(spec: ModelSpec, weights: dict[str, Tensor]) -> TorchBackend:
    """As on a GPU: quantized matrices as they are."""
    shapes = tensor_shapes(spec)
    with torch.inference_mode():
        reader = WeightReader(weights, shapes, dtype=torch.float32, device=CPU, keep_packed=True)
        model = build_model(spec, reader, choose_ops(CPU), OPTIONS.max_model_len)
    return TorchBackend(spec, model, OPTIONS, device=CPU, dtype=torch.float32)


def wide_decoder(**changes: Any) -> ModelSpec:
    """Rows of whole groups of 256."""
    wide = layer(MlpSpec(intermediate_size=256), num_heads=16)
    return decoder(wide, hidden_size=256, **changes)


@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_compute_what_the_reference_dequantizes(name: str) -> None:
    spec = wide_decoder(tie_word_embeddings=True)
    weights = random_weights(spec, name, v_proj="Q8_0" if name != "Q8_0" else "Q4_0")  # q and k one matrix, v its own
    expected = Driver(load_backend("reference", spec, weights, OPTIONS)).logits(TEXT)
    backend = packed_backend(spec, weights)
    assert backend.weight_bytes < 0.5 * sum(4 * int(np.prod(shape)) for shape in tensor_shapes(spec).values())
    np.testing.assert_allclose(Driver(backend).logits(TEXT), expected, rtol=0, atol=2e-5)


def test_formats_without_kernels_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    spec = wide_decoder()
    weights = random_weights(spec, "Q5_1", down_proj="IQ4_NL")
    with caplog.at_level(logging.INFO, logger="tuili.backends.torch"):
        backend = packed_backend(spec, weights)
    assert [record.getMessage() for record in caplog.records] == [
        "matrices kept as torch.float32, having no kernel on cpu: 1 in IQ4_NL, 8 in Q5_1"
    ]
    expected = Driver(load_backend("reference", spec, weights, OPTIONS)).logits(TEXT)
    np.testing.assert_allclose(Driver(backend).logits(TEXT), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.12), ("float16", 0.015)])
@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_half_precision_stays_within_its_bound(dtype: str, bound: float, stored: str) -> None:
    spec = decoder()
    weights = random_weights(spec, stored)
    expected = Driver(load_backend("reference", spec, weights, OPTIONS)).logits(TEXT)
    found = Driver(load_backend("torch", spec, weights, replace(OPTIONS, dtype=dtype))).logits(TEXT)
    assert 0 < np.abs(found - expected).max() < bound * np.abs(expected).max()


@pytest.mark.parametrize(("cache", "bound"), [("bfloat16", 0.02), ("int8", 0.02), ("fp8", 0.15)])
def test_small_caches_take_less_and_stay_close(cache: Any, bound: float) -> None:
    spec = decoder()
    weights = random_weights(spec)
    exact = Driver(load_backend("torch", spec, weights, OPTIONS))
    small = Driver(load_backend("torch", spec, weights, replace(OPTIONS, kv_cache_dtype=cache)))
    token_bytes = 2 * len(spec.layers) * 2 * (16 * 2 if cache == "bfloat16" else 16 + 4)
    assert small.groups[0].block_bytes == 16 * token_bytes
    expected = exact.logits(TEXT)
    difference = np.abs(small.logits(TEXT, chunk=9) - expected).max()
    assert 0 < difference < bound * np.abs(expected).max()


def test_an_int8_cache_is_the_references() -> None:
    spec, options = decoder(), replace(OPTIONS, kv_cache_dtype="int8")
    weights = random_weights(spec)
    expected = Driver(load_backend("reference", spec, weights, options)).logits(TEXT)
    found = Driver(load_backend("torch", spec, weights, options)).logits(TEXT)
    assert (np.abs(found - expected) < 1e-4).mean() > 0.9  # where a level was at its edge, it may be the next one
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05)


def test_rows_draw_what_the_reference_draws() -> None:
    spec = decoder()
    weights = random_weights(spec)
    rows = [
        {"temperature": 0.9, "seed": 7, "position": 3, "top_k": 20},
        {},
        {"bias": {5: 30.0}},
        {"history": {2: 1, 9: 3}, "repetition_penalty": 1.4, "temperature": 0.7},
        {"chain": [(3, 40), (8, 0.8)], "temperature": 0.8, "seed": 11},
        {"chain": [(10, 5.0, 0.1)], "temperature": 1.0, "sampler_state": 10.0},
    ]
    results = []
    for name in ("reference", "torch"):
        driver = Driver(load_backend(name, spec, weights, OPTIONS))
        changes = {"sampling": sampling_arrays(rows), "num_logprobs": np.full(len(rows), 3, np.int32)}
        results.append(driver.step([Work(driver.text(), TEXT[:12], len(rows))], **changes))
    expected, found = results
    for field in ("token_ids", "ranks", "top_ids"):
        assert getattr(found, field).tolist() == getattr(expected, field).tolist(), field
    for field in ("logprobs", "top_logprobs", "sampler_state"):
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), rtol=0, atol=1e-4)


def test_drawn_tokens_are_carried_as_greedy_ones_are() -> None:
    spec = decoder()
    weights = random_weights(spec)
    rows = [{}, {"temperature": 0.9, "seed": 7, "top_k": 20, "top_p": 0.9}]
    found = []
    for name in ("reference", "torch"):
        driver = Driver(load_backend(name, spec, weights, OPTIONS))
        texts = [driver.text(), driver.text()]
        first = driver.step([Work(text, TEXT[:6]) for text in texts], sampling=sampling_arrays(rows))
        steps = [first.token_ids.tolist()]
        for _ in range(4):
            carried = [Work(text, [0], carry=True) for text in texts]
            steps.append(driver.step(carried, sampling=sampling_arrays(rows)).token_ids.tolist())
        found.append(steps)
    assert found[1] == found[0]


def test_damaged_logits_choose_nothing_and_leave_a_slot_that_runs_on() -> None:
    spec = decoder(tie_word_embeddings=False)
    weights = random_weights(spec)
    driver = Driver(load_backend("torch", spec, weights | {"norm.weight": _spoiled(weights["norm.weight"])}, OPTIONS))
    text = driver.text()
    result = driver.step([Work(text, TEXT[:4])], num_logprobs=np.array([2], np.int32))
    assert result.token_ids.tolist() == [-1]
    assert np.isnan(result.logprobs).all()
    assert (result.ranks.tolist(), result.top_ids.tolist()) == ([0], [[-1, -1]])
    assert driver.step([Work(text, [0], carry=True)]).token_ids.tolist() == [-1]


def _spoiled(tensor: Tensor) -> Tensor:
    return Tensor(tensor.format, tensor.shape, np.full(tensor.shape, np.nan, np.float32).view(np.uint8)[None])


def test_of_equal_logits_the_lowest_ids_come_first() -> None:
    spec = decoder(tie_word_embeddings=False)
    weights = random_weights(spec)
    same = np.zeros(tensor_shapes(spec)["lm_head.weight"], np.float32)
    head = Tensor(weights["norm.weight"].format, same.shape, same.view(np.uint8))
    driver = Driver(load_backend("torch", spec, weights | {"lm_head.weight": head}, OPTIONS))
    result = driver.step([Work(driver.text(), TEXT[:4])], num_logprobs=np.array([5], np.int32))
    assert (result.token_ids.tolist(), result.top_ids.tolist()) == ([0], [[0, 1, 2, 3, 4]])


def test_options_are_refused_by_name() -> None:
    spec = decoder()
    weights = random_weights(spec)
    for options, message in (
        (replace(OPTIONS, isa="avx2"), "isa must be None for the torch backend, got 'avx2'"),
        (replace(OPTIONS, device="cuda:63"), "device 'cuda:63': torch .* sees"),
        (replace(OPTIONS, num_threads=5000), r"num_threads must be an integer in \[0, 1024\], got 5000"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            load_backend("torch", spec, weights, options)
    with pytest.raises(ModelFileError, match=r"weights missing or not the spec's: norm\.weight"):
        load_backend("torch", spec, {k: t for k, t in weights.items() if k != "norm.weight"}, OPTIONS)
    with pytest.raises(ModelFileError, match=r"weight norm\.weight has shape \(101, 64\); allowed: \(64,\)"):
        load_backend("torch", spec, weights | {"norm.weight": weights["lm_head.weight"]}, OPTIONS)


def test_a_cache_that_does_not_fit_and_a_closed_backend_are_refused() -> None:
    spec = decoder()
    backend = load_backend("torch", spec, random_weights(spec), OPTIONS)
    driver = Driver(backend)
    with pytest.raises(InsufficientMemoryError, match=r"MiB does not fit on cpu: .* MiB are free"):
        backend.allocate_cache([10_000_000_000])
    backend.allocate_cache([8])
    backend.close()
    with pytest.raises(EngineUnavailableError, match="the torch backend is closed"):
        driver.step([Work(driver.text(), [1])])


@pytest.mark.parametrize("message", ["", "CUDA error: out of memory", "cuBLAS: CUBLAS_STATUS_ALLOC_FAILED"])
def test_a_step_without_memory_says_so_and_the_next_one_runs(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = decoder()
    driver = Driver(load_backend("torch", spec, random_weights(spec), OPTIONS))
    text = driver.text()

    def fail(*_: Any) -> None:
        raise RuntimeError(message) if message else torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(backend_module, "run_rows", fail)
        result = driver.step([Work(text, TEXT[:3])])
    assert isinstance(result.failures[0], InsufficientMemoryError)
    assert "one token of a text of 1 tokens found no memory left on cpu" in str(result.failures[0])
    assert result.token_ids.tolist() == [-1]
    assert driver.step([Work(driver.text(), TEXT[:3])]).token_ids.min() >= 0


def test_wanted_logits_come_from_every_tile_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = decoder()
    weights = random_weights(spec)
    is_wanted = np.array([False, True, False, False, False, False, True, True])
    found = []
    for tile_logits in (1 << 20, 3 * spec.vocab_size):
        monkeypatch.setitem(rows_module._TILE_LOGITS, "cpu", tile_logits)
        driver = Driver(load_backend("torch", spec, weights, OPTIONS))
        found.append(driver.step([Work(driver.text(), TEXT[:8], 8)], want_logits=is_wanted))
    whole, tiled = found
    assert tiled.logit_rows is not None
    assert tiled.logit_rows.tolist() == [1, 6, 7]
    np.testing.assert_allclose(tiled.logits, whole.logits, rtol=0, atol=1e-5)
    assert tiled.logits is not None
    assert tiled.logits.argmax(1).tolist() == tiled.token_ids[is_wanted].tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_callers_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    spec = decoder(layer(rope=None, sinks=True, q_bias=True), position="alibi")
    weights = random_weights(spec)
    expected = Driver(load_backend("torch", spec, weights, OPTIONS)).logits(TEXT)
    torch.set_default_dtype(dtype)
    try:
        driver = Driver(load_backend("torch", spec, weights, OPTIONS))
        assert np.array_equal(driver.logits(TEXT), expected)
        assert driver.step([Work(driver.text(), TEXT)]).logprobs.dtype == np.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_its_quantizer_is_the_exact_one() -> None:
    assert quantizer(3) is quantize_tensor
