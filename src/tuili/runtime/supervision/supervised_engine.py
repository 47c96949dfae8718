"""An engine that comes back: restarts a process that died or hangs, and goes on with every request where it was.

Requests that come meanwhile wait. One that keeps killing its engine is found, by replaying suspects one at a time,
and fails alone. Knows carriers, requests and clocks; how a process is started is told by `start_child`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

from tuili.engine.child_process import READY_HEARTBEAT_S, ChildProcess
from tuili.engine.client import Stream
from tuili.engine.stats import EngineHealth, EngineStats
from tuili.engine.wire import EngineFacts
from tuili.errors import EngineUnavailableError, ModelFileError, TuiliError
from tuili.runtime.supervision.flight import Flight
from tuili.types import TokenRequest

_GAUGES = ("num_running", "num_waiting", "num_blocks", "num_free_blocks", "max_step_tokens", "prefill")
_COUNTERS = [field.name for field in fields(EngineStats) if field.name not in _GAUGES]
_FIRST_PAUSE_S = 0.25  # between tries to load, doubled each time
_IDLE_LOOKS = 4  # so many times more rarely while nobody waits for an answer
_STANDSTILL_S = 1.0  # by which a look may be late before we take it that the child stood still as we did
_log = logging.getLogger(__name__)

StartChild = Callable[[EngineFacts | None], Awaitable[ChildProcess]]
State = Literal["ready", "restarting", "failed", "closed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartPolicy:
    """When an engine is given up, and when restarting it is. Seconds."""

    unready_s: float = READY_HEARTBEAT_S  # without a sign of life: it is not ready
    silence_s: float = 10.0  # without a sign of life: it is killed
    hang_timeout_s: float = 60.0  # with requests, but neither a step done nor a processor used: it is killed
    endless_factor: float = 30.0  # times that, with no step done however busy: it is killed
    max_restarts: int = 3  # within within_s, if no token came between them
    within_s: float = 60.0
    retry_after_s: float = 30.0  # once restarting was given up
    look_every_s: float = 0.5

    @property
    def endless_s(self) -> float:
        return self.hang_timeout_s * self.endless_factor


class SupervisedEngine:
    """EngineClient over a process at a time. Belongs to one event loop."""

    def __init__(self, start_child: StartChild, child: ChildProcess, policy: RestartPolicy) -> None:
        """Use start()."""
        self._start_child = start_child
        self._policy = policy
        self._state: State = "restarting"
        self.on_given_up: Callable[[], None] | None = None  # called when restarting is given up, each time
        self._flights: dict[Flight, None] = {}  # in the order they came
        self._before: dict[str, Any] = dict.fromkeys(_COUNTERS, 0)  # what earlier children counted
        self._restarts: deque[float] = deque()  # when, since a token came last
        self._num_restarts = 0
        self._failure: Exception | None = None  # why the last try to start one failed
        self._is_given_up = False
        self._condemned: ChildProcess | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._child = child
        self._adopt(child)
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, start_child: StartChild, *, policy: RestartPolicy | None = None) -> SupervisedEngine:
        """start_child gets the first child's facts when it is to start another just like it.

        Raises what starting the first raises.
        """
        return cls(start_child, await start_child(None), policy or RestartPolicy())

    @property
    def facts(self) -> EngineFacts:
        """Of the process that runs, or ran last; all are alike but for their ids."""
        return self._child.facts

    @property
    def is_given_up(self) -> bool:
        """Whether restarting it was given up; also while it is tried again, until it is back."""
        return self._is_given_up

    @property
    def is_outdated(self) -> bool:
        """Whether it is given up because its files are others now: it must be loaded anew."""
        return self.is_given_up and isinstance(self._failure, ModelFileError)

    @property
    def own_bytes(self) -> int:
        """Memory of the process that runs, without the files it has mapped."""
        return self._child.heartbeat.own_bytes if self._state == "ready" and self._child.heartbeat else 0

    def generate(self, request: TokenRequest) -> Stream:
        """As EngineClient.generate. Every token comes exactly once, whatever happens to the process."""
        self.check_request(request)
        flight = Flight(request, self._on_news)
        self._flights[flight] = None
        self._submit_waiting()
        flight.on_leave = partial(self._leave, flight)
        return flight

    def check_request(self, request: TokenRequest) -> None:
        """As EngineClient.check_request. Raises EngineUnavailableError while nothing runs or is about to."""
        if self._state == "failed":
            raise self._unavailable()
        if self._state == "closed":
            raise EngineUnavailableError("the engine is closed")
        self._child.check_request(request)

    def abort(self, request_id: str, index: int | None = None) -> None:
        for flight in [flight for flight in self._flights if flight.request.request_id == request_id]:
            flight.abort(index)
            if flight.number is not None:
                self._child.abort(request_id, index)

    async def resize_cache(self, num_bytes: int, *, may_forget: bool = False) -> int:
        """As ChildProcess.resize_cache; a process that takes over has what this one came to have."""
        return await self._child.resize_cache(num_bytes, may_forget=may_forget)

    def stats(self) -> EngineStats:
        """Counters go on over restarts; while no process runs, all that is unfinished waits."""
        stats = self._child.stats()
        if self._state == "ready":
            counters: dict[str, Any] = {name: getattr(stats, name) + self._before[name] for name in _COUNTERS}
            return replace(stats, **counters)
        waiting: dict[str, Any] = {"num_waiting": sum(len(flight.unfinished) for flight in self._flights)}
        return replace(stats, num_running=0, prefill={}, **waiting, **self._before)

    @property
    def health(self) -> EngineHealth:
        child, state = self._child, str(self._state)
        if state == "ready" and child.silence_s >= self._policy.unready_s:
            state = "silent"
        elif state == "ready" and (
            child.idle_s >= self._policy.hang_timeout_s / 2 or child.stall_s >= self._policy.endless_s / 2
        ):
            state = "stalled"
        return EngineHealth(
            is_ready=state == "ready",
            state=state,
            heartbeat_age_s=child.silence_s,
            last_progress_age_s=child.stall_s,
            num_restarts=self._num_restarts,
        )

    def close(self) -> None:
        """Kills the process; every request ends in an EngineUnavailableError."""
        self._retire()
        self._child.close()
        self._end_all(EngineUnavailableError("the engine is closed"))

    async def aclose(self, grace_s: float = 5.0) -> None:
        """As close, once the process had grace_s to end by itself; waits for its memory to be free."""
        self._retire()
        if self._restarting is not None:
            await asyncio.wait([self._restarting])
        await self._child.aclose(grace_s)
        self._end_all(EngineUnavailableError("the engine is closed"))

    def _retire(self) -> None:
        if self._state == "ready":
            self._count(self._child.stats())
        self._state = "closed"
        self._child.on_lost = None
        self._watching.cancel()
        if self._restarting is not None:
            self._restarting.cancel()

    def _on_news(self, flight: Flight, has_tokens: bool) -> None:
        if has_tokens:
            self._restarts.clear()
        if flight.strikes:  # others may wait for it to prove harmless
            self._submit_waiting()

    def _leave(self, flight: Flight) -> None:
        del self._flights[flight]
        if flight.unfinished and flight.number is not None:
            self._child.drop(flight.number)
        if flight.strikes:
            self._submit_waiting()

    def _submit_waiting(self) -> None:
        """Gives the engine all that waits; while there are suspects, one of those alone, and takes back all others."""
        if self._state != "ready":
            return
        suspect = next((flight for flight in self._flights if flight.is_suspect), None)
        for flight in list(self._flights):
            if suspect is not None and flight is not suspect:
                self._take_back(flight)
            elif flight.number is None and flight.unfinished:
                self._submit(flight)

    def _take_back(self, flight: Flight) -> None:
        if flight.number is not None and flight.unfinished:
            self._child.drop(flight.number)
            flight.pause()

    def _submit(self, flight: Flight) -> None:
        try:
            flight.submitted(self._child.submit(flight, flight.rest()))
        except EngineUnavailableError:
            return  # it has just died: the flight stays for the next
        except TuiliError as error:
            flight.end("error", error)

    def _adopt(self, child: ChildProcess) -> None:
        self._child, self._state, self._failure = child, "ready", None
        self._is_given_up = False
        child.on_lost = self._on_lost
        if child.is_gone:
            self._on_lost(child)
        self._submit_waiting()

    def _on_lost(self, child: ChildProcess) -> None:
        """Deals out strikes, or finds who was alone, and starts another process."""
        lost = [flight for flight in self._flights if flight.was_lost and flight.unfinished]
        _log.error(
            "engine process %d ended (%s) with %d requests: it is restarted",
            child.facts.process_id,
            child.exit_text,
            len(lost),
        )
        self._count(child.stats())
        self._state = "restarting"
        self._judge(lost)
        self._restarting = asyncio.create_task(self._restart())

    def _judge(self, lost: list[Flight]) -> None:
        is_found = len(lost) == 1 and lost[0].is_suspect
        for flight in lost:
            flight.strike()
        if is_found:
            self._restarts.clear()
            _log.error("request %r ended the engine repeatedly: it fails", lost[0].request.request_id)
            lost[0].end("error", TuiliError("the engine failed each time it worked on this request"))

    async def _restart(self) -> None:
        """Until there is an engine again; after too many tries in vain the next comes later."""
        while not await self._took_over():
            self._state, self._is_given_up = "failed", True
            if self.on_given_up is not None:
                self.on_given_up()
            _log.critical("the engine is given up for %g s", self._policy.retry_after_s)
            self._end_all(self._unavailable())
            await asyncio.sleep(self._policy.retry_after_s)
            self._restarts.clear()
            self._state = "restarting"  # requests that come now wait for what becomes of it

    async def _took_over(self) -> bool:
        pause_s = _FIRST_PAUSE_S
        while self._may_restart():
            self._num_restarts += 1
            try:
                child = await self._start_child(self._child.facts)
            except (TuiliError, OSError) as error:
                _log.error("the engine could not be restarted: %s", error)
                self._failure = error
                await asyncio.sleep(pause_s)
                pause_s *= 2
            else:
                _log.warning("engine process %d takes over", child.facts.process_id)
                self._adopt(child)
                return True
        return False

    def _may_restart(self) -> bool:
        now = time.monotonic()
        while self._restarts and now - self._restarts[0] > self._policy.within_s:
            self._restarts.popleft()
        self._restarts.append(now)
        return len(self._restarts) <= self._policy.max_restarts

    def _unavailable(self) -> EngineUnavailableError:
        reason = "fails again and again" if self._failure is None else f"cannot be restarted: {self._failure}"
        pause_s = self._policy.retry_after_s
        return EngineUnavailableError(
            f"the engine {reason}; it is tried again every {pause_s:g} s", retry_after_s=pause_s
        )

    def _end_all(self, error: TuiliError) -> None:
        for flight in list(self._flights):
            flight.end("error", error)

    def _count(self, stats: EngineStats) -> None:
        for name in _COUNTERS:
            self._before[name] += getattr(stats, name)

    async def _watch(self) -> None:
        while True:
            begun_s = time.monotonic()
            pause_s = self._policy.look_every_s * (1 if self._flights else _IDLE_LOOKS)
            await asyncio.sleep(pause_s)
            child = self._child
            if time.monotonic() - begun_s > pause_s + _STANDSTILL_S:
                child.pardon()
            if self._state != "ready" or child is self._condemned:
                continue
            is_silent = child.silence_s > self._policy.silence_s
            if is_silent:
                reason = f"gave no sign of life for {child.silence_s:.1f} s"
            elif child.idle_s > self._policy.hang_timeout_s:
                reason = f"has work and did nothing for {child.idle_s:.1f} s"
            elif child.stall_s > self._policy.endless_s:
                reason = f"finished no step for {child.stall_s:.1f} s"
            else:
                continue
            _log.error("engine process %d %s: it is killed", child.facts.process_id, reason)
            self._condemned = child
            if is_silent:
                child.close()
            else:  # it lives, and can say where it hangs
                child.close_telling()
