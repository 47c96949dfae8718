"""Spec members that no family of ours uses yet, against transformers models that do, mapped by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from support import tiny_models
from support.batches import Driver
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.reference.layers import ACTIVATIONS, attend
from tuili.models.names import HF, rename
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, RopeSpec

TEXT = np.random.default_rng(8).integers(0, 97, 40).tolist()


def attention(**changes: Any) -> AttentionSpec:
    fields = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "scale": 8**-0.5, "rope": RopeSpec(dim=8)}
    return AttentionSpec(**fields | changes)


PHI_NAMES = HF | {
    "model.layers.{i}.self_attn.dense.": "layers.{i}.o_proj.",
    "model.layers.{i}.mlp.fc1.": "layers.{i}.up_proj.",
    "model.layers.{i}.mlp.fc2.": "layers.{i}.down_proj.",
    "model.final_layernorm.": "norm.",
}
PHI = ModelSpec(
    family="test",
    vocab_size=97,
    hidden_size=32,
    max_position=128,
    layers=(
        LayerSpec(
            mixer=attention(rope=RopeSpec(dim=4), q_bias=True, k_bias=True, v_bias=True, out_bias=True),
            mlp=MlpSpec(intermediate_size=48, activation="gelu_tanh", gated=False, bias=True),
            parallel=True,
        ),
    )
    * 3,
    norm="layer",
    norm_bias=True,
    norm_eps=1e-5,
    lm_head_bias=True,
)


def test_logits_equal_phi() -> None:
    hf = tiny_models.build("phi", partial_rotary_factor=0.5, layer_norm_eps=1e-5)
    weights = {str(rename(k, PHI_NAMES)): tiny_models.tensor(v.numpy()) for k, v in hf.state_dict().items()}
    assert {k: t.shape for k, t in weights.items()} == tensor_shapes(PHI)
    backend = load_backend("reference", PHI, weights, BackendOptions(max_model_len=64))
    ours, theirs = Driver(backend).logits(TEXT), tiny_models.logits(hf, TEXT)
    assert np.abs(theirs).max() > 1, "logits this small would prove nothing"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_sinks_equal_gpt_oss() -> None:
    rng, a = np.random.default_rng(3), attention(sinks=True, sliding_window=7)
    q, k, v = (rng.standard_normal((20, heads, 8), np.float32) for heads in (4, 2, 2))
    sinks = rng.standard_normal(4).astype(np.float32)
    distance = np.arange(20)[:, None] - np.arange(20)
    mask = np.where((distance < 0) | (distance >= 7), np.finfo(np.float32).min, 0).astype(np.float32)
    module = SimpleNamespace(num_key_value_groups=2, sinks=torch.from_numpy(sinks), training=False)
    batched = [torch.from_numpy(x.transpose(1, 0, 2)[None]) for x in (q, k, v)]
    theirs, _ = eager_attention_forward(module, *batched, torch.from_numpy(mask)[None, None], scaling=a.scale)
    ours = attend(a, q, k, v, 0, 0, None, sinks)
    np.testing.assert_allclose(ours, theirs[0].numpy().reshape(20, -1), rtol=0, atol=1e-6)


def test_squared_relu_equals_torch() -> None:
    x = np.linspace(-3, 3, 31, dtype=np.float32)
    theirs = torch.nn.functional.relu(torch.from_numpy(x)).square().numpy()
    np.testing.assert_allclose(ACTIVATIONS["relu2"](x), theirs, rtol=1e-6)
