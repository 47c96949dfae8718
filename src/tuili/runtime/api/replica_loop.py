"""EngineLoop's doors to engines in processes of their own, for callers in any thread. Knows clients; no processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from tuili.engine.client import Stream
from tuili.engine.sequence import Sink
from tuili.engine.stats import EngineStats
from tuili.errors import EngineUnavailableError, TuiliError
from tuili.runtime.front.front import Front
from tuili.runtime.pool.served_model import ServedEngine, StartedModel
from tuili.types import TokenDelta, TokenRequest

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Flight:
    """A request, and who carries its deltas to the sink."""

    stream: Stream
    sink: Sink
    unfinished: set[int]  # answers whose terminal delta the sink has not got
    task: asyncio.Task[None] | None = None

    def push(self, delta: TokenDelta) -> None:
        if delta.finish_reason is not None:
            self.unfinished.discard(delta.index)
        self.sink(delta)

    def end(self, error: TuiliError) -> None:
        """Tells the sink that nothing more will come."""
        request_id = self.stream.request.request_id
        for index in sorted(self.unfinished):
            self.push(TokenDelta(request_id=request_id, index=index, token_ids=(), finish_reason="error", error=error))


class ReplicaLoop:
    """Engines with an event loop in a thread of its own, until close(). Every method may be called from any thread."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, StartedModel]]) -> None:
        """Returns once they have started. Raises what `start` raises; then none is left."""
        self._started: StartedModel | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._lock = threading.Lock()
        self._flights: dict[str, list[_Flight]] = {}
        self._open = True
        self._events = asyncio.new_event_loop()
        self._serving: asyncio.Task[None] | None = None
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(start, ready), name="tuili-replicas", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self.close()
            raise

    @property
    def front(self) -> Front:
        """The model's text side."""
        assert self._started is not None
        return self._started.front

    def submit(self, request: TokenRequest, sink: Sink) -> None:
        """As EngineLoop.submit; `sink` gets its deltas in the replicas' thread."""
        self._call(lambda engine: self._begin(engine, request, sink))

    def check_request(self, request: TokenRequest) -> None:
        """As EngineLoop.check_request."""
        self._call(lambda engine: engine.check_request(request))

    def abort(self, request_id: str, index: int | None = None, sink: Sink | None = None) -> None:
        """As EngineLoop.abort."""

        def work(engine: ServedEngine) -> None:
            for flight in list(self._flights.get(request_id, ())):
                if sink is None:
                    engine.abort(request_id, index)
                elif flight.sink == sink:
                    flight.stream.leave()
                    assert flight.task is not None
                    flight.task.cancel()

        try:
            self._call(work)
        except EngineUnavailableError:
            return  # closing has ended, or is ending, every request

    def reset_prefix_cache(self) -> bool:
        """Never done: an engine in a process of its own keeps what it has computed."""
        return False

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return self._open

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Has `listener` called in the replicas' thread whenever deltas that came together have gone out."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Undoes add_listener; a call that is under way may still come."""
        with self._lock:
            self._listeners = tuple(other for other in self._listeners if other != listener)

    def stats(self) -> EngineStats:
        """Of all together, as heartbeats told last."""
        return self._call(lambda engine: engine.stats())

    def close(self) -> None:
        """Ends every request with an EngineUnavailableError delta, and the processes, and waits for that."""
        self._open = False
        if self._thread.is_alive():
            self._events.call_soon_threadsafe(self._stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _stop(self) -> None:
        if self._serving is not None:
            self._serving.cancel()

    def _run(self, start: Callable[[], Coroutine[Any, Any, StartedModel]], ready: Future[None]) -> None:
        asyncio.set_event_loop(self._events)
        try:
            self._serving = self._events.create_task(self._serve(start, ready))
            self._events.run_until_complete(asyncio.wait([self._serving]))
        finally:
            self._events.run_until_complete(self._events.shutdown_asyncgens())
            self._events.close()

    async def _serve(self, start: Callable[[], Coroutine[Any, Any, StartedModel]], ready: Future[None]) -> None:
        try:
            started = self._started = await start()
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            await asyncio.Event().wait()
        finally:
            await self._end(started.client)

    async def _end(self, engine: ServedEngine) -> None:
        error = EngineUnavailableError("the engine is closed")
        flights = [flight for flights in self._flights.values() for flight in flights]
        for flight in flights:
            assert flight.task is not None
            flight.task.cancel()
            flight.stream.leave()
            flight.end(error)
        self._tell_listeners()
        await asyncio.gather(*(flight.task for flight in flights if flight.task), return_exceptions=True)
        await engine.aclose()

    def _call(self, work: Callable[[ServedEngine], T]) -> T:
        """What `work` gives in the replicas' thread. Raises EngineUnavailableError once they are closed."""
        if threading.current_thread() is self._thread:
            return self._done(work)
        found: Future[T] = Future()

        def do() -> None:
            try:
                found.set_result(self._done(work))
            except BaseException as error:
                found.set_exception(error)

        try:
            if not self._open:
                raise RuntimeError
            self._events.call_soon_threadsafe(do)
        except RuntimeError:  # the event loop is closed, too
            raise EngineUnavailableError("the engine is closed") from None
        while True:
            try:
                return found.result(timeout=1.0)
            except TimeoutError:
                if not found.done() and not self._thread.is_alive():
                    raise EngineUnavailableError("the engine is closed") from None

    def _done(self, work: Callable[[ServedEngine], T]) -> T:
        if self._started is None or not self._open:
            raise EngineUnavailableError("the engine is closed")
        return work(self._started.client)

    def _begin(self, engine: ServedEngine, request: TokenRequest, sink: Sink) -> None:
        flight = _Flight(engine.generate(request), sink, set(request.indexes))
        self._flights.setdefault(request.request_id, []).append(flight)
        flight.task = self._events.create_task(self._carry(flight))

    async def _carry(self, flight: _Flight) -> None:
        try:
            async for deltas in flight.stream:
                for delta in deltas:
                    flight.push(delta)
                self._tell_listeners()
        except TuiliError as error:  # no engine is left
            flight.end(error)
            self._tell_listeners()
        finally:
            request_id = flight.stream.request.request_id
            self._flights[request_id].remove(flight)
            if not self._flights[request_id]:
                del self._flights[request_id]

    def _tell_listeners(self) -> None:
        for listener in self._listeners:
            listener()
