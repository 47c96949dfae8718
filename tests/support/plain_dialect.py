"""The smallest dialect there can be, for tests of what is the same for all: POST /plain/generate, lines of JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from tuili.errors import InvalidRequestError, TuiliError
from tuili.server.body import read_body
from tuili.server.dialect import Dialect, Progress, scoped
from tuili.server.serving import Serving
from tuili.server.streaming import collect, stream
from tuili.types import Done, Event, GenerateRequest, SamplingParams, TextDelta


class PlainBody(BaseModel):
    model_config = ConfigDict(extra="allow")
    prompts: list[str] = Field(min_length=1)
    model: str = "small"
    stream: bool = False
    max_tokens: int = 8
    n: int = 1
    temperature: float = 0.0
    padding: int = Field(0, ge=0, le=1 << 24)  # bytes to send beside each token, or beside a whole answer


class PlainRenderer:
    media_type = "application/x-ndjson"

    def __init__(self, padding: int = 0) -> None:
        self.padding = " " * padding

    def start(self) -> bytes:
        return b""

    def push(self, events: Sequence[tuple[int, Event]]) -> bytes:
        lines = b""
        for index, event in events:
            if isinstance(event, TextDelta) and event.token_ids:
                lines += (
                    msgspec.json.encode({"at": [index, event.index], "ids": event.token_ids, "pad": self.padding})
                    + b"\n"
                )
            elif isinstance(event, Done):
                lines += msgspec.json.encode({"done": index, "output": event.usage.num_output_tokens}) + b"\n"
        return lines

    def fail(self, error: TuiliError) -> bytes:
        return msgspec.json.encode({"error": error.code}) + b"\n"

    def keep_alive(self, progress: Progress) -> bytes:
        return msgspec.json.encode({"computed": progress[:2], "pad": self.padding}) + b"\n"


async def generate(request: Request) -> Response:
    body = await read_body(request, PlainBody)
    serving: Serving = request.app.state.serving
    sampling = SamplingParams(
        max_tokens=body.max_tokens, n=body.n, temperature=body.temperature, ignore_eos=True, seed=7
    )
    answering = await serving.answer(
        request.state.caller,
        body.model,
        lambda _: [GenerateRequest(request_id="", sampling=sampling, prompt=prompt) for prompt in body.prompts],
    )
    if body.stream:
        return await stream(request, answering, PlainRenderer(body.padding))
    tokens: dict[str, list[int]] = {}
    for index, event in await collect(request, answering):
        if isinstance(event, TextDelta):
            tokens.setdefault(f"{index}.{event.index}", []).extend(event.token_ids)
    return Response(msgspec.json.encode(tokens) + b" " * body.padding, media_type="application/json")


async def crash(request: Request) -> Response:
    raise KeyError("a secret of the implementation")


def _render_error(error: TuiliError, request_id: str) -> bytes:
    param = error.param if isinstance(error, InvalidRequestError) else None
    return msgspec.json.encode({"plain": str(error), "code": error.code, "param": param, "id": request_id})


def plain_dialect() -> Dialect:
    router = APIRouter(prefix="/plain")
    router.post("/generate", openapi_extra=scoped("infer", body=PlainBody, streams="application/x-ndjson"))(generate)
    router.get("/crash", openapi_extra=scoped("infer"))(crash)
    router.delete("/model/{name}", openapi_extra=scoped("manage"))(crash)
    return Dialect(name="plain", prefixes=("/plain",), router=router, render_error=_render_error)
