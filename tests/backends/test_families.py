"""Every family against transformers: tiny random models, float32, all logits of a text, on every backend.

The cpu backend keeps keys and values as bfloat16.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from support import family_models, tiny_models
from support.batches import Driver, Work
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.models.families import for_hf
from tuili.models.shapes import tensor_shapes

TEXT = np.random.default_rng(7).integers(0, 97, 40).tolist()


CPU_BOUND = 0.1  # measured: up to 0.055


@pytest.mark.parametrize("name", family_models.MODELS)
def test_logits_equal_transformers(name: str) -> None:
    model = family_models.build(name)
    spec = tiny_models.spec_of(model)
    weights = tiny_models.canonical(model, for_hf(model.config.model_type), spec)
    theirs = tiny_models.logits(model, TEXT)
    assert np.abs(theirs).max() > 1, "logits this small would prove nothing"
    options = BackendOptions(max_model_len=len(TEXT), device="cpu")
    for backend_name, bound in (("reference", 1e-4), ("torch", 1e-4), ("cpu", CPU_BOUND)):
        driver = Driver(load_backend(backend_name, spec, weights, options))
        np.testing.assert_allclose(driver.logits(TEXT), theirs, rtol=0, atol=bound, err_msg=backend_name)
        np.testing.assert_allclose(mixed(driver), theirs[3:24], rtol=0, atol=bound, err_msg=backend_name)


def mixed(driver: Driver) -> np.ndarray:
    """Logits after positions 3 to 23 of the text, from steps in which another is decoded or begins."""
    first, other = driver.text(), driver.text()
    driver.step([Work(first, TEXT[:3], 0), Work(other, TEXT[::-1][:6])])
    steps = [
        [Work(other, [1]), Work(first, TEXT[3:21], 18)],
        [Work(first, TEXT[21:22]), Work(other, TEXT[5:8])],
        [Work(driver.text(), TEXT[2:9]), Work(other, [2]), Work(first, TEXT[22:24], 2)],
    ]
    rows = [slice(1, None), slice(0, 1), slice(2, None)]
    logits = [driver.step(works).logits for works in steps]
    return np.concatenate([found[r] for found, r in zip(logits, rows, strict=True) if found is not None])


def test_mimo_is_a_qwen2_whose_prediction_layers_are_left_unread() -> None:
    model = tiny_models.build("qwen2")
    spec = tiny_models.spec_of(model, model_type="mimo", num_nextn_predict_layers=1)
    family = for_hf("mimo")
    extra = {"model.mtp_layers.0.input_proj.weight": torch.zeros(2, 2)}
    states = model.state_dict() | extra
    model.state_dict = lambda: states  # type: ignore[method-assign]
    weights = tiny_models.canonical(model, family, spec)
    assert {name: t.shape for name, t in weights.items()} == tensor_shapes(spec)
    backend = load_backend("reference", spec, weights, BackendOptions(max_model_len=len(TEXT)))
    np.testing.assert_allclose(Driver(backend).logits(TEXT), tiny_models.logits(model, TEXT), rtol=0, atol=1e-4)


def test_a_window_smaller_than_the_text_matters() -> None:
    """Guards the tests above: were windows ignored on both sides, they would pass all the same."""
    model = tiny_models.build("mistral", sliding_window=5)
    weights = tiny_models.canonical(model, for_hf("mistral"), tiny_models.spec_of(model))
    logits = []
    for window in (5, None):
        spec = tiny_models.spec_of(model, sliding_window=window)
        backend = load_backend("reference", spec, weights, BackendOptions(max_model_len=len(TEXT)))
        logits.append(Driver(backend).logits(TEXT))
    np.testing.assert_allclose(logits[0][:5], logits[1][:5], atol=1e-5)
    assert np.abs(logits[0] - logits[1]).max() > 0.1
