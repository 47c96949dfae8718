"""llama-cpp-python's arguments in this library's terms: which mean something, are without effect, are refused.

Data, and how to read it. docs/coming_from.md lists the same names.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tuili.backends import expected_backend
from tuili.checks import check_count, check_optional_count, check_optional_text, refusal, shown
from tuili.errors import InvalidRequestError
from tuili.runtime.loading.loading import LoadOptions
from tuili.sampling_checks import MAX_LOGIT_BIAS
from tuili.sampling_params import LogitsProcessor, SamplingParams

_log = logging.getLogger(__name__)

LLAMA_DEFAULT_SEED = 0xFFFFFFFF  # llama.cpp draws one of its own where it meets this

IGNORED = frozenset(
    {
        "split_mode", "main_gpu", "tensor_split", "use_mmap", "use_mlock", "n_ubatch",
        "n_threads_batch", "offload_kqv", "flash_attn", "op_offload", "swa_full", "no_perf", "numa",
        "logits_all", "verbose", "lora_scale",
    }
)  # fmt: skip
SILENT = IGNORED & {"verbose", "logits_all", "use_mmap", "no_perf", "flash_attn", "n_ubatch", "swa_full", "lora_scale"}
REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    # name: (values that ask for nothing, why others are refused)
    "vocab_only": ((False,), "use tuili.AutoTokenizer"),
    "kv_overrides": ((None, {}), "the model's own configuration counts"),
    "rope_scaling_type": ((-1,), "the model's own positions count"),
    "rope_freq_base": ((0.0,), "the model's own positions count"),
    "rope_freq_scale": ((0.0,), "the model's own positions count"),
    "yarn_ext_factor": ((-1.0,), "the model's own positions count"),
    "yarn_attn_factor": ((1.0,), "the model's own positions count"),
    "yarn_beta_fast": ((32.0,), "the model's own positions count"),
    "yarn_beta_slow": ((1.0,), "the model's own positions count"),
    "yarn_orig_ctx": ((0,), "the model's own positions count"),
    "embedding": ((False,), "models generate text only"),
    "pooling_type": ((-1,), "models generate text only"),
    "attention_type": ((-1,), "models generate text only"),
    "lora_base": ((None,), "adapters are not loaded yet"),
    "lora_path": ((None,), "adapters are not loaded yet"),
    "chat_handler": ((None,), "models read text only"),
    "draft_model": ((None,), "drafts by prompt lookup are made without being asked"),
    "tokenizer": ((None,), "the model's own tokenizer counts"),
    "spm_infill": ((False,), "the text after a prompt is not looked at"),
}
_REFUSED_SAMPLING: Mapping[str, tuple[tuple[object, ...], str]] = {
    "grammar": ((None,), "structured output does not exist yet"),
    "stopping_criteria": ((None,), "give stop strings, or leave the stream"),
    "tfs_z": ((1.0,), "llama.cpp has dropped this sampler too"),
}
_RENAMED = {
    "repeat_penalty": "repetition_penalty",
    "mirostat_mode": "mirostat",
    "logits_processor": "logits_processors",
}
_NEUTRAL: Mapping[str, object] = {
    "typical_p": 1.0,
    "mirostat_mode": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "logits_processor": None,
    "logit_bias": None,
}
_KNOWN = {
    *_NEUTRAL,
    *("temperature", "top_p", "min_p", "top_k", "repeat_penalty", "frequency_penalty", "presence_penalty", "stop"),
}
_ORDER = ("penalties", "top_k", "typ_p", "top_p", "min_p", "temperature")  # llama-cpp-python's chain
_KV_TYPES = {None: "auto", 1: "auto", 30: "auto", 8: "int8"}  # GGML's F16, BF16 and Q8_0
_CHAT_FORMATS = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
}


def llm_options(
    n_ctx: int,
    n_batch: int,
    n_threads: int | None,
    chat_format: str | None,
    kv_types: tuple[int | None, int | None],
    others: Mapping[str, Any],
) -> LoadOptions:
    """How to load for one caller at a time. Raises InvalidRequestError naming an argument.

    others' n_gpu_layers: 0 is the CPU, -1 all layers on a GPU, N the last N of them; left out, the machine decides.
    """
    n_gpu_layers = others.get("n_gpu_layers")
    check_optional_count("n_gpu_layers", n_gpu_layers, -1)
    if n_gpu_layers and expected_backend(None, None) != "torch":
        _log.warning("without effect here: n_gpu_layers, as torch sees no GPU")
        n_gpu_layers = None
    check_count("n_ctx", n_ctx, 0)
    check_count("n_batch", n_batch)
    check_optional_count("n_threads", n_threads, 0)
    check_optional_text("chat_format", chat_format)
    _check_others(others)
    if any(type(kind) not in (int, type(None)) for kind in kv_types) or kv_types not in {(k, k) for k in _KV_TYPES}:
        raise InvalidRequestError(
            f"type_k and type_v must both be 1 (F16), 30 (BF16) or 8 (Q8_0), got {shown(kv_types)}",
            param="type_k",
        )
    if chat_format is not None and chat_format not in _CHAT_FORMATS:
        raise InvalidRequestError(
            f"chat_format must be None, for the model's own template, or one of {sorted(_CHAT_FORMATS)}, "
            f"got {shown(chat_format)}",
            param="chat_format",
        )
    return LoadOptions(
        backend="cpu" if n_gpu_layers == 0 else None,
        gpu_layers=n_gpu_layers if n_gpu_layers is not None and n_gpu_layers > 0 else None,
        max_model_len=n_ctx or None,
        num_threads=n_threads or 0,
        max_num_seqs=1,
        max_num_batched_tokens=n_batch,
        kv_cache_dtype=_KV_TYPES[kv_types[0]],
        chat_template=None if chat_format is None else _CHAT_FORMATS[chat_format],
    )


def sampling_params(given: Mapping[str, Any], ours: Mapping[str, Any]) -> SamplingParams:
    """llama.cpp's sampling arguments under our names. Raises InvalidRequestError naming a bad one."""
    values = {name: value for name, value in given.items() if name not in _NEUTRAL or value != _NEUTRAL[name]}
    for name, (nothing, why) in _REFUSED_SAMPLING.items():
        if values.pop(name, nothing[0]) not in nothing:
            raise InvalidRequestError(f"{name} is not implemented: {why}", param=name)
    values.pop("penalize_nl", None)  # llama.cpp ignores it as well
    max_tokens, seed = values.pop("max_tokens"), values.pop("seed")
    check_optional_count("max_tokens", max_tokens, -(2**31), 2**31 - 1)
    check_count("top_k", values["top_k"], -(2**31), 2**31 - 1)
    values["top_k"] = max(values["top_k"], 0)
    if (biases := values.pop("logit_bias", None)) is not None:
        values["logit_bias"] = _biases(biases)
    if (processors := values.pop("logits_processor", None)) is not None:
        if not isinstance(processors, list | tuple) or not all(map(callable, processors)):
            raise refusal("logits_processor", processors, "a list of callables")
        values["logits_processor"] = [_processor(one) for one in processors]
    renamed = {_RENAMED.get(name, name): value for name, value in values.items()}
    for name in values:
        if name not in _KNOWN:
            raise InvalidRequestError(f"unknown argument {name!r}", param=name)
    try:
        return SamplingParams(
            max_tokens=None if max_tokens is None or max_tokens < 1 else max_tokens,
            seed=None if seed == LLAMA_DEFAULT_SEED else seed,
            samplers=_ORDER,
            **renamed,
            **ours,
        )
    except InvalidRequestError as error:
        their_name = next((theirs for theirs, our in _RENAMED.items() if our == error.param), None)
        if their_name is None or error.param is None:
            raise
        raise InvalidRequestError(str(error).replace(error.param, their_name, 1), param=their_name) from None


def _biases(given: object) -> dict[int, float]:
    """Infinite ones ban a token, or force it, as the largest finite ones do."""
    allowed = "a mapping of token ids to numbers"
    if not isinstance(given, Mapping):
        raise refusal("logit_bias", given, allowed)
    try:
        biases = {int(token_id): float(bias) for token_id, bias in given.items()}
    except (TypeError, ValueError, OverflowError):
        raise refusal("logit_bias", given, allowed) from None
    bounds = {math.inf: MAX_LOGIT_BIAS, -math.inf: -MAX_LOGIT_BIAS}
    return {token_id: bounds.get(bias, bias) for token_id, bias in biases.items()}


def _processor(theirs: Callable[[Any, Any], Any]) -> LogitsProcessor:
    """Theirs are given all ids so far as one array."""

    def processed(prompt_ids: Sequence[int], token_ids: Sequence[int], logits: Any) -> Any:
        return theirs(np.array([*prompt_ids, *token_ids], np.intc), logits)

    return processed


def refuse_given(arguments: Mapping[str, object], why: str) -> None:
    """Raises InvalidRequestError for the first argument that is not None."""
    for name, value in arguments.items():
        if value is not None:
            raise InvalidRequestError(f"{name} is not implemented: {why}", param=name)


def _check_others(others: Mapping[str, Any]) -> None:
    notes = []
    for name, value in others.items():
        if name in REFUSED:
            nothing, why = REFUSED[name]
            if value not in nothing:
                raise InvalidRequestError(f"{name}={shown(value)} is not implemented: {why}", param=name)
        elif name not in IGNORED and name != "n_gpu_layers":
            raise InvalidRequestError(f"unknown argument {name!r}", param=name)
        elif name not in SILENT and name != "n_gpu_layers":
            notes.append(name)
    if notes:
        _log.warning("without effect here: %s", ", ".join(notes))
