"""What a model's generation_config asks of sampling, under our names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SHARED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """SamplingParams fields the model sets; do_sample false means greedy, as transformers has it."""
    defaults = {name: generation_config[name] for name in _SHARED if generation_config.get(name) is not None}
    if generation_config.get("do_sample") is False:
        defaults["temperature"] = 0.0
    if generation_config.get("max_new_tokens") is not None:
        defaults["max_tokens"] = generation_config["max_new_tokens"]
    return defaults
