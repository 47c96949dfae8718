"""vLLM's engine arguments that are not LLMArguments' own: which are without effect here and why, which are refused.

Data, and how to read it. docs/coming_from.md lists the same names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuili.checks import check_choice, shown
from tuili.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Ignored:
    """An argument without effect; `allowed` lists its values where not all are, low and high bound a number.

    Where `why` is empty nothing is lost: what the argument asks for holds in any case.
    """

    default: object
    why: str
    allowed: tuple[object, ...] | None = None
    low: float | None = None
    high: float = math.inf


_GPU = "it is for GPUs"
_ALWAYS = "prompts are always computed in chunks"
_IMAGES = "models read text only"
IGNORED: Mapping[str, Ignored] = {
    "max_seq_len_to_capture": Ignored(8192, "CUDA graphs are captured for every length", low=0),
    "compilation_config": Ignored(None, "nothing is compiled while it runs"),
    "disable_custom_all_reduce": Ignored(False, _GPU, (False, True)),
    "distributed_executor_backend": Ignored(None, "", (None, "mp", "uni")),
    "async_scheduling": Ignored(None, "the engine always works beside its reader", (None, False, True)),
    "enable_chunked_prefill": Ignored(None, _ALWAYS, (None, False, True)),
    "long_prefill_token_threshold": Ignored(0, _ALWAYS, low=0),
    "max_num_partial_prefills": Ignored(1, _ALWAYS, low=1),
    "scheduling_policy": Ignored("fcfs", "", ("fcfs", "priority")),
    "trust_remote_code": Ignored(False, "remote code is never run", (False, True)),
    "tokenizer_mode": Ignored("auto", "", ("auto", "fast", "hf")),
    "load_format": Ignored("auto", "", ("auto", "safetensors", "gguf", "hf")),
    "runner": Ignored("auto", "", ("auto", "generate")),
    "convert": Ignored("auto", "", ("auto", "none")),
    "task": Ignored("auto", "", ("auto", "generate")),
    "max_logprobs": Ignored(20, "", low=-1),
    "limit_mm_per_prompt": Ignored(None, _IMAGES),
    "mm_processor_kwargs": Ignored(None, _IMAGES),
    "allowed_local_media_path": Ignored("", _IMAGES),
    "disable_log_stats": Ignored(True, "", (False, True)),
    "disable_log_requests": Ignored(True, "", (False, True)),
    "enable_log_requests": Ignored(False, "", (False, True)),
    "served_model_name": Ignored(None, "there is no server"),
    "use_tqdm_on_load": Ignored(True, "", (False, True)),
}

_FILES = "a source's newest files are used"
REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    # name: (values that ask for nothing, why others are refused)
    "revision": ((None,), _FILES),
    "code_revision": ((None,), _FILES),
    "tokenizer_revision": ((None,), _FILES),
    "download_dir": ((None,), "the environment variable TUILI_HOME says where models are kept"),
    "hf_token": ((None, False), "set the environment variable HF_TOKEN"),
    "hf_overrides": ((None, {}), "the model's own configuration counts"),
    "config_format": (("auto", "hf"), "the model's own configuration counts"),
    "skip_tokenizer_init": ((False,), "a model is loaded with its tokenizer"),
    "disable_sliding_window": ((False,), "windows are part of the model"),
    "rope_scaling": ((None, {}), "the model's own positions count"),
    "rope_theta": ((None,), "the model's own positions count"),
    "num_gpu_blocks_override": ((None,), "give kv_cache_memory_bytes"),
    "logits_processors": ((None, []), "give them with the request's sampling parameters"),
    "enable_lora": ((False, None), "adapters are not loaded yet"),
    "enable_prompt_embeds": ((False,), "prompts are text or token ids"),
    "enable_sleep_mode": ((False,), "close the model and load it again"),
    "structured_outputs_config": ((None, {}), "structured output does not exist yet"),
    "guided_decoding_backend": ((None, "auto"), "structured output does not exist yet"),
    "pooler_config": ((None,), "models generate text"),
    "override_pooler_config": ((None,), "models generate text"),
    "kv_transfer_config": ((None,), "one process runs the model"),
    "enable_expert_parallel": ((False,), "one process runs the model"),
}


def split_arguments(
    arguments: Mapping[str, Any], also_ignored: Mapping[str, Ignored] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The arguments that remain, and why each given one without effect has none.

    also_ignored: further ones, which come before those of the same name here.
    Raises InvalidRequestError for a value out of range, and for what is refused.
    """
    remaining: dict[str, Any] = {}
    notes = []
    ignored = {**IGNORED, **(also_ignored or {})}
    for name, value in arguments.items():
        if name in REFUSED:
            nothing, why = REFUSED[name]
            if value not in nothing:
                raise InvalidRequestError(f"{name}={shown(value)} is not implemented: {why}", param=name)
        elif name in ignored:
            known = ignored[name]
            _check(name, value, known)
            if known.why and value != known.default:
                notes.append(f"{name} ({known.why})")
        else:
            remaining[name] = value
    return remaining, notes


def _check(name: str, value: object, known: Ignored) -> None:
    if known.allowed is not None:
        check_choice(name, value, known.allowed)
    if known.low is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value != math.inf
    if not is_number or not known.low <= value <= known.high:  # type: ignore[operator]
        low = "in (0" if 0 < known.low < 1 else f"in [{known.low:g}"
        allowed = f">= {known.low:g}" if known.high == math.inf else f"{low}, {known.high:g}]"
        raise InvalidRequestError(f"{name} must be {allowed}, got {shown(value)}", param=name)
