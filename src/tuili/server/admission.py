"""Who may wait, and whose turn it is: a queue bounded by requests and tokens, shared fairly among keys.

An engine gets enough sequences to stay busy; the rest waits here, where keys take turns. Knows no HTTP and no text.
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import insort
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import count as counting

from tuili.errors import QueueFullError

_MAX_WAIT_S = 60
_RATE_MEMORY_S = 10.0


class Admission:
    """Bounds what waits. A request enters, says how many tokens it brings, waits for its seat, and leaves."""

    def __init__(self, *, max_queued_requests: int, max_queued_tokens: int) -> None:
        self._max_requests = max_queued_requests
        self._max_tokens = max_queued_tokens
        self._rate = _Rate()
        self.num_queued = 0
        self.num_queued_tokens = 0
        self.num_refused = 0

    def has_room(self, num_ahead: int = 0) -> bool:
        """Whether one more may wait, behind those who do and num_ahead who have been let in to enter."""
        return self.num_queued + num_ahead < self._max_requests

    def check_room(self, num_ahead: int = 0) -> None:
        """Raises QueueFullError, with the time after which it is worth trying again."""
        if not self.has_room(num_ahead):
            found = f"{self.num_queued + num_ahead} requests are waiting, which is as many as may"
            raise self._full(found, num_ahead)

    def enter(self) -> Ticket:
        """Raises QueueFullError."""
        self.check_room()
        self.num_queued += 1
        return Ticket(self)

    def add_tokens(self, count: int) -> None:
        """Raises QueueFullError unless nothing else waits, or there is room for so many more."""
        if self.num_queued_tokens and self.num_queued_tokens + count > self._max_tokens:
            raise self._full(f"{self.num_queued_tokens} prompt tokens are waiting and at most {self._max_tokens} may")
        self.num_queued_tokens += count

    def note_finished(self) -> None:
        """A request has ended: estimates of waiting times live on it."""
        self._rate.add()

    def fullness(self, num_ahead: int = 0) -> tuple[int, float]:
        """What check_room tells where there is no room: how many wait, and the seconds until they have been taken, as
        things went lately: whole ones.
        """
        num_waiting = self.num_queued + num_ahead
        return num_waiting, float(min(max(math.ceil(num_waiting / max(self._rate.per_second(), 1e-3)), 1), _MAX_WAIT_S))

    def _full(self, found: str, num_ahead: int = 0) -> QueueFullError:
        self.num_refused += 1
        wait_s = self.fullness(num_ahead)[1]
        return QueueFullError(f"{found}; try again in about {wait_s:.0f} s", retry_after_s=wait_s)


@dataclass(slots=True)
class Ticket:
    """One request's place in the queue, until it is taken or gives up."""

    admission: Admission
    num_tokens: int = 0
    is_queued: bool = True

    def take(self, num_tokens: int) -> None:
        """Says how long its prompts are. Raises QueueFullError."""
        self.admission.add_tokens(num_tokens)
        self.num_tokens += num_tokens

    def seat(self, num_tokens: int) -> None:
        """One of its prompts, of so many tokens, waits no longer; with the last one it leaves."""
        if self.is_queued:
            self.num_tokens -= num_tokens
            self.admission.num_queued_tokens -= num_tokens
            if not self.num_tokens:
                self.leave()

    def leave(self) -> None:
        """It waits no longer. Doing it twice does no harm."""
        if self.is_queued:
            self.is_queued = False
            self.admission.num_queued -= 1
            self.admission.num_queued_tokens -= self.num_tokens


class Seats:
    """Places for sequences in one engine. Keys take turns; within a key the lowest priority goes first, then who came
    first.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self.num_users = 0  # requests that hold on to this object
        self._num_taken = 0
        self._waiting: OrderedDict[str, list[_Waiter]] = OrderedDict()  # by key, in the order of their turns
        self._arrivals = counting()

    def take_now(self, count: int) -> bool:
        """Takes `count` places, as `take` would, if nobody waits for any and they are free; whether it did."""
        count = min(count, self._max_num_seqs)
        if self._waiting or count > self._room():
            return False
        self._num_taken += count
        return True

    async def take(self, key_id: str, count: int, priority: int = 0) -> None:
        """Waits for `count` places: as many as there are at most, so that everything is taken some time."""
        count = min(count, self._max_num_seqs)
        waiter = _Waiter(count, asyncio.get_running_loop().create_future(), (-priority, -next(self._arrivals)))
        insort(self._waiting.setdefault(key_id, []), waiter, key=lambda waiting: waiting.turn)
        self._hand_out()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            self._give_up(key_id, waiter)
            raise

    def give_back(self, count: int) -> None:
        self._num_taken -= min(count, self._max_num_seqs)
        self._hand_out()

    def _room(self) -> int:
        """Twice what runs keeps the engine from idling; less where keys compete, as an engine takes all in order."""
        spare = self._max_num_seqs if len(self._waiting) < 2 else max(self._max_num_seqs // 4, 1)
        return self._max_num_seqs + spare - self._num_taken

    def _hand_out(self) -> None:
        while self._waiting:
            key_id, waiters = next(iter(self._waiting.items()))
            while waiters and waiters[-1].granted.done():  # cancelled, without having had its turn to say so
                waiters.pop()
            if waiters and waiters[-1].count > self._room():
                return
            del self._waiting[key_id]
            if not waiters:
                continue
            waiter = waiters.pop()
            if waiters:
                self._waiting[key_id] = waiters  # behind the other keys
            self._num_taken += waiter.count
            waiter.granted.set_result(None)

    def _give_up(self, key_id: str, waiter: _Waiter) -> None:
        if waiter.granted.done() and not waiter.granted.cancelled():  # granted in the same turn of the loop
            self.give_back(waiter.count)
            return
        waiters = self._waiting.get(key_id, [])
        if waiter in waiters:  # else it was dropped when its turn came
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[key_id]
        self._hand_out()


@dataclass(eq=False, slots=True)
class _Waiter:
    count: int
    granted: asyncio.Future[None]
    turn: tuple[int, int]  # the larger, the sooner


@dataclass(slots=True)
class _Rate:
    """Events per second over the last few seconds."""

    times: deque[float] = field(default_factory=lambda: deque(maxlen=256))

    def add(self) -> None:
        self.times.append(time.monotonic())

    def per_second(self) -> float:
        now, times = time.monotonic(), self.times
        while times and now - times[0] >= _RATE_MEMORY_S:
            times.popleft()
        return len(times) / max(now - times[0], 1.0) if times else 0.0
