"""Whole models by the kernels, in Triton's interpreter: what the modules hand to the kernels is what those take."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton")

from support.batches import Driver
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
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
