"""Many requests of all kinds: does a server keep anything of them?

    python -m benchmarks.serve.soak MODEL [--requests 10000] [--clients 32] [--save NAME]

Four of ten are streams, three blocking, two leave amid their stream, one is wrong in one of several ways. Memory that
is no file's is read after each 1/50 of the requests; its slope is that of a least-squares line over what comes after
the warm-up of 500 requests (a fifth, of fewer). Descriptors, threads, tasks of the event loop and free blocks of the
cache are compared between a moment of rest after the warm-up and one at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

import numpy as np
from benchmarks import machine
from benchmarks.serve.client import ask, begin, post, run
from benchmarks.serve.load import PATH
from benchmarks.serve.processes import Server, metric, tuili_server
from benchmarks.serve.prompts import asks

KINDS = ("stream",) * 4 + ("blocking",) * 3 + ("leaves",) * 2 + ("wrong",)
WRONG: tuple[tuple[int, Any], ...] = (  # the status each must be answered with
    (400, b'{"prompt": '),
    (400, {"prompt": "a", "temperature": -1}),
    (400, {"prompt": "a", "max_tokens": "many"}),
    (404, {"prompt": "a", "model": "no-such-model"}),
    (400, {"prompt": "word " * 5000}),
)
BLOCK_SIZE, LONG_PROMPT = 64, 960  # tokens
FLAGS = ("--max-num-seqs", "32", "--max-model-len", "1024", "--kv-cache-memory-bytes", "100000000")
REST_S = 30.0  # how long a server may take to come to rest


class Soak:
    """Clients that ask until enough has been asked."""

    def __init__(self, server: Server, num_requests: int, num_clients: int) -> None:
        self._server = server
        self._num_requests = num_requests
        self._num_clients = num_clients
        self._rng = random.Random(0)
        self._num_asked = 0
        self.outcomes: Counter[str] = Counter()
        self.memory: list[tuple[int, dict[str, int]]] = []  # (requests ended, KiB by process)

    async def run(self) -> dict[str, Any]:
        num_warm = min(500, self._num_requests // 5)
        await self._fill_cache()
        await self._until(num_warm)
        before = await self._at_rest()
        start_s = time.perf_counter()
        await self._until(self._num_requests)
        wall_s = time.perf_counter() - start_s
        after = await self._at_rest()
        samples = [(ended, kib) for ended, kib in self.memory if ended >= num_warm]
        counts = [ended for ended, _ in samples]
        slopes = {
            f"{name}_kib_per_request": round(float(np.polyfit(counts, [kib[name] for _, kib in samples], 1)[0]), 4)
            for name in samples[0][1]
        }
        return {
            "requests": self._num_requests,
            "requests_per_s": round((self._num_requests - num_warm) / wall_s, 1),
            "outcomes": dict(sorted(self.outcomes.items())),
            **slopes,
            "own_kib": {
                name: [kib[name] for _, kib in samples[:: max(len(samples) // 10, 1)]] for name in samples[0][1]
            },
            "at_rest_before": before,
            "at_rest_after": after,
        }

    async def _fill_cache(self) -> None:
        """Uses every block of the cache as a whole once: the system counts its pages from then on."""
        num_blocks = int(await metric(self._server, "tuili:kv_blocks_total"))
        for number in range(num_blocks * BLOCK_SIZE // LONG_PROMPT + 2):
            body = {"prompt": [1 + number] + [7] * (LONG_PROMPT - 1), "max_tokens": 1}
            reply = await ask(self._server.address, post(PATH, body))
            if reply.status != 200:
                raise RuntimeError(f"not answered: {reply.body!r}")

    async def _until(self, num_requests: int) -> None:
        async def client() -> None:
            while self._num_asked < num_requests:
                self._num_asked += 1
                outcome = await self._one(self._rng.choice(KINDS), self._num_asked)
                self.outcomes[outcome] += 1
                if self.outcomes.total() % max(self._num_requests // 50, 1) == 0:
                    self.memory.append((self.outcomes.total(), self._server.own_kib()))

        await asyncio.gather(*(client() for _ in range(self._num_clients)))

    async def _one(self, kind: str, number: int) -> str:
        """What became of one request: its kind, and how it went wrong if it did."""
        if kind == "wrong":
            status, body = self._rng.choice(WRONG)
            reply = await ask(self._server.address, post(PATH, body))
            return kind if reply.status == status else f"wrong: {reply.status} instead of {status}"
        (one,) = asks(1, seed=number, prompt_words=(2, 8), max_tokens=(2, 8), temperature=0.8)
        if kind == "stream":
            reply = await ask(self._server.address, post(PATH, one.body()))
            return kind if reply.is_whole and reply.num_tokens == one.max_tokens else f"stream: failed {reply.status}"
        if kind == "blocking":
            body = {**one.body(), "stream": False, "stream_options": None}
            reply = await ask(self._server.address, post(PATH, body))
            is_right = reply.status == 200 and json.loads(reply.body)["usage"]["completion_tokens"] == one.max_tokens
            return kind if is_right else f"blocking: failed {reply.status}"
        exchange = await begin(self._server.address, post(PATH, {**one.body(), "max_tokens": 200}))
        if self._rng.random() < 0.5:
            await exchange.begun
        exchange.leave()
        await exchange.ended
        return kind

    async def _at_rest(self) -> dict[str, float]:
        """Counts once nothing runs; the engine's are up to two seconds old."""
        until_s = time.monotonic() + REST_S
        while time.monotonic() < until_s:
            await asyncio.sleep(2.5)
            running = await metric(self._server, "tuili:requests_running")
            held = await self._held_blocks()
            if not running and not held:
                break
        counts: dict[str, float] = {"running": running, "held_blocks": held, **self._server.handles()}
        return counts | {"tasks": await metric(self._server, "tuili:event_loop_tasks")}

    async def _held_blocks(self) -> float:
        total = await metric(self._server, "tuili:kv_blocks_total")
        return total - await metric(self._server, "tuili:kv_blocks_free")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    with tuili_server(arguments.model, *FLAGS) as server:
        row = run(Soak(server, arguments.requests, arguments.clients).run())
    print(json.dumps(row))
    if arguments.save:
        print(machine.save(arguments.save, {k: str(v) for k, v in vars(arguments).items()}, [row]))


if __name__ == "__main__":
    main()
