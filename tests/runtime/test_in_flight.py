"""Many requests over one loop: a step's deltas come together, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from support.answers import ask, make_engine
from support.fake_backend import solo
from tuili.engine.loop import EngineLoop
from tuili.errors import ContextLengthError
from tuili.runtime.api.llm import LLM
from tuili.runtime.front.answer import Answer
from tuili.runtime.front.in_flight import WAITING_SHARE, Inbox, InFlight
from tuili.runtime.metrics import RequestMeter
from tuili.types import Done, Failed, PromptTokens, TextDelta, TokenDelta, TokenRequest


def _flight(loop: EngineLoop, requests: Iterable[TokenRequest], *, goes_on: bool = False) -> InFlight:
    meter = RequestMeter()
    front = SimpleNamespace(
        token_request=lambda request: (PromptTokens(request.prompt_token_ids, None), request),
        new_answer=lambda request, prompt, token_request: Answer(None, token_request, meter),  # type: ignore[arg-type]
    )
    model: Any = SimpleNamespace(loop=loop, front=front, max_num_seqs=2)
    return InFlight(model, requests, goes_on=goes_on)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("n", [1, 4])
def test_only_a_few_requests_are_taken_from_the_stream_at_a_time(n: int) -> None:
    """What lives beside the results does not grow with the number of requests."""
    engine = make_engine(max_num_seqs=2)
    loop = EngineLoop(engine)
    num_taken = num_done = 0
    most_taken = most_live = 0

    def stream() -> Iterator[TokenRequest]:
        nonlocal num_taken
        for i in range(600):
            num_taken += 1
            sampling = {"temperature": 1.0 if n > 1 else 0.0, "n": n, "max_tokens": 1 + i % 3}
            yield ask(f"r{i}", [1 + i % 50, 2], detokenize=False, **sampling)

    flight = _flight(loop, stream())
    for _, event in flight.events():
        num_done += isinstance(event, Done)
        most_taken = max(most_taken, num_taken - num_done)
        most_live = max(most_live, len(flight._answers), len(engine._live))
    limit = -(-WAITING_SHARE * 2 // n)
    assert num_done == num_taken == 600
    assert limit - 1 <= most_taken <= limit + 1
    assert limit - 1 <= most_live <= limit
    loop.close()


def test_a_refused_request_raises_or_is_told_while_the_others_go_on() -> None:
    loop = EngineLoop(make_engine(max_num_seqs=2, max_model_len=64))
    requests = [ask(f"r{i}", [1, 2], max_tokens=2, detokenize=False) for i in range(30)]
    too_long = [ask(f"bad{i}", [1] * 100, max_tokens=2, detokenize=False) for i in range(20)]
    mixed = [*too_long, *requests, *too_long]
    endings = {i: event for i, event in _flight(loop, mixed, goes_on=True).events() if isinstance(event, Done | Failed)}
    assert [isinstance(endings[i], Done) for i in range(70)] == [False] * 20 + [True] * 30 + [False] * 20
    assert isinstance(endings[0], Failed)
    assert isinstance(endings[0].error, ContextLengthError)
    with pytest.raises(ContextLengthError):
        list(_flight(loop, mixed).events())
    loop.close()


def test_llm_makes_requests_as_their_turn_comes() -> None:
    """100,000 prompts are a list of the caller's; what is made of them lives as long as it is worked on."""
    loop = EngineLoop(make_engine(max_num_seqs=2))
    made: list[int] = []
    model = _flight(loop, [])._model

    def token_request(request: Any) -> tuple[PromptTokens, TokenRequest]:
        made.append(len(made))
        ids = request.prompt_token_ids
        return PromptTokens(ids, None), ask(request.request_id, ids, max_tokens=2, detokenize=False)

    def run(requests: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        done = 0
        for index, event in InFlight(served, requests).events():
            done += isinstance(event, Done)
            assert len(made) - done <= WAITING_SHARE * 2
            yield index, event

    front = SimpleNamespace(**(vars(model.front) | {"token_request": token_request}))
    served: Any = SimpleNamespace(**(vars(model) | {"front": front}))
    llm = object.__new__(LLM)
    seeds = SimpleNamespace(getrandbits=lambda _: 7)
    vars(llm).update(_seeds=seeds, _pipeline=SimpleNamespace(run=run), _default_sampling={})
    outputs = llm.generate([[1 + i % 50, 2] for i in range(300)], use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [[1 + i % 50, 2] for i in range(300)]
    assert all(output.finished for output in outputs)
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
