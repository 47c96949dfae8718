"""Ollama's words in this library's terms: its options, as requests and Modelfiles have them, and its templates.

Knows neither bodies nor files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuili.checks import refusal

OPTION_KINDS: Mapping[str, type] = {
    **dict.fromkeys(("num_predict", "num_ctx", "num_keep", "top_k", "repeat_last_n", "seed", "mirostat"), int),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "repeat_penalty"), float),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "mirostat_tau", "mirostat_eta"), float),
    "stop": str,  # the only one that may be given more than once
    **dict.fromkeys(("num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict"), int),
    **dict.fromkeys(("numa", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock"), bool),
    **dict.fromkeys(("embedding_only", "penalize_newline"), bool),
    "tfs_z": float,
}
SAMPLING_FIELDS: Mapping[str, str] = {  # option -> field of SamplingParams; num_predict, max_tokens, is apart
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "typical_p")},
    **{name: name for name in ("presence_penalty", "frequency_penalty", "seed", "stop")},
    **{name: name for name in ("mirostat", "mirostat_tau", "mirostat_eta", "repeat_last_n")},
    "repeat_penalty": "repetition_penalty",
}
ALL_FIELDS = {**SAMPLING_FIELDS, "num_predict": "max_tokens"}
WITHOUT_EFFECT = (  # hardware and loading are asked for elsewhere, or the option does nothing any more
    *("numa", "num_batch", "num_gpu", "main_gpu", "num_thread", "low_vram", "f16_kv", "logits_all", "vocab_only"),
    *("use_mmap", "use_mlock", "embedding_only", "penalize_newline", "tfs_z", "draft_num_predict"),
)
ALL_TOKENS = 2**31 - 1  # repeat_last_n: of prompt and answer
NO_LIMIT = (-1, -2)  # num_predict: until the model ends, or until the context is full, which is what ends it here too
_GO_TEMPLATE = re.compile(r"\{\{-?\s*(?:[a-z]+\s+)*[.$]")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionValues:
    """What options come to: SamplingParams fields, and None for what was not given."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    num_ctx: int | None = None
    num_keep: int | None = None
    without_effect: tuple[str, ...] = ()


def read_options(given: Mapping[str, Any], prefix: str = "") -> OptionValues:
    """Options by Ollama's names; their types have been checked, the ranges of sampling are SamplingParams' business.

    Raises InvalidRequestError naming the option, with `prefix` before it.
    """
    for name, low in (("num_ctx", 1), ("num_keep", -1)):
        if name in given and given[name] < low:
            raise refusal(f"{prefix}{name}", given[name], f"an integer >= {low}")
    sampling = {field: given[name] for name, field in SAMPLING_FIELDS.items() if name in given}
    if sampling.get("repeat_last_n") == -1:
        sampling["repeat_last_n"] = ALL_TOKENS
    if "num_predict" in given:
        sampling["max_tokens"] = _max_tokens(given["num_predict"], f"{prefix}num_predict")
    return OptionValues(
        sampling=sampling,
        num_ctx=given.get("num_ctx"),
        num_keep=given.get("num_keep"),
        without_effect=tuple(name for name in WITHOUT_EFFECT if name in given),
    )


def is_go_template(text: str) -> bool:
    """Whether a template is in Go's language, which is Ollama's, and not in Jinja."""
    return _GO_TEMPLATE.search(text) is not None


def _max_tokens(num_predict: int, name: str) -> int | None:
    if num_predict in NO_LIMIT:
        return None
    if num_predict < 1:
        raise refusal(name, num_predict, "an integer >= 1, or -1 or -2 for no limit")
    return num_predict
