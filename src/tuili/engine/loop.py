"""An engine in a thread of its own. Two queues are the only doors: requests go in, deltas go to sinks.

Sleeps on a condition while there is nothing to do; never polls.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from tuili.engine.engine import Engine
from tuili.engine.sequence import Sink
from tuili.engine.stats import EngineStats
from tuili.errors import DeviceFailureError, EngineUnavailableError, TuiliError
from tuili.types import TokenDelta, TokenRequest

_log = logging.getLogger(__name__)


class RequestLoop(Protocol):
    """Where requests go in and deltas go to sinks, for callers in any thread. See EngineLoop for what each does."""

    def submit(self, request: TokenRequest, sink: Sink) -> None: ...
    def check_request(self, request: TokenRequest) -> None: ...
    def abort(self, request_id: str, index: int | None = None, sink: Sink | None = None) -> None: ...
    def reset_prefix_cache(self) -> bool: ...

    @property
    def is_open(self) -> bool: ...

    def add_listener(self, listener: Callable[[], None]) -> None: ...
    def remove_listener(self, listener: Callable[[], None]) -> None: ...
    def stats(self) -> EngineStats: ...
    def close(self) -> None: ...


class EngineLoop:
    """Runs an Engine until close(). Every method may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wake = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._receive: Callable[[bool], None] | None = None
        self._open = True
        self._failure: EngineUnavailableError | None = None
        self._process_id = os.getpid()
        self._thread = threading.Thread(target=self._run, name="tuili-engine", daemon=True)
        self._thread.start()

    def submit(self, request: TokenRequest, sink: Sink) -> None:
        """Queues a request. `sink` gets its deltas in the engine's thread and must not block.

        Raises InvalidRequestError, ContextLengthError or EngineUnavailableError here and now; a
        request_id that is in use ends in an error delta.
        """
        self.check_request(request)
        self._send(lambda: self._add(request, sink))

    def check_request(self, request: TokenRequest) -> None:
        """Raises InvalidRequestError or ContextLengthError for a request that no engine of these limits could take."""
        self._engine.check_request(request)

    def abort(self, request_id: str, index: int | None = None, sink: Sink | None = None) -> None:
        """As Engine.abort; no-op when the request is unknown or the engine is gone."""
        try:
            self._send(lambda: self._engine.abort(request_id, index, sink))
        except EngineUnavailableError:
            return  # closing has ended, or is ending, every request

    def reset_prefix_cache(self) -> bool:
        """As Engine.reset_prefix_cache, before any request submitted later; False when the engine is gone."""
        try:
            self._send(self._engine.reset_prefix_cache)
        except EngineUnavailableError:
            return False
        return True

    def resize_cache(self, num_bytes: int, told: Callable[[int], None], *, may_forget: bool = False) -> None:
        """Has `told` called in the engine's thread with what CacheSize.resize made of it, between two steps.

        Raises EngineUnavailableError.
        """
        self._send(lambda: told(self._engine.cache_size.resize(num_bytes, may_forget=may_forget)))

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return self._open

    @property
    def failure(self) -> EngineUnavailableError | None:
        """Why it stopped by itself, if it did."""
        return self._failure

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Has `listener` called in the engine's thread whenever all deltas of a step have gone out."""
        with self._wake:
            self._listeners = (*self._listeners, listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Undoes add_listener; a call that is under way may still come."""
        with self._wake:
            self._listeners = tuple(other for other in self._listeners if other != listener)

    def serve(self, receive: Callable[[bool], None]) -> None:
        """Has the engine's own thread read what is asked, which saves handing it over; returns once it is closed.

        receive(True), when there is nothing else to do, waits until something has come; receive(False) does not. It may
        call any method here. What other threads ask is looked at when it has returned.
        """
        with self._wake:
            self._receive = receive
            self._wake.notify()
        self._thread.join()

    def stats(self) -> EngineStats:
        """Read while the engine runs on: numbers may be of two neighbouring moments."""
        return self._engine.stats()

    def close(self) -> None:
        """Ends every request with an EngineUnavailableError delta and waits for the thread."""
        with self._wake:
            self._open = False
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _send(self, command: Callable[[], None]) -> None:
        if os.getpid() != self._process_id:  # threads do not survive a fork
            raise EngineUnavailableError(
                f"the engine belongs to process {self._process_id}: load the model after forking"
            )
        with self._wake:
            if not self._open:
                raise EngineUnavailableError("the engine is closed") if self._failure is None else self._failure
            self._inbox.append(command)
            self._wake.notify()

    def _add(self, request: TokenRequest, sink: Sink) -> None:
        try:
            self._engine.add(request, sink)
        except Exception as error:
            if not isinstance(error, TuiliError):
                _log.error("request %r could not be queued", request.request_id, exc_info=error)
                error = TuiliError("the request could not be queued")
            self._refuse(request, sink, error)

    def _refuse(self, request: TokenRequest, sink: Sink, error: TuiliError) -> None:
        try:
            for index in request.indexes:
                sink(
                    TokenDelta(
                        request_id=request.request_id, index=index, token_ids=(), finish_reason="error", error=error
                    )
                )
        except Exception as failure:
            _log.warning("the sink of request %r failed", request.request_id, exc_info=failure)

    def _run(self) -> None:
        error = EngineUnavailableError("the engine is closed")
        try:
            while self._take_commands():
                self._engine.step()
                self._tell_listeners()
        except BaseException as failure:
            _log.critical("the engine stopped", exc_info=failure)
            error = EngineUnavailableError("the engine stopped after an internal error")
            if isinstance(failure, DeviceFailureError):
                error = failure.with_traceback(None)
            self._failure = error
        with self._wake:
            self._open = False
        commands: list[Callable[[], None]] = [partial(self._engine.close, error), *self._inbox]
        for command in commands:  # requests on a closed engine are refused, with a delta
            try:
                command()
            except Exception as failure:
                _log.critical("the engine could not be closed in order", exc_info=failure)
        self._inbox.clear()
        self._tell_listeners()

    def _tell_listeners(self) -> None:
        for listener in self._listeners:
            listener()

    def _take_commands(self) -> bool:
        """Carries out what has arrived, waiting for it when there is no other work; False when closed."""
        is_idle = not self._engine.has_work()
        if is_idle:
            self._engine.check()
        with self._wake:
            while self._open and is_idle and not self._inbox and self._receive is None:
                self._wake.wait()
        if self._open and self._receive is not None:
            self._receive(is_idle and not self._inbox)
        if not self._open:
            return False
        for _ in range(len(self._inbox)):  # one by one: what lies behind one that fails is refused, not lost
            self._inbox.popleft()()
        return True
