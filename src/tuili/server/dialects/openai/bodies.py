"""What clients send, as pydantic models: types and schema. Ranges are SamplingParams'.

What is taken and what is refused stands in runtime.openai.fields, whose names these are.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from tuili.errors import InvalidRequestError
from tuili.runtime.openai.fields import MAX_IDS, WITHOUT_EFFECT
from tuili.runtime.openai.requests import asked_in_vain, without_unimplemented
from tuili.server.body import JsonList, JsonNumbers, read_body

TokenIds = Annotated[JsonList[int], Field(max_length=MAX_IDS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")


class StreamOptions(_Body):
    """What a stream tells beside its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Options(_Body):
    """Options under Ollama's names."""

    num_ctx: int | None = Field(None, gt=0)


class Sampling(_Body):
    """Fields of SamplingParams."""

    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | JsonList[str] | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: int | None = None
    logit_bias: Annotated[JsonNumbers, Field(max_length=MAX_IDS)] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    repeat_last_n: int | None = None
    min_keep: int | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: JsonList[str] | None = None
    adaptive_target: float | None = None
    adaptive_decay: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    samplers: str | JsonList[str] | None = None
    bad_words: JsonList[str] | None = None
    allowed_token_ids: TokenIds | None = None
    repetition_detection: dict[str, Any] | None = None
    truncate_prompt_tokens: int | None = None


class _Generate(Sampling):
    """What chats and completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_progress: bool | None = None
    echo: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    request_id: str | None = Field(None, min_length=1, max_length=128)
    options: Options | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    cache_salt: str | None = Field(None, min_length=1, max_length=1024)
    priority: int | None = Field(None, ge=-(2**63), lt=2**63)
    best_of: int | None = None
    add_special_tokens: bool | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    session_id: str | None = None
    tools: JsonList[Any] | None = None
    tool_choice: Any = None
    functions: JsonList[Any] | None = None
    function_call: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    modalities: JsonList[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: Any = None
    store: bool | None = None
    verbosity: str | None = None
    suffix: str | None = None
    prompt_embeds: Any = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None
    kv_transfer_params: dict[str, Any] | None = None
    ec_transfer_params: dict[str, Any] | None = None
    vllm_xargs: dict[str, Any] | None = None
    truncation_side: str | None = None
    lora: JsonList[Any] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    return_prompt_text: bool | None = None
    return_token_offsets: bool | None = None
    return_weight_versions: bool | None = None
    structured_outputs: Any = None
    guided_decoding: Any = None
    logprob_token_ids: Any = None
    thinking_token_budget: Any = None
    watermarking: Any = None
    stream_interval: Any = None
    flat_logprobs: Any = None
    skip_reading_prefix_cache: Any = None
    extra_args: Any = None


class ChatBody(_Generate):
    """POST /v1/chat/completions"""

    messages: JsonList[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: JsonList[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None


class CompletionBody(_Generate):
    """POST /v1/completions"""

    prompt: str | JsonList[str] | JsonList[int] | JsonList[JsonList[int]]
    logprobs: int | None = None
    parse_special: bool | None = None


class TokenizeBody(_Body):
    """POST /tokenize: vLLM's `prompt` or `messages`, or llama-server's `content`."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: JsonList[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: JsonList[Any] | None = None


class DetokenizeBody(_Body):
    """POST /detokenize"""

    model: str | None = None
    tokens: JsonList[int]


async def read_fields(request: Request, model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a request's body that ask for something.

    What is asked in vain is named in the answer's x-ignored-params, or refused with --strict. Raises as read_body does,
    and InvalidRequestError for what is not implemented.
    """
    body = given(await read_body(request, model))
    vain = asked_in_vain(body)
    if vain and request.app.state.serving.settings.is_strict:
        raise InvalidRequestError(f"{vain[0]} has no effect here: {WITHOUT_EFFECT[vain[0]]}", param=vain[0])
    request.state.caller.ignored_params += vain
    return without_unimplemented(body)


def given(body: BaseModel) -> dict[str, Any]:
    """The fields of a body that were sent and are not null, without those that are not known."""
    known = body.__dict__  # pydantic keeps the others elsewhere
    return {name: value for name in body.model_fields_set if (value := known.get(name)) is not None}
