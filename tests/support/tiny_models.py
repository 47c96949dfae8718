"""Tiny transformers models with random weights, and their weights under canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tuili.models.families import Family, for_hf, read_spec
from tuili.models.names import is_ignored, leaf, rename
from tuili.models.reader import hf_config
from tuili.models.spec import ModelSpec
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor

SIZES: Mapping[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def build(model_type: str, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A float32 model whose every parameter, gains and biases included, is random enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    hf = AutoConfig.for_model(model_type, **SIZES | config)
    model = AutoModelForCausalLM.from_config(hf, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.ndim == 1 and name.endswith(".weight")
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(noise * scale + (parameter if is_gain else 0))
    return model


def logits(model: PreTrainedModel, token_ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def spec_of(model: PreTrainedModel, **changes: Any) -> ModelSpec:
    config = hf_config(model.config.to_dict() | changes)
    return read_spec(for_hf(config["model_type"]), config)


def canonical(model: PreTrainedModel, family: Family, *, is_tied: bool) -> dict[str, Tensor]:
    """The model's state dict through the family's names and transforms."""
    weights = {}
    for name, value in model.state_dict().items():
        if is_ignored(name, family.HF_IGNORED) or (is_tied and name == "lm_head.weight"):
            continue
        target = rename(name, family.HF_NAMES)
        assert target is not None, f"no canonical name for {name}"
        transform = family.HF_TRANSFORMS.get(leaf(target))
        assert transform in (None, "add_one")
        weights[target] = tensor(value.numpy() + np.float32(transform == "add_one"))
    return weights


def tensor(value: np.ndarray) -> Tensor:
    """A float32 array as a weight of a file."""
    rows = np.ascontiguousarray(value, np.float32).reshape(-1, value.shape[-1])
    return Tensor(BY_NAME["F32"], tuple(value.shape), rows.view(np.uint8))
