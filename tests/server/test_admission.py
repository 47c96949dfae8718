"""The bounded queue and its turns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from support.gated_backend import GatedBackend
from support.plain_dialect import plain_dialect
from support.served import SmallPool, small_app
from support.small_model import small_model
from tuili.errors import EngineUnavailableError, QueueFullError
from tuili.server.admission import Admission, Seats
from tuili.server.api_keys import read_api_keys
from tuili.server.serving import Serving

SPOKEN = (plain_dialect(),)


def test_the_queue_is_bounded_by_requests_and_by_tokens() -> None:
    admission = Admission(max_queued_requests=2, max_queued_tokens=100)
    first, second = admission.enter(), admission.enter()
    with pytest.raises(QueueFullError, match="2 requests are waiting") as caught:
        admission.enter()
    assert 1 <= (caught.value.retry_after_s or 0) <= 60
    assert admission.has_room() is False
    first.take(1000)  # more than may wait, but nothing else does
    with pytest.raises(QueueFullError, match="1000 prompt tokens"):
        second.take(1)
    first.leave()
    first.leave()
    second.take(100)
    second.leave()
    assert (admission.num_queued, admission.num_queued_tokens, admission.num_refused) == (0, 0, 2)


async def test_keys_take_turns() -> None:
    seats, taken = Seats(max_num_seqs=2), []

    async def ask(key: str, number: int) -> None:
        await seats.take(key, 1)
        taken.append((key, number))

    await asyncio.gather(*(ask("greedy", n) for n in range(4)))  # twice as many as run at once
    waiting = [asyncio.create_task(ask("greedy", n)) for n in range(4, 8)]
    await asyncio.sleep(0)
    waiting += [asyncio.create_task(ask("modest", 0))]
    await asyncio.sleep(0)
    taken.clear()
    for _ in range(6):
        seats.give_back(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert ("modest", 0) in taken[:2]
    assert [n for key, n in taken if key == "greedy"] == sorted(n for key, n in taken if key == "greedy")
    for _ in range(3):
        seats.give_back(1)
    await asyncio.gather(*waiting)


async def test_places_are_taken_at_once_only_where_nobody_waits() -> None:
    seats = Seats(max_num_seqs=2)
    assert [seats.take_now(1), seats.take_now(9), seats.take_now(2), seats.take_now(1)] == [True, True, False, True]
    waiter = asyncio.create_task(seats.take("a", 2))
    await asyncio.sleep(0)
    seats.give_back(1)
    assert not seats.take_now(1)  # free, but another's turn
    seats.give_back(1)
    await asyncio.wait_for(waiter, 60)
    assert not seats.take_now(1)
    seats.give_back(9)
    assert seats.take_now(1)


async def test_of_a_key_the_lowest_priority_goes_first() -> None:
    """As in the engine; no priority goes before another key's turn."""
    seats, taken = Seats(max_num_seqs=1), []

    async def ask(key: str, priority: int) -> None:
        await seats.take(key, 1, priority)
        taken.append((key, priority))

    await asyncio.gather(ask("a", 0), ask("a", 0))
    asked = [("a", 5), ("a", 0), ("a", -1), ("b", 9), ("a", 0), ("a", -(2**63))]
    waiting = [asyncio.create_task(ask(*each)) for each in asked]
    await asyncio.sleep(0)
    taken.clear()
    for _ in range(len(asked) + 2):
        seats.give_back(1)
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert [priority for key, priority in taken if key == "a"] == [-(2**63), -1, 0, 0, 5]
    assert ("b", 9) in taken[:2]


async def test_a_request_of_a_lower_priority_waits_less() -> None:
    """Beyond those that the engine has."""
    backend = GatedBackend()
    async with small_app(pool=SmallPool(small_model(backend))) as (app, client):
        order: list[int] = []

        async def ask(priority: int) -> None:
            body = {"prompt": "abc", "max_tokens": 4, "priority": priority}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
            order.append(priority)

        others = [asyncio.create_task(ask(1)) for _ in range(40)]
        while app.state.serving.admission.num_queued < 40 - 8:  # the others are with the engine
            await asyncio.sleep(0.001)
        urgent = asyncio.create_task(ask(0))
        while app.state.serving.admission.num_queued < 41 - 8:
            await asyncio.sleep(0.001)
        backend.let()
        await asyncio.gather(*others, urgent)
        assert order.index(0) <= 16


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    seats = Seats(max_num_seqs=1)
    await seats.take("a", 1)
    await seats.take("a", 5)  # no more than there are
    waiters = [asyncio.create_task(seats.take("b", 1)) for _ in range(3)]
    await asyncio.sleep(0)
    waiters[1].cancel()
    await asyncio.sleep(0)
    seats.give_back(5)
    waiters[0].cancel()  # in the turn in which it is its
    await asyncio.wait(waiters)
    assert [waiter.cancelled() for waiter in waiters] == [True, True, False]
    seats.give_back(1)
    seats.give_back(1)
    assert seats._num_taken == 0
    assert not seats._waiting


async def test_several_who_give_up_together_leave_no_trace() -> None:
    seats = Seats(max_num_seqs=1)
    waiters = [asyncio.create_task(seats.take(key, 1)) for key in "aaabbb"]
    await asyncio.sleep(0)
    assert [waiter.done() for waiter in waiters[:2]] == [True, True]
    for waiter in waiters[2:]:
        waiter.cancel()
    seats.give_back(1)
    seats.give_back(1)
    await asyncio.wait(waiters)
    assert [waiter.cancelled() for waiter in waiters] == [False, False, True, True, True, True]
    assert (seats._num_taken, seats._waiting) == (0, {})


STEPS = strategies.lists(
    strategies.one_of(
        strategies.tuples(strategies.just("take"), strategies.sampled_from("abc"), strategies.integers(1, 4)),
        strategies.tuples(strategies.just("cancel"), strategies.integers(0, 20), strategies.integers(0, 1)),
        strategies.tuples(strategies.just("give_back"), strategies.integers(0, 20), strategies.integers(0, 1)),
    ),
    max_size=40,
)


@given(steps=STEPS, size=strategies.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_whatever_is_taken_given_up_and_given_back_the_count_is_right(steps: list[Any], size: int) -> None:
    """The last number of a cancel or give_back: whether the loop turns after it."""

    async def play() -> None:
        seats, tasks, held = Seats(size), [], []

        async def take(key: str, count: int) -> None:
            await seats.take(key, count)
            held.append(count)

        for kind, which, more in steps:
            if kind == "take":
                tasks.append(asyncio.create_task(take(which, more)))
            elif kind == "cancel" and tasks:
                tasks[which % len(tasks)].cancel()
            elif kind == "give_back" and held:
                seats.give_back(held.pop(which % len(held)))
            for _ in range(3 if kind == "take" or more else 0):
                await asyncio.sleep(0)
        for _ in range(4 * len(tasks) + 4):
            await asyncio.sleep(0)
            assert seats._num_taken <= 2 * size
            if held:
                seats.give_back(held.pop())
        assert all(task.done() for task in tasks)
        assert not any(task.exception() for task in tasks if not task.cancelled())
        assert (seats._num_taken, seats._waiting, held) == (0, {}, [])

    asyncio.run(play())


async def test_cutting_what_runs_and_what_waits_frees_all_and_tells_each() -> None:
    backend = GatedBackend()
    pool = SmallPool(small_model(backend))
    next(iter(pool.models.values())).max_num_seqs = 1
    async with small_app(spoken=SPOKEN, pool=pool) as (app, client):
        serving: Serving = app.state.serving
        body = {"prompts": ["abc"], "max_tokens": 2, "stream": True}
        tasks = [asyncio.create_task(client.post("/plain/generate", json=body)) for _ in range(5)]
        while len(serving.running()) < 5 or serving.admission.num_queued != 3:
            await asyncio.sleep(0.001)
        serving.cut(EngineUnavailableError("the server is shutting down"))
        answers = [response.text for response in await asyncio.wait_for(asyncio.gather(*tasks), 60)]
        assert answers == ['{"error":"engine_unavailable"}\n'] * 5
        await asyncio.wait_for(serving.idle(), 60)
        assert (serving.admission.num_queued, serving.admission.num_queued_tokens) == (0, 0)
        backend.let()
        assert (await client.post("/plain/generate", json=body)).text.count("at") == 2


async def test_tokens_of_a_list_of_prompts_wait_until_each_has_its_seat() -> None:
    backend = GatedBackend()
    pool = SmallPool(small_model(backend))
    next(iter(pool.models.values())).max_num_seqs = 1
    async with small_app(spoken=SPOKEN, pool=pool) as (app, client):
        admission = app.state.serving.admission
        body = {"prompts": ["abc"] * 5, "max_tokens": 2}
        task = asyncio.create_task(client.post("/plain/generate", json=body))
        while not backend.num_begun:
            await asyncio.sleep(0.001)
        assert (admission.num_queued, admission.num_queued_tokens) == (1, 3 * 3)  # 1 runs, 1 is with the engine
        backend.let()
        assert len((await task).json()) == 5
        assert (admission.num_queued, admission.num_queued_tokens) == (0, 0)


async def test_what_is_too_much_is_refused_at_once_and_the_rest_is_answered() -> None:
    """4 run, 4 more are with the engine, 3 may wait."""
    backend = GatedBackend()
    pool = SmallPool(small_model(backend))
    async with small_app(spoken=SPOKEN, pool=pool, max_queued_requests=3) as (_, client):
        body = {"prompts": ["abc"], "max_tokens": 2}
        tasks = [asyncio.create_task(client.post("/plain/generate", json=body)) for _ in range(20)]
        refused = []
        while len(refused) < 20 - 8 - 3:
            await asyncio.wait(tasks, timeout=0.01)
            refused = [task.result() for task in tasks if task.done()]
        assert {response.status_code for response in refused} == {429}
        assert all(1 <= int(response.headers["retry-after"]) <= 60 for response in refused)
        backend.let()
        answered = [task.result() for task in (await asyncio.wait(tasks))[0]]
        assert sum(response.status_code == 200 for response in answered) == 11


async def test_a_greedy_key_does_not_starve_another() -> None:
    keys = read_api_keys(["greedy-key", "modest-key"])
    backend = GatedBackend()
    async with small_app(spoken=SPOKEN, pool=SmallPool(small_model(backend)), api_keys=keys) as (app, client):
        order: list[str] = []

        async def ask(key: str) -> None:
            body = {"prompts": ["abc"], "max_tokens": 4}
            response = await client.post("/plain/generate", json=body, headers={"x-api-key": key})
            assert response.status_code == 200
            order.append(key)

        greedy = [asyncio.create_task(ask("greedy-key")) for _ in range(60)]
        while not backend.num_begun:
            await asyncio.sleep(0.001)
        modest = asyncio.create_task(ask("modest-key"))
        while app.state.serving.admission.num_queued < 61 - 8:  # the others are with the engine
            await asyncio.sleep(0.001)
        backend.let()
        await asyncio.gather(*greedy, modest)
        assert order.index("modest-key") <= 16  # the 8 with the engine, and its turn
