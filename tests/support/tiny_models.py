"""Tiny transformers models with random weights, and their weights under canonical names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tuili.models.families import Family, for_hf, read_spec
from tuili.models.hf_config import hf_config
from tuili.models.names import table_for
from tuili.models.spec import ModelSpec
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor
from tuili.weights.loader import Conventions, canonical_weights

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


def build(
    model_type: str, seed: int = 0, without: Sequence[str] = (), attention: str = "eager", **config: Any
) -> PreTrainedModel:
    """A float32 model whose every parameter, gains and biases included, is random enough to matter.

    without: keys of SIZES that the model type has other names for.
    """
    sizes = {key: value for key, value in SIZES.items() if key not in without}
    hf = AutoConfig.for_model(model_type, **sizes | config)
    model = AutoModelForCausalLM.from_config(hf, attn_implementation=attention).float().eval()
    randomize(model, seed)
    return model


def randomize(model: PreTrainedModel, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.ndim == 1 and name.endswith(".weight")
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(noise * scale + (parameter if is_gain else 0))


def logits(model: PreTrainedModel, token_ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def spec_of(model: PreTrainedModel, **changes: Any) -> ModelSpec:
    config = hf_config(model.config.to_dict() | changes)
    return read_spec(for_hf(config["model_type"]), config)


def canonical(model: PreTrainedModel, family: Family, spec: ModelSpec) -> dict[str, Tensor]:
    """The model's state dict through the family's names and transforms."""
    tensors = {name: tensor(value.numpy()) for name, value in model.state_dict().items()}
    names = table_for(family.HF_NAMES, spec)
    conventions = Conventions(names=names, transforms=family.HF_TRANSFORMS, ignored=family.HF_IGNORED)
    return dict(canonical_weights(tensors, spec, conventions, "tiny"))


def tensor(value: np.ndarray) -> Tensor:
    """A float32 array as a weight of a file."""
    rows = np.ascontiguousarray(value, np.float32).reshape(-1, value.shape[-1])
    return Tensor(BY_NAME["F32"], tuple(value.shape), rows.view(np.uint8))
