"""Many requests over one loop: a step's deltas come together, and nothing stays behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from support.answers import ask, make_engine
from support.fake_backend import solo
from tuili.engine.loop import EngineLoop
from tuili.runtime.in_flight import Inbox, InFlight
from tuili.types import Done, PromptTokens, TextDelta, TokenDelta, TokenRequest


def _flight(loop: EngineLoop, requests: list[TokenRequest]) -> InFlight:
    model: Any = SimpleNamespace(loop=loop, tokenizer=None, max_num_seqs=2)
    return InFlight(model, [(PromptTokens(request.prompt_token_ids, None), request) for request in requests])


def _requests(count: int) -> list[TokenRequest]:
    return [ask(f"r{i}", [i + 1, 2, 3], max_tokens=4 + i, detokenize=False) for i in range(count)]


def test_every_request_is_answered_and_the_loop_forgets_the_reader() -> None:
    loop = EngineLoop(make_engine(max_num_seqs=2))
    requests = _requests(20)
    tokens: list[list[int]] = [[] for _ in requests]
    num_done = 0
    for index, event in _flight(loop, requests).events():
        assert len(loop._listeners) == 1
        if isinstance(event, TextDelta):
            tokens[index] += event.token_ids
        num_done += isinstance(event, Done)
    assert num_done == 20
    assert tokens == [solo(request, 0, 128)[0] for request in requests]
    assert loop._listeners == ()
    loop.close()


def test_closing_early_aborts_and_the_loop_forgets_the_reader() -> None:
    loop = EngineLoop(make_engine(max_num_seqs=2))
    events = _flight(loop, _requests(5)).events()
    assert isinstance(next(events)[1], PromptTokens)
    events.close()
    assert loop._listeners == ()
    loop.close()
    assert not loop._engine.has_work()


def test_the_deltas_of_a_step_come_with_one_wake_up() -> None:
    inbox = Inbox()
    sinks = [inbox.sink(index) for index in range(3)]
    steps = [[TokenDelta(request_id="r", index=0, token_ids=(t,)) for _ in sinks] for t in range(2)]
    for deltas in steps:
        for sink, delta in zip(sinks, deltas, strict=True):
            sink(delta)
        inbox.flush()
        inbox.flush()  # nothing new: nobody is woken
    assert [inbox.get() for _ in steps] == [list(enumerate(deltas)) for deltas in steps]
    assert inbox._steps.empty()
