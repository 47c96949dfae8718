"""What a command needs of a model that answers, loaded here or running on a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from tuili.runtime.front.modelfile_settings import Preamble
from tuili.types import Event, GenerateRequest


class ChatModel(Protocol):
    """Part of Pipeline's surface."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> Any: ...

    @property
    def load_s(self) -> float: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def default_sampling(self) -> Mapping[str, Any]: ...

    @property
    def preamble(self) -> Preamble: ...

    @property
    def chat_template(self) -> Any: ...

    @property
    def has_chat_template(self) -> bool: ...

    def stream(self, request: GenerateRequest) -> Iterator[Event]: ...
