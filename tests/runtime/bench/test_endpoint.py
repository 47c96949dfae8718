"""The meter for servers, against one that speaks the protocol."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from support.completions_server import CompletionsServer, serving_completions
from tuili.errors import PeerError
from tuili.runtime.bench.peers.endpoint import Endpoint
from tuili.runtime.bench.workload import Workload


@pytest.fixture
def server() -> Iterator[CompletionsServer]:
    with serving_completions() as state:
        yield state


def endpoint(server: CompletionsServer, suffix: str = "", key: str | None = None) -> Endpoint:
    return Endpoint(server.url + suffix, None, key, random.Random(0))


def test_every_sequence_is_a_request_of_its_own(server: CompletionsServer) -> None:
    measurement = endpoint(server, key="secret").measure(Workload(num_seqs=3, prompt_len=8, output_len=5))
    assert measurement.trace is not None
    assert [len(times) for times in measurement.trace.token_times_s] == [6, 6, 6]
    assert measurement.trace.num_prompt_tokens == 3 * 16  # as the server counts them
    assert measurement.prefill_tokens_per_s is not None
    bodies = [body for _, _, body in server.requests]
    assert {path for path, _, _ in server.requests} == {"/v1/completions"}
    assert {key for _, key, _ in server.requests} == {"Bearer secret"}
    assert len({body["prompt"] for body in bodies}) == 3
    assert {(body["model"], body["max_tokens"], body["ignore_eos"]) for body in bodies} == {("served", 6, True)}


def test_tokens_that_share_an_event_share_its_time(server: CompletionsServer) -> None:
    server.tokens_per_event = 4
    trace = endpoint(server, "/v1/").measure(Workload(prompt_len=2, output_len=7)).trace
    assert trace is not None
    (times,) = trace.token_times_s
    assert len(times) == 8
    assert len(set(times)) == 2
    assert times == tuple(sorted(times))


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (["[DONE]"], "streamed no text"),
        (["nonsense"], "which is no JSON"),
        (['{"error": {"message": "out of memory"}}'], "out of memory"),
    ],
)
def test_broken_streams_are_errors(server: CompletionsServer, events: list[str], message: str) -> None:
    server.events = events
    with pytest.raises(PeerError, match=message):
        endpoint(server).measure(Workload(prompt_len=2, output_len=1))


def test_refusals_and_silence_are_errors(server: CompletionsServer) -> None:
    peer = endpoint(server)
    server.status = 503
    with pytest.raises(PeerError, match=r"answered 503: .*no room"):
        peer.measure(Workload(prompt_len=2, output_len=1))
    server.models = []
    with pytest.raises(PeerError, match="lists no model: name one with --peer-model"):
        endpoint(server)
    with pytest.raises(PeerError, match="failed, ConnectError"):
        Endpoint("http://127.0.0.1:1/v1", None, None, random.Random(0))
