"""A config.json in the one vocabulary of ConfigReader: flat, under today's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.models.config_keys import HF_ALIASES
from tuili.models.reader import Config, short


def hf_config(raw: Mapping[str, Any]) -> Config:
    """A config.json, flat: rotary parameters of transformers 4 and 5 become rope_theta, partial_rotary_factor and
    rope_scaling, those of sliding layers rope_local_base_freq and rope_local_scaling; older model types' names for what
    all have become the common ones; of a model of several parts, the text's configuration remains (text_model_type is
    its model_type).

    Code named by auto_map is never run: a family of ours implements the model type, or nobody does.
    Raises ModelFileError and UnsupportedModelError.
    """
    if raw.get("quantization_config") is not None:
        method = raw["quantization_config"]
        method = method.get("quant_method", method) if isinstance(method, Mapping) else method
        raise UnsupportedModelError(f"config: quantization_config is {short(method)}, which is not implemented")
    config = _text_part(raw)
    for alias, key in HF_ALIASES.items():
        if config.get(key) is None and alias in config:
            config[key] = config[alias]
    nested = config.pop("rope_parameters", None)
    scaling = config.pop("rope_scaling", None)
    for key, value in (("rope_parameters", nested), ("rope_scaling", scaling)):
        if value is not None and not isinstance(value, Mapping):
            raise ModelFileError(f"config: {key} is {short(value)}; allowed: an object or null")
    if nested and any(key in nested for key in ("full_attention", "sliding_attention")):
        _flatten_rope(config, nested.get("sliding_attention"), "rope_local_base_freq", "rope_local_scaling")
        nested = nested.get("full_attention")
    _flatten_rope(config, nested or scaling, "rope_theta", "rope_scaling")
    return config


def _flatten_rope(config: Config, parameters: Any, theta_key: str, scaling_key: str) -> None:
    if parameters is None:
        return
    if not isinstance(parameters, Mapping):
        raise ModelFileError(f"config: rope_parameters is {short(parameters)}; allowed: objects of parameters")
    scaling = {key: value for key, value in parameters.items() if value is not None}
    kind = scaling.pop("type", None)
    kind = scaling.pop("rope_type", kind) or "default"
    kind = "longrope" if kind == "su" else kind
    for key, name in (("rope_theta", theta_key), ("partial_rotary_factor", "partial_rotary_factor")):
        if key in scaling:
            config[name] = scaling.pop(key)
    if "llama_4_scaling_beta" in scaling:
        config["llama_4_scaling_beta"] = scaling.pop("llama_4_scaling_beta")
        config["llama_4_scaling_length"] = scaling.get("original_max_position_embeddings")
        scaling.pop("max_position_embeddings", None)  # the configuration's own, once more
    if kind == "default":
        scaling.pop("original_max_position_embeddings", None)  # nothing is stretched
    original = config.get("original_max_position_embeddings")
    if original is not None and kind in ("yarn", "longrope", "llama3"):
        scaling["original_max_position_embeddings"] = original
    config[scaling_key] = None if kind == "default" and not scaling else {"rope_type": kind, **scaling}


def _text_part(raw: Mapping[str, Any]) -> Config:
    text = raw.get("text_config")
    if text is None:
        return dict(raw)
    if not isinstance(text, Mapping):
        raise ModelFileError(f"config: text_config is {short(text)}; allowed: an object or null")
    if text.get("quantization_config") is not None:
        raise UnsupportedModelError("config: text_config.quantization_config is not implemented")
    outer = {key: raw[key] for key in ("tie_word_embeddings", "vision_config") if key in raw}
    return {**text, **outer, "model_type": raw.get("model_type"), "text_model_type": text.get("model_type")}
