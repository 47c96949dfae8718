"""What Ollama's clients send: request bodies, schema and types in one. Ranges are checked where the values are used."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tuili.server.body import JsonList


def _integral(value: object) -> object:
    """Some clients write every number with a fraction: 4096.0 is the integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_integral)]
Name = Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    """Types are strict; fields of no meaning here are kept, to be named."""

    model_config = ConfigDict(strict=True, extra="allow")


class Options(Body):
    """Everything a request or a Modelfile's PARAMETER may set."""

    num_predict: Integer | None = None
    num_ctx: Integer | None = None
    num_keep: Integer | None = None
    temperature: float | None = None
    top_k: Integer | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_last_n: Integer | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Integer | None = None
    stop: JsonList[str] | str | None = None
    mirostat: Integer | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    # Accepted without effect: hardware and loading are the server's business, or the option does nothing any more.
    numa: bool | None = None
    num_batch: Integer | None = None
    num_gpu: Integer | None = None
    main_gpu: Integer | None = None
    num_thread: Integer | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    embedding_only: bool | None = None
    penalize_newline: bool | None = None
    tfs_z: float | None = None
    draft_num_predict: Integer | None = None


class AnswerBody(Body):
    """What /api/generate and /api/chat have in common."""

    model: Name
    stream: bool | None = None
    options: Options | None = None
    keep_alive: float | str | None = None
    format: Any = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Integer | None = None
    truncate: bool | None = None
    shift: bool | None = None


class GenerateBody(AnswerBody):
    """POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: JsonList[int] | None = None
    raw: bool | None = None
    images: JsonList[Any] | None = None


class ChatBody(AnswerBody):
    """POST /api/chat. A message is checked where it is read."""

    messages: JsonList[dict[str, Any]] | None = None
    tools: JsonList[Any] | None = None


class NamedBody(Body):
    """A model, under the field's present or its old name."""

    model: str | None = None
    name: str | None = None


class ShowBody(NamedBody):
    """POST /api/show."""

    verbose: bool | None = None


class PullBody(NamedBody):
    """POST /api/pull."""

    stream: bool | None = None
    insecure: bool | None = None


class CopyBody(Body):
    """POST /api/copy."""

    source: Name
    destination: Name
