"""Whole models by the kernels, in Triton's interpreter: what the modules hand to the kernels is what those take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton")

from support.batches import Driver, Work
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.graphs import repeat
from tuili.backends.torch.ops import triton_attention
from tuili.backends.torch.ops.choose import VARIABLE
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import MlpSpec, ModelSpec, RopeSpec

TEXT = [5, 17, 3, 88, 41, 2, 9, 60]
OPTIONS = BackendOptions(max_model_len=32, device="cpu")
GATED = MlpSpec(intermediate_size=96)
MODELS: dict[str, ModelSpec] = {
    "plain": decoder(),
    "window, norms of heads, part rotated": decoder(
        layer(GATED, sliding_window=5, qk_norm="head", head_dim=20, rope=RopeSpec(dim=10)), layer()
    ),
}


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")


@pytest.mark.parametrize("name", MODELS)
def test_the_kernels_give_the_reference_logits(name: str) -> None:
    spec = MODELS[name]
    weights = random_weights(spec)
    expected, found = (Driver(load_backend(which, spec, weights, OPTIONS)) for which in ("reference", "torch"))
    np.testing.assert_allclose(found.logits(TEXT, chunk=5), expected.logits(TEXT), rtol=0, atol=2e-5)


def test_matrices_stay_packed_where_kernels_read_them() -> None:
    spec = decoder()
    weights = random_weights(spec, "Q8_0")
    expected, found = (load_backend(which, spec, weights, OPTIONS) for which in ("reference", "torch"))
    assert found.weight_bytes < 0.4 * sum(4 * int(np.prod(shape)) for shape in tensor_shapes(spec).values())
    np.testing.assert_allclose(Driver(found).logits(TEXT), Driver(expected).logits(TEXT), rtol=0, atol=2e-5)


@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.usefixtures("placeless_dot")
def test_rows_that_fill_up_a_graph_change_no_bit(is_deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do contexts that may become longer: attention is launched for more chunks than there are."""
    monkeypatch.setattr(triton_attention, "CHUNK", 16)
    spec, found = MODELS["window, norms of heads, part rotated"], []
    for has_graphs in (False, True):
        backend = load_backend("torch", spec, random_weights(spec), replace(OPTIONS, deterministic=is_deterministic))
        assert isinstance(backend, TorchBackend)
        backend.graphs = backend.captured_by(repeat) if has_graphs else None
        driver = Driver(backend)
        texts = [driver.text() for _ in range(3)]
        driver.step([Work(text, TEXT[i : 5 + i]) for i, text in enumerate(texts)], want_logits=None)
        changes = {"want_logits": None, "num_logprobs": np.full(3, 2, np.int32)}
        step = driver.step([Work(text, [0], carry=True) for text in texts], **changes)
        found.append(step)
    assert backend.graphs is not None
    assert len(backend.graphs) == 1
    eager, filled = found
    np.testing.assert_array_equal(eager.top_ids, filled.top_ids)
    bound = 0 if is_deterministic else 1e-5
    np.testing.assert_allclose(eager.top_logprobs, filled.top_logprobs, rtol=0, atol=bound)
