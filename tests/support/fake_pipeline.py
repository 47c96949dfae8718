"""A pipeline that echoes: what the command line does is tested without a model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tuili.errors import ContextLengthError, EngineUnavailableError, TuiliError
from tuili.runtime.front.modelfile_settings import Preamble
from tuili.types import Done, Event, Failed, Finished, GenerateRequest, PromptTokens, TextDelta, Timings, Usage


@dataclass
class FakePipeline:
    """Answers "echo" and the last message, word by word.

    The messages "hang", "fail" and "too long" do that instead.
    """

    name: str = "fake"
    has_chat_template: bool = True
    default_sampling: dict[str, Any] = field(default_factory=dict)
    load_s: float = 0.25
    max_model_len: int = 99
    chat_template: Any = field(default_factory=lambda: SimpleNamespace(source="{{ messages }}"))
    spec: Any = field(default_factory=lambda: SimpleNamespace(family="llama"))
    preamble: Preamble = field(default_factory=Preamble)
    requests: list[GenerateRequest] = field(default_factory=list)
    num_aborted: int = 0
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True

    def stream(self, request: GenerateRequest) -> Iterator[Event]:
        self.requests.append(request)
        text = request.prompt if request.messages is None else request.messages[-1]["content"]
        assert text is not None
        if text == "too long":
            raise ContextLengthError("prompt has 100 tokens, the context holds 99", param="messages")
        return self._events(text)

    def _events(self, text: str) -> Iterator[Event]:
        words = ["echo", *text.split()]
        is_complete = False
        try:
            yield PromptTokens((1, 2, 3), text)
            for number, word in enumerate(words):
                yield TextDelta(index=0, text=word if number == 0 else f" {word}", token_ids=(number,))
                if text == "hang":
                    threading.Event().wait()
                if text == "fail":
                    error: TuiliError = EngineUnavailableError("the engine is gone")
                    yield Failed(error)
                    return
            yield Finished(index=0, finish_reason="stop")
            usage = Usage(num_prompt_tokens=3, num_cached_tokens=1, num_output_tokens=len(words))
            yield Done(usage=usage, timings=Timings(time_to_first_token_s=0.5, decode_s=0.25))
            is_complete = True
        finally:
            self.num_aborted += not is_complete
