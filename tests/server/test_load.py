"""Many at once over real sockets: each gets what it would get alone, what is too much is told at once, nothing stays.

The same at full size, with real models: benchmarks/serve/.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from support.gated_backend import GatedBackend
from support.served import Listening, SmallPool, listening
from support.small_model import small_model

NUM_STREAMS, NUM_TURNS = 64, 4
LETTERS = "abcdefghijklmnop"
WRONG: dict[str, Any] = {"prompt": "abc", "temperature": -1}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: str
    text: str  # of a stream with its chunks' frames


def ask(number: int, **fields: Any) -> dict[str, Any]:
    """One of many requests that have little in common."""
    rng = random.Random(number)
    prompt = "".join(rng.choices(LETTERS, k=rng.randint(1, 40)))
    drawn = {"seed": number, "temperature": rng.choice([0.0, 0.8, 1.5]), "ignore_eos": True}
    body = {"prompt": prompt, "max_tokens": rng.randint(2, 12), "stream": True, "return_token_ids": True}
    return {**body, **drawn, **fields}


async def post(server: Listening, body: dict[str, Any], *, leaves: bool = False) -> Reply:
    """Over a connection of its own; who leaves does so with the first bytes of the answer."""
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(content)}\r\n"
    )
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
        received = await (reader.read(100) if leaves else reader.read())
    finally:
        writer.close()
        await writer.wait_closed()
    headers, _, text = received.decode().partition("\r\n\r\n")
    return Reply(int(headers.split()[1]), headers, text)


def token_ids(reply: Reply) -> list[int]:
    """Of a stream that ended as it should."""
    assert reply.status == 200, reply
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return [token for choice in choices for token in choice.get("token_ids") or ()]


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


async def test_sixty_four_streams_say_what_each_says_alone() -> None:
    with listening() as server:
        alone = [token_ids(await post(server, ask(number))) for number in range(NUM_STREAMS)]

        async def reader(number: int) -> None:
            for turn in range(NUM_TURNS):
                one = (number + 17 * turn) % NUM_STREAMS
                assert token_ids(await post(server, ask(one))) == alone[one]

        await asyncio.gather(*map(reader, range(NUM_STREAMS)))
        assert all(len(ids) == ask(number)["max_tokens"] for number, ids in enumerate(alone))
        assert_nothing_stays(server)


async def test_a_burst_of_ten_times_what_fits_is_refused_while_the_engine_stands_still() -> None:
    """4 run, 4 more are with the engine, 8 wait: 16 of 160."""
    backend = GatedBackend()
    with listening(pool=SmallPool(small_model(backend)), max_queued_requests=8) as server:
        waiting = {asyncio.create_task(post(server, ask(number))) for number in range(160)}
        refused: list[Reply] = []
        while len(refused) < 160 - 16:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            refused += [task.result() for task in done]
        assert {reply.status for reply in refused} == {429}
        assert all("retry-after: " in reply.headers for reply in refused)
        backend.let()
        for reply in await asyncio.gather(*waiting):
            assert token_ids(reply)
        assert server.app.state.serving.admission.num_refused == 144
        assert_nothing_stays(server)


async def test_a_thousand_requests_leave_nothing_behind() -> None:
    outcomes: Counter[str] = Counter()
    with listening() as server:
        await soak(server, 100, outcomes)
        before = held(server)
        await soak(server, 900, outcomes)
        until(lambda: all(now <= before[kind] for kind, now in held(server).items()))
        assert_nothing_stays(server)
        assert set(outcomes) == {"stream", "blocking", "leaves", "wrong"}
        assert outcomes.total() == 1000


async def soak(server: Listening, count: int, outcomes: Counter[str]) -> None:
    """So many requests of all kinds, by 16 clients."""
    rng = random.Random(count)
    kinds = iter(rng.choices(["stream", "blocking", "leaves", "wrong"], [4, 3, 2, 1], k=count))

    async def asking() -> None:
        for kind in kinds:
            await one(server, kind, ask(rng.randrange(1000), max_tokens=4))
            outcomes[kind] += 1

    await asyncio.gather(*(asking() for _ in range(16)))


async def one(server: Listening, kind: str, body: dict[str, Any]) -> None:
    if kind == "stream":
        assert len(token_ids(await post(server, body))) == 4
    elif kind == "blocking":
        reply = await post(server, body | {"stream": False})
        assert json.loads(reply.text)["usage"]["completion_tokens"] == 4
    elif kind == "leaves":
        assert (await post(server, body | {"max_tokens": 80}, leaves=True)).status == 200
    else:
        assert (await post(server, WRONG)).status == 400


def held(server: Listening) -> dict[str, int]:
    """What this process, which is the server's, has open, and what runs in the server's event loop."""
    gc.collect()  # what tests before this one have left
    tasks = next(
        float(line.split()[1])
        for line in httpx.get(f"{server.url}/metrics").text.splitlines()
        if line.startswith("tuili:event_loop_tasks ")
    )
    return {"descriptors": len(list(Path("/proc/self/fd").iterdir())), "tasks": int(tasks)}


def assert_nothing_stays(server: Listening) -> None:
    """No place, token or request is held once all have been answered."""
    serving = server.app.state.serving
    until(lambda: not serving.running())
    server.wait_idle()
    assert (serving.admission.num_queued, serving.admission.num_queued_tokens) == (0, 0)
    assert serving._seats == {}
    assert serving.pacer.num_streams == 0
    assert all(model.num_active == 0 for model in server.pool.loaded())
