"""One loaded model in this process: a request goes in as text, messages or token ids, events come out.

Front (template -> tokens) -> engine loop -> deltas -> Answer -> events. Streaming is the primitive; `run`
folds many streams at once. Knows neither files nor wire formats.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tuili.backend import Backend
from tuili.engine.loop import RequestLoop
from tuili.models.spec import ModelSpec
from tuili.runtime.front.front import Front
from tuili.runtime.front.in_flight import InFlight
from tuili.runtime.front.modelfile_settings import Preamble
from tuili.runtime.metrics import Metric, RequestMeter
from tuili.text.chat_template import ChatTemplate
from tuili.text.pretrained import PretrainedTokenizer
from tuili.text.prompt_text import PromptText
from tuili.text.tokenizer import Tokenizer
from tuili.types import Event, GenerateRequest, PromptTokens, TokenRequest


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True)
class Pipeline:
    """A model ready to answer. Closing it, or dropping the last reference, frees its memory.

    It is also a context manager.
    """

    front: Front
    spec: ModelSpec
    backend: Backend | None  # None: engines in processes of their own have theirs
    loop: RequestLoop
    max_num_seqs: int
    load_s: float
    draft_backend: Backend | None = None

    def __post_init__(self) -> None:
        # The engine's thread refers to loop and backend, never to the pipeline: dropping that ends the thread.
        weakref.finalize(self, _shut_down, self.loop, self.backend, self.draft_backend)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every running request with an error event and frees weights and cache."""
        _shut_down(self.loop, self.backend, self.draft_backend)

    def metrics(self) -> list[Metric]:
        """What requests have cost so far, and the engine's state."""
        return self.meter.snapshot(self.loop.stats(), self.name)

    def reset_prefix_cache(self) -> bool:
        """Lets later requests reuse nothing of what was computed before; False when the engine is gone."""
        return self.loop.reset_prefix_cache()

    @property
    def own_backend(self) -> Backend:
        """Of a model that is loaded in this process."""
        assert self.backend is not None
        return self.backend

    @property
    def name(self) -> str:
        return self.front.name

    @property
    def tokenizer(self) -> Tokenizer:
        return self.front.tokenizer

    @property
    def chat_template(self) -> ChatTemplate | None:
        return self.front.chat_template

    @property
    def has_chat_template(self) -> bool:
        return self.front.chat_template is not None

    @property
    def max_model_len(self) -> int:
        return self.front.max_model_len

    @property
    def default_sampling(self) -> Mapping[str, Any]:
        return self.front.default_sampling

    @property
    def preamble(self) -> Preamble:
        return self.front.preamble

    @property
    def meter(self) -> RequestMeter:
        return self.front.meter

    def pretrained_tokenizer(self) -> PretrainedTokenizer:
        """The tokenizer under Hugging Face's names."""
        return self.front.pretrained_tokenizer()

    def token_request(self, request: GenerateRequest) -> tuple[PromptTokens, TokenRequest]:
        """As Front.token_request."""
        return self.front.token_request(request)

    def render(self, request: GenerateRequest) -> PromptText:
        """As Front.render."""
        return self.front.render(request)

    def stream(self, request: GenerateRequest) -> Iterator[Event]:
        """Events of one request, ending in exactly one Done or Failed. Closing the iterator aborts.

        Raises InvalidRequestError, ContextLengthError or ChatTemplateError before the first event.
        """
        return _without_index(InFlight(self, [request]).events())

    def run(
        self, requests: Iterable[GenerateRequest], *, goes_on: bool = False
    ) -> Generator[tuple[int, Event], None, None]:
        """Events of many requests as (index of the request, event), interleaved.

        Keeps a few times max_num_seqs answers in flight, so that input and output may be streams.
        Closing the iterator aborts what is running. An invalid request raises when its turn comes; with goes_on
        it is told by a Failed event, and the others go on.
        """
        return InFlight(self, requests, goes_on=goes_on).events()


def _shut_down(loop: RequestLoop, *backends: Backend | None) -> None:
    loop.close()
    for backend in backends:
        if backend is not None:
            backend.close()


def _without_index(events: Generator[tuple[int, Event], None, None]) -> Iterator[Event]:
    with contextlib.closing(events):
        for _, event in events:
            yield event
