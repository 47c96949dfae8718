"""`tuili run` over a running server: when it is used, what it is asked, and that the manners are the same."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

from support.fake_backend import FakeBackend
from support.fake_pipeline import FakePipeline
from support.local_server import serving_handler
from support.served import Listening, SmallPool, listening
from support.small_model import small_model
from tuili.cli.chat.chat import Chat
from tuili.cli.chat.conversation import Conversation
from tuili.cli.remote import running_server, server_address
from tuili.cli.remote.remote_model import RemoteModel, open_remote_model
from tuili.cli.remote.server_address import (
    ServerAddress,
    is_listened_on,
    likely_addresses,
    named_address,
    parse_address,
)
from tuili.cli.remote.server_client import ServerClient
from tuili.errors import ContextLengthError, EngineUnavailableError, InvalidRequestError
from tuili.server.api_keys import read_api_keys
from tuili.types import Done, Finished, GenerateRequest, SamplingParams, TextDelta

from .conftest import Cli

ANSWER = ("--max-tokens", "4", "--temperature", "0", "--ignore-eos")


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[Listening]:
    """Model "small", whose file is said to be SmolLM2's."""
    with listening(pool=SmallPool(small_model(FakeBackend()), path=smollm2_gguf)) as server:
        yield server


@pytest.fixture
def found(server: Listening, monkeypatch: pytest.MonkeyPatch) -> Listening:
    """The server runs where one is looked for."""
    address = ServerAddress("http", server.host, server.port)
    monkeypatch.setattr(running_server, "likely_addresses", lambda _: [address])
    return server


@pytest.fixture
def locked(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    """It runs there too, and wants a key."""
    pool = SmallPool(small_model(FakeBackend()), path=smollm2_gguf)
    with listening(pool=pool, api_keys=read_api_keys(("a-secret",), None)) as server:
        address = ServerAddress("http", server.host, server.port)
        monkeypatch.setattr(running_server, "likely_addresses", lambda _: [address])
        yield server


def test_the_server_that_is_named_answers(cli: Cli, server: Listening) -> None:
    outcome = cli("run", "--url", server.url, "--model", "small", "--verbose", *ANSWER, "hi")
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.strip()) == 4
    lines = outcome.err.splitlines()
    assert lines[0] == f"server      {server.url}, model small"
    assert lines[3].startswith("generation  4 tokens, ")
    assert lines[5] == "ended by    length"
    assert lines[6].startswith("sampling    temperature 0.0 (request), ")


def test_the_answer_is_the_one_of_a_model_loaded_here(cli: Cli, server: Listening) -> None:
    """Both sample alike: greedy, drawn, and completed without a template up to the end of the context."""
    with small_model(FakeBackend()) as pipeline:
        for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3, "top_k": 5, "logit_bias": {7: 1.5}}):
            params = SamplingParams(max_tokens=9, **sampling)
            request = GenerateRequest(request_id="r", sampling=params, messages=({"role": "user", "content": "hi"},))
            assert _text(_remote(server), request) == _text(pipeline, request) != ""
        raw = GenerateRequest(
            request_id="r", sampling=SamplingParams(max_tokens=None, ignore_eos=True, temperature=0), prompt="abc"
        )
        assert _text(_remote(server), raw) == _text(pipeline, raw)
        assert len(_text(pipeline, raw)) > 100


def test_a_server_with_the_model_is_used_unasked(cli: Cli, found: Listening, pipeline: FakePipeline) -> None:
    outcome = cli("run", "--model", "small", "--verbose", *ANSWER, "hi")
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith(f"server      {found.url}, model small\n")
    assert pipeline.requests == []


def test_names_that_only_the_server_has_are_names(cli: Cli, found: Listening, pipeline: FakePipeline) -> None:
    outcome = cli("run", "small", "hi", "--verbose", *ANSWER)
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith(f"server      {found.url}, model small\n")
    assert pipeline.requests == []


@pytest.mark.parametrize(
    "flags",
    [
        ("--local",),
        ("--num-threads", "1"),
        ("--quantize", "q8_0"),
        ("--max-model-len", "64"),
        ("--backend", "reference"),
        ("--kv-cache-dtype", "int8"),
        ("--speculative-config", '{"num_speculative_tokens": 3}'),
    ],
)
def test_flags_of_loading_mean_here(
    cli: Cli, found: Listening, pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr("tuili.cli.run_session.fetch_if_missing", lambda *_: None)
    assert cli("run", "--model", "small", *flags, "hi").out == "echo hi\n"
    monkeypatch.setenv("TUILI_HOST", found.url)
    assert cli("run", "--model", "small", *flags, "hi").out == "echo hi\n"
    refused = cli("run", "--url", found.url, "--model", "small", *flags, "hi")
    assert (refused.code, refused.err) == (
        2,
        "error: url has no place with local, or with flags of how to load a model\n",
    )


def test_a_model_that_the_server_has_not_is_loaded_here(cli: Cli, found: Listening, pipeline: FakePipeline) -> None:
    assert cli("run", "m.gguf", "hi").out == "echo hi\n"


def test_a_named_server_decides(
    cli: Cli, server: Listening, pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUILI_HOST", f"{server.host}:{server.port}")
    assert len(cli("run", "small", *ANSWER, "hi").out.strip()) == 4  # a name only the server knows
    assert len(cli("run", *ANSWER, "hi").out.strip()) == 4  # its first model, where none is named
    missing = cli("run", "other:tag", "hi")
    assert (missing.code, missing.err) == (
        1,
        f"error: the server at {server.url} has no model 'other:tag'; --local runs one here\n",
    )
    monkeypatch.setenv("TUILI_HOST", "127.0.0.1:9")
    gone = cli("run", "m.gguf", "hi")
    assert (gone.code, gone.err) == (
        1,
        "error: no tuili server answers at http://127.0.0.1:9, which TUILI_HOST names\n",
    )
    assert cli("run", "--local", "m.gguf", "hi").out == "echo hi\n"


class _Other(BaseHTTPRequestHandler):
    """Another program with the same routes."""

    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["authorization"]))
        body = json.dumps({"version": "1.0", "data": [{"id": "m.gguf"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_another_program_gets_neither_prompts_nor_keys(
    cli: Cli, pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUILI_API_KEY", "a-secret")
    with serving_handler(_Other) as other:
        monkeypatch.setattr(running_server, "likely_addresses", lambda _: [parse_address(other, "url")])
        assert cli("run", "m.gguf", "hi").out == "echo hi\n"
        assert cli("run", "--url", other, "m.gguf", "hi").err.startswith("error: no tuili server answers at ")
    assert set(_Other.seen) == {("/version", None)}


def test_a_server_that_wants_a_key_gets_it_or_is_left_alone(
    cli: Cli, locked: Listening, pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = f"the server at {locked.url} wants an API key: put it into TUILI_API_KEY"
    outcome = cli("run", "m.gguf", "hi")
    assert (outcome.out, outcome.err) == ("echo hi\n", f"note: {wanted}; it is left alone\n")
    assert cli("run", "--url", locked.url, "hi").err == f"error: {wanted}\n"
    monkeypatch.setenv("TUILI_API_KEY", "a-wrong-one")
    assert cli("run", "--url", locked.url, "hi").err == "error: the API key is not known here\n"
    outcome = cli("run", "m.gguf", "hi")
    told = f"note: the server at {locked.url}: the API key is not known here; it is left alone\n"
    assert (outcome.out, outcome.err) == ("echo hi\n", told)
    monkeypatch.setenv("TUILI_API_KEY", "a-secret")
    assert len(cli("run", "--url", locked.url, *ANSWER, "hi").out.strip()) == 4


def _remote(server: Listening) -> RemoteModel:
    return open_remote_model(ServerClient(ServerAddress("http", server.host, server.port)), "small")


def _text(model: Any, request: GenerateRequest) -> str:
    return "".join(event.text for event in model.stream(request) if isinstance(event, TextDelta))


def test_closing_a_stream_ends_the_request(smollm2_gguf: Path) -> None:
    backend = FakeBackend()
    may_go_on, execute = threading.Event(), backend.execute

    def slow(batch: Any) -> Any:
        may_go_on.wait(0.01)
        return execute(batch)

    backend.execute = slow  # type: ignore[method-assign]
    pool = SmallPool(small_model(backend, max_model_len=8192), path=smollm2_gguf)
    with listening(pool=pool) as server:
        params = SamplingParams(max_tokens=8000, ignore_eos=True)
        request = GenerateRequest(request_id="r", sampling=params, messages=({"role": "user", "content": "hi"},))
        events = _remote(server).stream(request)
        assert isinstance(next(events), TextDelta)
        assert len(server.app.state.serving.running()) == 1
        events.close()  # type: ignore[attr-defined]
        for _ in range(20_000):
            if not server.app.state.serving.running():
                break
            threading.Event().wait(0.01)
        assert server.app.state.serving.running() == ()
        may_go_on.set()


def test_a_chat_goes_on_behind_an_error(server: Listening) -> None:
    out = io.StringIO()
    remote = _remote(server)
    chat = Chat(remote, Conversation(sampling={"max_tokens": 3, "ignore_eos": True}), out, place=remote.place)
    chat.answer("one")
    with pytest.raises(ContextLengthError):
        chat.answer("long " * 100)
    chat.answer("two")
    assert [message["role"] for message in chat.conversation.messages] == ["user", "assistant"] * 2


class _Told(ServerClient):
    """A server of one stream."""

    def __init__(self, *chunks: dict[str, Any]) -> None:
        super().__init__(ServerAddress("http", "127.0.0.1", 1))
        self.chunks, self.bodies = chunks, list[dict[str, Any]]()

    def stream(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        self.bodies.append(body)
        yield from self.chunks


def _model(client: ServerClient, **defaults: Any) -> RemoteModel:
    return RemoteModel(
        client=client, name="m", load_s=0, max_model_len=9, default_sampling=defaults, chat_template=None, spec=None,
        license_text="",
    )  # fmt: skip


def _delta(finish_reason: str | None = None, **delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


_USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
    "timings": {"queue_ms": 100.0, "prompt_ms": 400.0, "predicted_ms": 2000.0},
}
_ASKED = GenerateRequest(request_id="r", sampling=SamplingParams(), messages=({"role": "user", "content": "hi"},))


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        (
            [_delta(reasoning_content="so"), _delta(reasoning_content="?"), _delta(content="yes")],
            "<think>so?</think>yes",
        ),
        ([_delta(reasoning_content="so")], "<think>so</think>"),
        ([_delta(content="yes")], "yes"),
    ],
)
def test_thinking_is_told_in_the_text(chunks: list[dict[str, Any]], text: str) -> None:
    events = list(_model(_Told(*chunks, _delta("stop"), _USAGE)).stream(_ASKED))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == text
    finished, done = events[-2:]
    assert finished == Finished(index=0, finish_reason="stop")
    assert isinstance(done, Done)
    assert (done.usage.num_prompt_tokens, done.usage.num_cached_tokens, done.usage.num_output_tokens) == (5, 2, 3)
    assert (done.timings.time_to_first_token_s, done.timings.decode_s) == (0.5, 2.0)


def test_what_the_model_would_decide_otherwise_is_said() -> None:
    told = _Told(_delta("stop"), _USAGE)
    params = SamplingParams(temperature=1.0, top_k=7, stop=["a"], max_tokens=None, logit_bias={5: 1.0})
    request = GenerateRequest(request_id="r", sampling=params, messages=_ASKED.messages)
    list(_model(told, temperature=0.6).stream(request))
    body = told.bodies[0]
    sampling = {name: body[name] for name in body.keys() - {"model", "stream", "stream_options", "messages"}}
    assert sampling == {"temperature": 1.0, "top_k": 7, "stop": ["a"], "logit_bias": {"5": 1.0}}
    json.dumps(body)


def test_a_stream_without_an_end_is_an_error(server: Listening) -> None:
    class Cut(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'data: {"choices": []}\n\n')

        def log_message(self, *_: Any) -> None:
            pass

    with serving_handler(Cut) as cut:
        stream = ServerClient(parse_address(cut, "url")).stream("/v1/x", {})
        assert next(stream) == {"choices": []}
        with pytest.raises(EngineUnavailableError, match="ended its answer in the middle"):
            next(stream)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("example.org", "http://example.org:8000"),
        ("http://example.org", "http://example.org:80"),
        ("https://example.org/llm/v1/", "https://example.org:443/llm"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        (":9000", "http://127.0.0.1:9000"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("[::]", "http://127.0.0.1:8000"),
    ],
)
def test_addresses_are_read_as_people_write_them(text: str, address: str) -> None:
    assert str(parse_address(text, "url")) == address


@pytest.mark.parametrize("text", ["", " ", "a b", "ftp://x", "x:0", "x:70000", "x:1:2", "http://u:p@x", "[::1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="must be a server's address such as"):
        parse_address(text, "url")


def test_who_is_asked_is_the_most_definite() -> None:
    assert named_address(None, {"OLLAMA_HOST": "x"}) is None
    assert str(named_address(None, {"TUILI_HOST": "a"})) == "http://a:8000"
    assert str(named_address("b:1", {"TUILI_HOST": "a"})) == "http://b:1"
    ours = ServerAddress("http", "127.0.0.1", 8000)
    assert likely_addresses({}) == [ours, ServerAddress("http", "127.0.0.1", 11434)]
    assert likely_addresses({"OLLAMA_HOST": "x"}) == [ours, ServerAddress("http", "x", 11434)]
    assert likely_addresses({"OLLAMA_HOST": "a b"}) == [ours]


def test_looking_for_a_server_imports_nothing_slow(server: Listening) -> None:
    assert is_listened_on(ServerAddress("http", server.host, server.port))
    assert not is_listened_on(ServerAddress("http", "127.0.0.1", 9))
    assert not is_listened_on(ServerAddress("http", "::1", 9))
    assert server_address.__dict__.keys().isdisjoint({"socket", "http", "httpx", "ssl"})
