"""What the HTTP side of a server may be told: where it listens, who may call, and its limits. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tuili.checks import check_count
from tuili.errors import InvalidRequestError
from tuili.server.api_keys import ApiKey


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpSettings:
    """Defaults serve one machine. Raises InvalidRequestError naming the field.

    allowed_hosts and allowed_origins add to what is accepted anyhow (docs/reliability.md); "*" accepts all. is_strict
    refuses fields that are not known, which are otherwise named in a header. Sizes are bytes, times seconds.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[ApiKey, ...] = ()
    is_insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    is_strict: bool = False
    max_header_bytes: int = 64 << 10
    max_headers: int = 100
    header_timeout_s: float = 30.0
    max_body_bytes: int = 32 << 20
    body_timeout_s: float = 30.0
    max_queued_requests: int = 256
    max_queued_tokens: int = 1 << 20
    request_timeout_s: float | None = None  # of a whole answer; None is no limit
    keep_alive_interval_s: float = 5.0
    send_timeout_s: float = 30.0  # how long a client may not read
    response_role: str = "assistant"  # of answers in conversations
    log_path: Path | None = None  # None is the standard output
    forces_usage: bool = False  # at the end of every stream of OpenAI's API
    tells_token_ids: bool = False  # for the tokens of its logprobs
    otlp_traces_endpoint: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_header_bytes", "max_headers", "max_body_bytes", "max_queued_requests", "max_queued_tokens"):
            check_count(name, getattr(self, name))
        for name in ("header_timeout_s", "body_timeout_s", "keep_alive_interval_s", "send_timeout_s"):
            _check_seconds(name, getattr(self, name))
        if self.request_timeout_s is not None:
            _check_seconds("request_timeout_s", self.request_timeout_s)


def _check_seconds(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InvalidRequestError(f"{name} must be a number of seconds > 0, got {value!r}", param=name)
