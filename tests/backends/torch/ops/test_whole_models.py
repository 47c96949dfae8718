"""Whole models by the kernels, in Triton's interpreter: what the modules hand to the kernels is what those take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from support.batches import Driver, Work
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.model import build_model
from tuili.backends.torch.ops.triton_ops import TritonOps
from tuili.backends.torch.weights import WeightReader
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import MlpSpec, ModelSpec

CPU = torch.device("cpu")
TEXT = [5, 17, 3, 88, 41, 2, 9, 60]
OPTIONS = BackendOptions(max_model_len=32, device="cpu")
GATED = MlpSpec(intermediate_size=96)
MODELS: dict[str, ModelSpec] = {
    "plain": decoder(),
    "window and qk norm": decoder(layer(GATED, sliding_window=5, qk_norm="head")),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_kernels_give_the_reference_logits(name: str) -> None:
    spec = MODELS[name]
    weights = random_weights(spec)
    with torch.inference_mode():
        reader = WeightReader(weights, tensor_shapes(spec), dtype=torch.float32, device=CPU, keep_packed=True)
        model = build_model(spec, reader, TritonOps(CPU, deterministic=False), OPTIONS.max_model_len)
    found = Driver(TorchBackend(spec, model, OPTIONS, device=CPU, dtype=torch.float32))
    expected = Driver(load_backend("reference", spec, weights, OPTIONS))
    np.testing.assert_allclose(found.logits(TEXT, chunk=5), expected.logits(TEXT), rtol=0, atol=2e-5)
