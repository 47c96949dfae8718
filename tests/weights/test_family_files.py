"""Checkpoint files that differ from what a family's configuration alone would say: wrappers, older names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from support import family_models, gguf_families, tiny_models
from support.batches import Driver
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.errors import UnsupportedModelError
from tuili.models.families import for_hf
from tuili.models.rope import attention_factor
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.weights.checkpoint import Checkpoint, open_checkpoint

TEXT = np.random.default_rng(7).integers(0, 97, 40).tolist()


def logits(checkpoint: Checkpoint) -> np.ndarray:
    backend = load_backend("reference", checkpoint.spec, checkpoint.weights, BackendOptions(max_model_len=len(TEXT)))
    return Driver(backend).logits(TEXT)


@pytest.mark.parametrize("text", ["mistral", "ministral3"])
@pytest.mark.parametrize("has_old_names", [False, True])
def test_the_text_model_of_mistral3(text: str, has_old_names: bool, tmp_path: Path) -> None:
    """Logits of the wrapper's text model, whichever way its tensors are named; vision is left out and named."""
    extra: dict[str, Any] = {"rope_parameters": family_models.GROWING_QUERIES} if text == "ministral3" else {}
    sizes = tiny_models.SIZES | extra | {"model_type": text, "head_dim": 8, "tie_word_embeddings": False}
    config = Mistral3Config(text_config=sizes, vision_config=family_models.PIXTRAL, tie_word_embeddings=False)
    model = Mistral3ForConditionalGeneration._from_config(config, attn_implementation="eager").float().eval()
    tiny_models.randomize(model)
    model.save_pretrained(tmp_path)
    if has_old_names:
        states = {old_name(name): value.clone() for name, value in model.state_dict().items()}
        save_file(states, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    parts = {name.removeprefix("model.").split(".")[0] for name in checkpoint.left_out}
    assert parts == {"vision_tower", "multi_modal_projector"}
    np.testing.assert_allclose(logits(checkpoint), tiny_models.logits(model, TEXT), rtol=0, atol=1e-4)


def old_name(name: str) -> str:
    """As transformers 4 saved them."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    inner = name.removeprefix("model.")
    return inner.replace("language_model.", "language_model.model.", 1)


@pytest.mark.parametrize(("name", "prefix"), [("gpt2", "transformer."), ("bloom", "transformer."), ("opt", "model.")])
def test_checkpoints_without_the_first_part_of_names(name: str, prefix: str, tmp_path: Path) -> None:
    model = family_models.build(name)
    model.config.save_pretrained(tmp_path)
    states = {k.removeprefix(prefix): v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    if name == "gpt2":
        states["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)  # the mask that old files carry
    save_file(states, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.left_out == ()
    np.testing.assert_allclose(logits(checkpoint), tiny_models.logits(model, TEXT), rtol=0, atol=1e-4)


IN_GGUF = (
    *("gpt2", "bloom", "bloom-six-heads", "falcon-7b", "falcon-40b", "falcon-11b", "stablelm", "stablelm-12b", "olmo2"),
    *("olmo2-biases", "gemma2", "phi3", "phi3-window-partial", "phi3-longrope", "smollm3", "ministral3", "cohere"),
    *("cohere-normed-heads", "cohere2", "granite", "granite-biases"),
)


@pytest.mark.parametrize("name", IN_GGUF)
def test_gguf_is_the_same_model(name: str, tmp_path: Path) -> None:
    """Same spec, same weights, same logits as transformers'; a layer without positions has no order of its rows."""
    model = family_models.build(name)
    gguf_families.write(model, tmp_path / "tiny.gguf")
    checkpoint, spec = open_checkpoint(tmp_path / "tiny.gguf"), tiny_models.spec_of(model)
    assert without_stated_factor(checkpoint.spec) == spec
    expected = tiny_models.canonical(model, for_hf(model.config.model_type), spec)
    unrotated = ("layers.3.q_proj.weight", "layers.3.k_proj.weight")
    for tensor_name, tensor in checkpoint.weights.items():
        if name != "smollm3" or tensor_name not in unrotated:
            np.testing.assert_array_equal(tensor.dequantize(), expected[tensor_name].dequantize(), tensor_name)
    np.testing.assert_allclose(logits(checkpoint), tiny_models.logits(model, TEXT), rtol=0, atol=1e-4)


def without_stated_factor(spec: ModelSpec) -> ModelSpec:
    """GGUF states longrope's attention factor, which follows from the others."""
    layers = []
    for layer in spec.layers:
        rope = layer.mixer.rope if isinstance(layer.mixer, AttentionSpec) else None
        if rope is None or rope.scaling is None or rope.scaling.kind != "longrope":
            return spec
        stated, computed = attention_factor(rope, 64), replace(rope.scaling, attention_factor=None)
        assert stated == pytest.approx(attention_factor(replace(rope, scaling=computed), 64))
        mixer = replace(layer.mixer, rope=replace(rope, scaling=computed))
        layers.append(replace(layer, mixer=mixer))
    return replace(spec, layers=tuple(layers))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm is True",
        ),
        ("falcon-7b", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv is 8.0"),
        ("phi3", {"attention_bias": True}, "attention_bias is True"),
        ("cohere2", {"use_qk_norm": True}, "use_qk_norm is True"),
        ("llama-mha", {"llama_4_scaling_beta": 0.1}, "llama_4_scaling_beta is 0.1"),
        ("llama-mha", {"new_decoder_architecture": True}, "new_decoder_architecture is True"),
    ],
)
def test_what_a_family_does_not_do_is_refused_by_name(name: str, changes: dict[str, Any], message: str) -> None:
    model = family_models.build(name)
    with pytest.raises(UnsupportedModelError, match=message):
        tiny_models.spec_of(model, **changes)
    assert for_hf(model.config.model_type)
