"""Everything that can be set about a server, each setting described once.

Flags, keys of the configuration file, variables of the environment, help and docs/serving.md derive from the fields of
ServeSettings. Where values come from is settings_sources.py's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from tuili.errors import InvalidRequestError
from tuili.program_log import LOG_FORMATS
from tuili.server.api_keys import read_api_keys
from tuili.server.guards.bind import is_loopback
from tuili.server.http_settings import HttpSettings
from tuili.server.listeners import OLLAMA_PORT, Address, ollama_address
from tuili.server.settings.model_settings import ModelSettings
from tuili.server.settings.setting import ANSWERS, LIMITS, LISTENING, RUNNING, SECURITY, Setting, described, setting
from tuili.server.settings.setting_kinds import (
    Choice,
    Count,
    Duration,
    File,
    Many,
    Matching,
    Secret,
    Size,
    Switch,
    Text,
)

DEFAULT_PORT = 8000
_PATH = Matching(r"(/[!-~]*[!-.0-~])?", "a path that starts with / and does not end with it")
_ORIGIN = Matching(
    r"\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^\s/]+", "*, or a scheme and a host such as https://chat.example"
)
_OLLAMA_HOST = Matching(
    r"(?=.)(https?://(?=.))?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(:[0-9]{1,5})?/?", "an address such as 0.0.0.0:11434"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings(ModelSettings):
    """A server's settings. Made by settings_sources.resolve, which checks each value; here they are checked together.

    Raises InvalidRequestError naming the setting.
    """

    host: str = setting("127.0.0.1", LISTENING, Text(max_chars=255), "Address to listen on.", "--server-name")
    port: int = setting(DEFAULT_PORT, LISTENING, Count(0, 65535), "Port; 0 takes a free one.", "--server-port")
    uds: str | None = setting(None, LISTENING, Text(max_chars=100), "Listen on this Unix socket instead.")
    ollama: bool = setting(
        False,
        LISTENING,
        Switch(),
        "Listen where Ollama does, too, and heed its variables OLLAMA_*.",
    )
    ollama_host: str = setting(
        f"127.0.0.1:{OLLAMA_PORT}",
        LISTENING,
        _OLLAMA_HOST,
        "Where that is.",
        ollama="OLLAMA_HOST",
    )
    root_path: str = setting("", LISTENING, _PATH, "Path under which a proxy shows this server.")
    ssl_keyfile: str | None = setting(None, LISTENING, File(), "Private key for TLS.")
    ssl_certfile: str | None = setting(None, LISTENING, File(), "Certificate for TLS.")
    ssl_ca_certs: str | None = setting(None, LISTENING, File(), "Authorities of clients' certificates.")
    ssl_cert_reqs: int = setting(0, LISTENING, Count(0, 2), "Clients' certificates: 0 none, 1 optional, 2 required.")
    ssl_ciphers: str | None = setting(None, LISTENING, Text(), "TLS ciphers, as OpenSSL writes them.")
    api_key: tuple[str, ...] = setting(
        (),
        SECURITY,
        Many(Secret()),
        "Key for asking models, or sha256: and its hash; repeatable. Better said in a variable or a file.",
        "--api-keys",
        variables=("VLLM_API_KEY",),
    )
    admin_api_key: tuple[str, ...] = setting(
        (), SECURITY, Many(Secret()), "Key for that and for managing models; repeatable."
    )
    api_key_file: str | None = setting(
        None,
        SECURITY,
        File(),
        "Keys, one a line; behind a space what for: infer (by default), manage or infer,manage.",
    )
    insecure: bool = setting(False, SECURITY, Switch(), "Listen beyond this machine without a key.")
    allowed_host: tuple[str, ...] = setting(
        (),
        SECURITY,
        Many(Text(max_chars=255), ","),
        "Further Host that requests may name; * is any.",
        "--allowed-hosts",
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        SECURITY,
        Many(_ORIGIN, ","),
        "Web pages' origins that may call, as https://chat.example; * is any.",
        "--allow-origins",
        ollama="OLLAMA_ORIGINS",
    )
    max_queued_requests: int = setting(
        512,
        LIMITS,
        Count(1, 10**6),
        "Requests that may wait for a place; further ones get 429.",
        "--max-queue",
        "--max-num-queued-reqs",
        ollama="OLLAMA_MAX_QUEUE",
    )
    max_queued_tokens: int = setting(1 << 20, LIMITS, Count(), "Prompt tokens that may wait; further requests get 429.")
    request_timeout_s: float = setting(
        -1.0,
        LIMITS,
        Duration(low=0.001, can_be_endless=True),
        "How long an answer may take; negative: as long as it takes.",
        name="request_timeout",
    )
    max_body_bytes: int = setting(32 << 20, LIMITS, Size(), "Largest body of a request.", name="max_body_size")
    body_timeout_s: float = setting(
        30.0, LIMITS, Duration(low=0.001), "How long a body may take to come.", name="body_timeout"
    )
    max_headers: int = setting(100, LIMITS, Count(1, 10_000), "Most headers of a request.", "--h11-max-header-count")
    max_header_bytes: int = setting(
        64 << 10, LIMITS, Size(), "All headers of a request.", "--h11-max-incomplete-event-size", name="max_header_size"
    )
    header_timeout_s: float = setting(
        30.0, LIMITS, Duration(low=0.001), "How long headers may take to come.", name="header_timeout"
    )
    send_timeout_s: float = setting(
        30.0, LIMITS, Duration(low=0.001), "How long a client may read nothing.", name="send_timeout"
    )
    sse_keep_alive_s: float = setting(
        5.0,
        LIMITS,
        Duration(low=0.001),
        "Tell clients of silent streams every so often that they are not forgotten.",
        "--sse-keep-alive-interval",
        name="sse_keep_alive",
    )
    timeout_keep_alive_s: float = setting(
        75.0, LIMITS, Duration(low=1), "Close connections idle for so long.", name="timeout_keep_alive"
    )
    response_role: str = setting("assistant", ANSWERS, Text(max_chars=64), "Role of answers in conversations.")
    enable_force_include_usage: bool = setting(
        False, ANSWERS, Switch(), "Tell usage at the end of every stream of OpenAI's API, asked for or not."
    )
    return_tokens_as_token_ids: bool = setting(
        False, ANSWERS, Switch(), "Write tokens of logprobs as token_id:N, as requests may ask with this name."
    )
    strict: bool = setting(False, ANSWERS, Switch(), "Refuse requests with unknown fields.")
    drain_timeout_s: float = setting(
        30.0,
        RUNNING,
        Duration(),
        "How long running answers may go on after SIGTERM.",
        "--shutdown-timeout",
        name="drain_timeout",
    )
    log_file: str | None = setting(None, RUNNING, Text(), "Write the log here, instead of to the standard output.")
    log_requests: bool = setting(
        True,
        RUNNING,
        Switch(),
        "Log a line of JSON for each request, without prompts, answers and keys.",
        "--enable-log-requests",
    )
    log_format: str = setting(
        "text", RUNNING, Choice(LOG_FORMATS), "How warnings and errors, of engines too, are written to stderr."
    )
    otlp_traces_endpoint: str | None = setting(
        None,
        RUNNING,
        Matching(
            r"https?://[^/?#\s]+(/[^?#\s]*)?", "an http or https URL such as http://localhost:4318/v1/traces", "URL"
        ),
        "Send a span of each request there by OTLP over HTTP; needs the extra otel.",
    )

    def __post_init__(self) -> None:
        ModelSettings.__post_init__(self)
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise InvalidRequestError("ssl_keyfile and ssl_certfile must be given together", param="ssl_keyfile")
        if self.ssl_certfile is None and (self.ssl_ca_certs or self.ssl_cert_reqs):
            raise InvalidRequestError("ssl_ca_certs and ssl_cert_reqs need ssl_certfile", param="ssl_ca_certs")
        self.http()

    def http(self) -> HttpSettings:
        """What speaking HTTP needs of them. Raises InvalidRequestError for keys that are none."""
        file = None if self.api_key_file is None else Path(self.api_key_file)
        keys = read_api_keys(self.api_key, file, frozenset({"infer"})) + read_api_keys(self.admin_api_key)
        log = os.devnull if not self.log_requests else self.log_file
        return HttpSettings(
            host=self.widest_host,
            port=self.port,
            api_keys=keys,
            is_insecure=self.insecure,
            allowed_hosts=self.allowed_host,
            allowed_origins=self.allowed_origins,
            is_strict=self.strict,
            response_role=self.response_role,
            max_header_bytes=self.max_header_bytes,
            max_headers=self.max_headers,
            header_timeout_s=self.header_timeout_s,
            max_body_bytes=self.max_body_bytes,
            body_timeout_s=self.body_timeout_s,
            max_queued_requests=self.max_queued_requests,
            max_queued_tokens=self.max_queued_tokens,
            request_timeout_s=None if self.request_timeout_s < 0 else self.request_timeout_s,
            keep_alive_interval_s=self.sse_keep_alive_s,
            send_timeout_s=self.send_timeout_s,
            log_path=None if log is None else Path(log),
            forces_usage=self.enable_force_include_usage,
            tells_token_ids=self.return_tokens_as_token_ids,
            otlp_traces_endpoint=self.otlp_traces_endpoint,
        )

    @property
    def widest_host(self) -> str:
        """Of the hosts listened on, one that other machines reach, if there is one."""
        hosts = ["/" if address.uds else address.host for address in self.addresses()]
        return next((host for host in hosts if not is_loopback(host)), hosts[0])

    def addresses(self) -> tuple[Address, ...]:
        """Where to listen."""
        ours = Address(uds=self.uds) if self.uds else Address(host=self.host, port=self.port)
        return (ours, ollama_address(self.ollama_host)) if self.ollama else (ours,)


@cache
def all_settings() -> Mapping[str, Setting]:
    """Each field's name and how it is set from outside, in the order of the help."""
    return {f.name: described(f) for f in fields(ServeSettings)}
