"""Keeps many streams from waking one by one: above a few, all wait for one shared tick. Knows no requests."""

from __future__ import annotations

import asyncio

FEW_STREAMS = 8
TICK_S = 0.02


class Pacer:
    """Streams enter and leave; those that have just been sent something wait here before they ask for more."""

    def __init__(self, tick_s: float = TICK_S) -> None:
        self.num_streams = 0
        self._tick_s = tick_s
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Returns at once for few streams, else with the next tick."""
        if self.num_streams <= FEW_STREAMS:
            return
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_later(self._tick_s, self._fire)
        future = loop.create_future()  # each its own: a cancelled waiter takes its future with it
        self._waiting.append(future)
        await future

    def _fire(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
