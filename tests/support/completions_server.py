"""A server on the loopback that streams completions as OpenAI's protocol has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.local_server import serving_handler


@dataclass(slots=True)
class CompletionsServer:
    """`status` other than 200 refuses every completion; `models` are listed; `events` replace the stream's data."""

    url: str = ""
    models: list[str] = field(default_factory=lambda: ["served"])
    status: int = 200
    events: list[str] | None = None
    tokens_per_event: int = 1
    requests: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)  # path, Authorization, body

    def stream(self, body: dict[str, Any]) -> list[str]:
        if self.events is not None:
            return self.events
        count = body["max_tokens"]
        texts = ["x" * min(self.tokens_per_event, count - done) for done in range(0, count, self.tokens_per_event)]
        usage = {"prompt_tokens": 2 * len(body["prompt"].split()), "completion_tokens": count}
        chunks: list[dict[str, Any]] = [{"choices": [{"text": text}]} for text in texts]
        return [*map(json.dumps, [*chunks, {"choices": [], "usage": usage}]), "[DONE]"]


@contextmanager
def serving_completions() -> Iterator[CompletionsServer]:
    """The server on a free port for as long as the context lasts."""
    state = CompletionsServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _send(self, 200, json.dumps({"data": [{"id": name} for name in state.models]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((self.path, self.headers.get("Authorization"), body))
            lines = "".join(f"data: {event}\n\n" for event in state.stream(body))
            _send(self, state.status, lines.encode() if state.status == 200 else b'{"error": "no room"}')

        def log_message(self, *_: object) -> None:
            pass

    with serving_handler(Handler) as state.url:
        yield state


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
