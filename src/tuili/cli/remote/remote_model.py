"""A model of a running server, with as much of Pipeline's surface as `run` and its chat use.

Requests go out in OpenAI's words, events come back; what is not said is the server's to decide, as it is the
pipeline's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

from tuili.cli.remote.server_client import ServerClient
from tuili.errors import InvalidRequestError
from tuili.runtime.front.modelfile_settings import Preamble
from tuili.runtime.front.sampling_defaults import SamplingDefaults
from tuili.types import Done, Event, Finished, GenerateRequest, SamplingParams, TextDelta, Timings, Usage

_NO_TIMINGS: Mapping[str, float] = {}
_UNSAID = ("logprobs", "output_kind", "detokenize", "skip_clone", "logits_processors")  # nothing a server is asked


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteModel:
    """`chat_template.source` and `spec.family` are as the server tells them; load_s is how long loading took now."""

    client: ServerClient
    name: str
    load_s: float
    max_model_len: int
    default_sampling: Mapping[str, Any]
    chat_template: Any
    spec: Any
    license_text: str
    preamble: Preamble = field(default_factory=Preamble)

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    @property
    def place(self) -> str:
        """Where it runs."""
        return str(self.client.address)

    def stream(self, request: GenerateRequest) -> Iterator[Event]:
        """Events of one request, ending in Done. Closing it aborts. Raises the error that the server tells."""
        path, body = self._asked(request)
        return _events(self.client.stream(path, body))

    def _asked(self, request: GenerateRequest) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling(request.sampling),
        }
        if request.messages is None:
            body["prompt"] = request.prompt
            if request.sampling.max_tokens is None:
                body["max_tokens"] = self._room_behind(request.prompt)
            return "/v1/completions", body
        body["messages"] = list(request.messages)
        if request.template_args:
            body["chat_template_kwargs"] = dict(request.template_args)
        if request.chat_template is not None:
            body["chat_template"] = request.chat_template
        return "/v1/chat/completions", body

    def _sampling(self, params: SamplingParams) -> dict[str, Any]:
        """What must be said for the same to take effect there: what differs from the library or is in the model's."""
        neutral = SamplingParams()
        said: dict[str, Any] = {}
        for f in fields(params):
            value = getattr(params, f.name)
            is_said = f.name in self.default_sampling or value != getattr(neutral, f.name)
            if is_said and f.name not in _UNSAID and value is not None:
                said[f.name] = list(value) if isinstance(value, tuple | frozenset | set) else value
        if params.logit_bias:
            said["logit_bias"] = {str(token_id): bias for token_id, bias in params.logit_bias.items()}
        return said

    def _room_behind(self, prompt: str | None) -> int:
        """Tokens that fit behind a prompt: a completion that names no limit is OpenAI's sixteen tokens."""
        told = self.client.post("/tokenize", {"model": self.name, "prompt": prompt})
        return max(int(told["max_model_len"]) - int(told["count"]), 1)


def open_remote_model(client: ServerClient, name: str) -> RemoteModel:
    """The model, loaded there if it was not. Raises the error that the server tells."""
    start_s = time.perf_counter()
    client.post("/api/generate", {"model": name, "stream": False}, timeout_s=None)
    load_s = time.perf_counter() - start_s
    told = client.post("/api/show", {"model": name})
    return RemoteModel(
        client=client,
        name=name,
        load_s=load_s,
        max_model_len=int(told["context_length"]),
        default_sampling=_defaults(told["sampling_layers"]),
        chat_template=SimpleNamespace(source=told["template"]) if told["has_template"] else None,
        spec=SimpleNamespace(family=str(told["details"]["family"])),
        license_text=str(told["license"]),
        preamble=Preamble(told.get("system") or None, tuple(told.get("messages") or ())),
    )


def _defaults(layers: Any) -> SamplingDefaults:
    """Only what this version knows: an older or newer server may tell of more."""
    known = {field.name for field in fields(SamplingParams)}
    kept = [(str(layer), {name: value for name, value in values.items() if name in known}) for layer, values in layers]
    return SamplingDefaults(tuple(kept))


def _events(chunks: Iterator[dict[str, Any]]) -> Iterator[Event]:
    """Thinking is told in the text, between the marks that most models use, as it is by a model loaded here."""
    is_thinking = False
    usage: Mapping[str, Any] = {}
    timings: Mapping[str, Any] = _NO_TIMINGS
    for chunk in chunks:
        usage, timings = chunk.get("usage") or usage, chunk.get("timings") or timings
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            reasoning, text = delta.get("reasoning_content") or "", delta.get("content") or choice.get("text") or ""
            if reasoning and not is_thinking:
                reasoning, is_thinking = f"<think>{reasoning}", True
            if is_thinking and (text or choice.get("finish_reason")):
                text, is_thinking = f"</think>{text}", False
            if reasoning or text:
                yield TextDelta(index=0, text=reasoning + text, token_ids=())
            if (reason := choice.get("finish_reason")) is not None:
                yield Finished(index=0, finish_reason=reason, stop_reason=choice.get("stop_reason"))
    if not usage:
        raise InvalidRequestError("the server told no usage: it is of another version")
    yield Done(usage=_usage(usage), timings=_timings(timings))


def _usage(told: Mapping[str, Any]) -> Usage:
    details = told.get("prompt_tokens_details") or {}
    return Usage(
        num_prompt_tokens=told["prompt_tokens"],
        num_cached_tokens=details.get("cached_tokens", 0),
        num_output_tokens=told["completion_tokens"],
    )


def _timings(told: Mapping[str, Any]) -> Timings:
    first_ms = told.get("queue_ms", 0.0) + told.get("prompt_ms", 0.0)
    return Timings(
        time_to_first_token_s=first_ms / 1e3,
        decode_s=told.get("predicted_ms", 0.0) / 1e3,
        queue_s=told.get("queue_ms", 0.0) / 1e3,
    )
