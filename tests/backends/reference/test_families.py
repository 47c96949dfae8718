"""Every family against transformers: tiny random models, float32, all logits of a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from support import tiny_models
from support.batches import Driver
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.models.families import for_hf
from tuili.models.shapes import tensor_shapes

TEXT = np.random.default_rng(7).integers(0, 97, 40).tolist()

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-llama3-gqa-tied": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-mqa-biases-wide-heads": (
        "llama",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    ),
    "llama-gelu": ("llama", {"hidden_act": "gelu"}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}}),
    "llama-dynamic": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
            "max_position_embeddings": 16,
        },
    ),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-longrope": ("llama", {"rope_parameters": LONGROPE}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-tied-window": (
        "qwen3",
        {
            "head_dim": 8,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3-stretched-softcap": (
        "gemma3_text",
        {
            "head_dim": 8,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": GEMMA_ROPE,
            "final_logit_softcapping": 3.0,
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(name: str) -> None:
    model_type, config = MODELS[name]
    model = tiny_models.build(model_type, **config)
    spec = tiny_models.spec_of(model)
    weights = tiny_models.canonical(model, for_hf(model_type), is_tied=spec.tie_word_embeddings)
    backend = load_backend("reference", spec, weights, BackendOptions(max_model_len=len(TEXT)))
    ours, theirs = Driver(backend).logits(TEXT), tiny_models.logits(model, TEXT)
    assert np.abs(theirs).max() > 1, "logits this small would prove nothing"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_mimo_is_a_qwen2_whose_prediction_layers_are_left_unread() -> None:
    model = tiny_models.build("qwen2")
    spec = tiny_models.spec_of(model, model_type="mimo", num_nextn_predict_layers=1)
    family = for_hf("mimo")
    extra = {"model.mtp_layers.0.input_proj.weight": torch.zeros(2, 2)}
    states = model.state_dict() | extra
    model.state_dict = lambda: states  # type: ignore[method-assign]
    weights = tiny_models.canonical(model, family, is_tied=False)
    assert {name: t.shape for name, t in weights.items()} == tensor_shapes(spec)
    backend = load_backend("reference", spec, weights, BackendOptions(max_model_len=len(TEXT)))
    np.testing.assert_allclose(Driver(backend).logits(TEXT), tiny_models.logits(model, TEXT), rtol=0, atol=1e-4)


def test_a_window_smaller_than_the_text_matters() -> None:
    """Guards the tests above: were windows ignored on both sides, they would pass all the same."""
    model = tiny_models.build("mistral", sliding_window=5)
    weights = tiny_models.canonical(model, for_hf("mistral"), is_tied=False)
    logits = []
    for window in (5, None):
        spec = tiny_models.spec_of(model, sliding_window=window)
        backend = load_backend("reference", spec, weights, BackendOptions(max_model_len=len(TEXT)))
        logits.append(Driver(backend).logits(TEXT))
    np.testing.assert_allclose(logits[0][:5], logits[1][:5], atol=1e-5)
    assert np.abs(logits[0] - logits[1]).max() > 0.1
