"""The fields of OpenAI's bodies and of vLLM's extras: taken, without effect, or refused. Data only.

One table for batch files, the server and its documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from tuili.sampling_params import UNSUPPORTED, SamplingParams

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
URLS = (CHAT, COMPLETIONS)
DEFAULT_COMPLETION_TOKENS = 16
MAX_LOGPROBS = 20
MAX_PROMPTS = 1024
MAX_IDS = 1 << 16  # of tokens that are allowed, biased or end an answer
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

_NOT_IN_BODIES = {"logprobs", "detokenize", "logits_processors", "output_kind", "skip_clone", "best_of"}
SAMPLING = frozenset(f.name for f in fields(SamplingParams)) - _NOT_IN_BODIES - UNSUPPORTED.keys()


class Refused(NamedTuple):
    """A field that is not implemented: the values that ask for nothing, and what to do instead."""

    neutral: tuple[Any, ...]
    reason: str


_LATER = "it comes later"
WITHOUT_EFFECT: Mapping[str, str] = {
    "user": "nothing is kept of it",
    "store": "answers are not stored",
    "metadata": "nothing is kept of it",
    "safety_identifier": "nothing is kept of it",
    "service_tier": "there is one",
    "prompt_cache_key": "what is cached is found by its content",
    "prompt_cache_retention": "what is cached is kept while there is room",
    "prompt_cache_options": "what is cached is found by its content",
    "session_id": "what is cached is found by its content",
}
IN_VAIN: Mapping[str, tuple[Any, ...]] = {  # of those: what somebody may count on, and the values that ask for nothing
    "store": (False,),
    "metadata": ({},),
}
REFUSED: Mapping[str, Refused] = {
    "tools": Refused(([],), _LATER),
    "tool_choice": Refused(("none", "auto"), _LATER),
    "functions": Refused(([],), _LATER),
    "function_call": Refused(("none", "auto"), _LATER),
    "parallel_tool_calls": Refused((True, False), "there are no tools to call"),
    "response_format": Refused(({"type": "text"},), "structured output comes later"),
    "modalities": Refused((["text"],), "models write text only"),
    "audio": Refused(({},), "models write text only"),
    "prediction": Refused(({},), _LATER),
    "web_search_options": Refused((), "models do not search"),
    "moderation": Refused((), "there is no moderation"),
    "verbosity": Refused(("medium",), "say it in the prompt"),
    "suffix": Refused(("",), "write the model's own tokens for filling in into the prompt"),
    "prompt_embeds": Refused(([], ""), "prompts are text or token ids"),
    "mm_processor_kwargs": Refused(({},), "models read text only"),
    "media_io_kwargs": Refused(({},), "models read text only"),
    "kv_transfer_params": Refused(({},), "one process computes an answer"),
    "ec_transfer_params": Refused(({},), "one process computes an answer"),
    "vllm_xargs": Refused(({},), "there is nothing that reads extra arguments"),
    "truncation_side": Refused(("left",), "the end of a prompt is kept"),
    "lora": Refused(([],), "adapters come later"),
    "grammar": Refused(("",), "structured output comes later"),
    "json_schema": Refused(({},), "structured output comes later"),
    "guided_json": Refused((), "structured output comes later"),
    "guided_regex": Refused((), "structured output comes later"),
    "guided_choice": Refused(([],), "structured output comes later"),
    "guided_grammar": Refused((), "structured output comes later"),
    "return_prompt_text": Refused((False,), "echo tells the prompt of a completion"),
    "return_token_offsets": Refused((False,), "logprobs of a completion have text_offset"),
    "return_weight_versions": Refused((False,), "system_fingerprint changes with the weights"),
    **{name: Refused((False, -1, {}, [], ""), reason) for name, reason in UNSUPPORTED.items()},
}
REQUEST: Mapping[str, type] = {  # GenerateRequest fields of the same name
    "add_generation_prompt": bool,
    "continue_final_message": bool,
    "cache_salt": str,
    "priority": int,
}
TAKEN: Mapping[str, frozenset[str]] = {
    CHAT: frozenset(
        {
            *("model", "messages", "max_completion_tokens", "logprobs", "top_logprobs", "chat_template_kwargs"),
            *("documents", "reasoning_effort", "best_of", *SAMPLING, *REQUEST),
        }
    ),
    COMPLETIONS: frozenset({"model", "prompt", "logprobs", "best_of", *SAMPLING, "cache_salt", "priority"}),
}
HTTP_ONLY: Mapping[str, frozenset[str]] = {  # what a line of a batch file has no use for
    CHAT: frozenset({"include_reasoning", "chat_template", "add_special_tokens"}),
    COMPLETIONS: frozenset({"add_special_tokens", "parse_special"}),
}
HTTP_SHARED = frozenset(
    {
        *("stream", "stream_options", "return_progress", "echo", "return_token_ids", "return_tokens_as_token_ids"),
        *("request_id", "options", "use_beam_search", "length_penalty", "early_stopping"),
    }
)


def taken_over_http(url: str) -> frozenset[str]:
    """Every field with a meaning in a body of the server's route."""
    return TAKEN[url] | HTTP_ONLY[url] | HTTP_SHARED
