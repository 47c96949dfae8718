"""What Anthropic's clients send: request bodies, schema and types in one. Ranges are checked where values are used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuili.server.body import JsonList


class Body(BaseModel):
    """Types are strict; fields of no meaning here are kept, to be named."""

    model_config = ConfigDict(strict=True, extra="allow")


class Turn(Body):
    """A message: text, or blocks of which each is checked where it is read."""

    role: Literal["user", "assistant", "system"]
    content: str | JsonList[dict[str, Any]]


class Thinking(Body):
    """Whether to think, and whether to tell what was thought. A budget is accepted without effect."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class PromptBody(Body):
    """What makes a prompt: all of POST /v1/messages/count_tokens."""

    model: str = Field(min_length=1)
    messages: JsonList[Turn]
    system: str | JsonList[dict[str, Any]] | None = None
    thinking: Thinking | None = None
    tools: JsonList[Any] | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None  # what can be found again is cached, asked for or not


class MessagesBody(PromptBody):
    """POST /v1/messages."""

    max_tokens: int
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: JsonList[str] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    container: Any = None
    mcp_servers: JsonList[Any] | None = None
