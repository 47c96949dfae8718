"""Carries an engine in a process of its own: one end of a socket pair here, the other inherited by the child.

The child is a command that gets the socket's descriptor and this process's id as its last arguments and speaks
`wire`. Its end of the socket closes with it, so that its death is seen at once. Knows no model and no restarts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from contextlib import suppress
from functools import partial
from typing import Any, cast

import msgspec

from tuili.daemon_threads import in_daemon_thread
from tuili.engine.admission import check_request
from tuili.engine.client import Stream
from tuili.engine.stats import EngineHealth, EngineStats
from tuili.engine.wire import (
    EXIT_DEVICE,
    EXIT_INTERNAL,
    TELL_SIGNAL,
    Abort,
    CacheResized,
    Close,
    Deltas,
    EngineFacts,
    FrameReader,
    FromEngine,
    Heartbeat,
    Load,
    LoadFailed,
    ResizeCache,
    ToEngine,
    WireError,
    error_of,
    frame,
    generate_message,
    token_delta,
)
from tuili.errors import EngineUnavailableError
from tuili.types import TokenDelta, TokenRequest

READY_HEARTBEAT_S = 5.0
_WORK_CPU_S = 0.05  # from one heartbeat to the next: less is no work
_STDERR = 2
_EXIT_TEXTS = {EXIT_INTERNAL: "an internal error", EXIT_DEVICE: "its device failed"}
_TELLING_S = 0.5
_log = logging.getLogger(__name__)


class ChildProcess(asyncio.Protocol):
    """EngineClient over one child. Belongs to the event loop that started it, in the thread that did: on Linux the
    child dies with that thread, whatever ends it.
    """

    process: subprocess.Popen[bytes]
    facts: EngineFacts

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Use start()."""
        self.on_lost: Callable[[ChildProcess], None] | None = None  # called once the process is gone
        self.heartbeat: Heartbeat | None = None
        self._clock = clock
        self._heard_s = self._progress_s = self._worked_s = clock()
        self._streams: dict[int, Stream] = {}
        self._num_streams = 0
        self._num_steps = -1
        self._is_open = False
        self._reader: FrameReader[FromEngine] = FrameReader(FromEngine)
        self._loaded: asyncio.Future[EngineFacts] = asyncio.get_running_loop().create_future()
        self._resizes: deque[asyncio.Future[None]] = deque()  # answered in order
        self._gone = asyncio.Event()

    @classmethod
    async def start(
        cls, command: ListLike[str], load: Load, *, clock: Callable[[], float] = time.monotonic
    ) -> ChildProcess:
        """Starts the command and waits until its model is loaded.

        Raises the TuiliError that loading ended in, or EngineUnavailableError when the child died of it.
        """
        child = cls(clock)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                child.process = _spawn(command, theirs)
        except BaseException:
            ours.close()
            raise
        connecting = asyncio.ensure_future(asyncio.get_running_loop().create_unix_connection(lambda: child, sock=ours))
        connecting.add_done_callback(child._connected)
        try:
            await asyncio.shield(connecting)  # cancelled meanwhile, uvloop would never tell that it is lost
            child._send(load)
            child.facts = await child._loaded
        except BaseException:
            child._loaded.cancel()  # nobody will ask why it failed
            await child._end_at_once()
            raise
        return child

    def generate(self, request: TokenRequest) -> Stream:
        """As EngineClient.generate. When the child dies every answer ends in an EngineUnavailableError."""
        stream = Stream(request)
        number = self.submit(stream, request)
        stream.on_leave = partial(self.drop, number)
        return stream

    def submit(self, stream: Stream, request: TokenRequest) -> int:
        """Has a request answered, which is the stream's or its rest; its number here. Raises as generate."""
        if not self._is_open:
            raise EngineUnavailableError("the engine is closed")
        self.check_request(request)
        number = self._num_streams
        self._send(generate_message(number, request))
        if not self._streams:
            self._progress_s = self._worked_s = self._clock()
        self._num_streams += 1
        self._streams[number] = stream
        return number

    def check_request(self, request: TokenRequest) -> None:
        """As EngineClient.check_request: from the facts, here."""
        facts = self.facts
        check_request(request, vocab_size=facts.vocab_size, max_model_len=facts.max_model_len, capacity=facts.capacity)

    def drop(self, number: int) -> None:
        """Ends a stream of which nobody wants to hear any more."""
        if self._streams.pop(number, None) is not None:
            self._send(Abort(number))

    def abort(self, request_id: str, index: int | None = None) -> None:
        for number, stream in self._streams.items():
            if stream.request.request_id == request_id:
                self._send(Abort(number, index))

    async def resize_cache(self, num_bytes: int, *, may_forget: bool = False) -> int:
        """Bytes that the cache takes when it is full, after it was asked to take so many (engine.cache_size).

        By then the heartbeat tells the memory that the process has since.
        """
        if self._is_open:
            resize: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._resizes.append(resize)
            self._send(ResizeCache(num_bytes, may_forget))
            with suppress(EngineUnavailableError):
                await resize
        return self.facts.cache_bytes

    def stats(self) -> EngineStats:
        """As of the last heartbeat. Raises EngineUnavailableError before the first."""
        if self.heartbeat is None or self.heartbeat.stats is None:
            raise EngineUnavailableError("the engine has not been heard of yet")
        return self.heartbeat.stats

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended and was waited for."""
        return self._gone.is_set()

    @property
    def exit_text(self) -> str:
        """How it ended."""
        code = self.process.returncode
        if code in _EXIT_TEXTS:
            return f"exit code {code}, {_EXIT_TEXTS[code]}"
        return "still runs" if code is None else f"exit code {code}" if code >= 0 else f"signal {-code}"

    @property
    def silence_s(self) -> float:
        """Seconds since anything came from the process."""
        return self._clock() - self._heard_s

    @property
    def stall_s(self) -> float:
        """Seconds since the engine finished a step, while it has something to do; else 0."""
        return self._clock() - self._progress_s if self._streams else 0.0

    @property
    def idle_s(self) -> float:
        """Seconds since the engine finished a step or was seen using a processor, while it has something to do."""
        return min(self.stall_s, self._clock() - self._worked_s)

    @property
    def health(self) -> EngineHealth:
        is_ready = self._is_open and self.silence_s < READY_HEARTBEAT_S
        return EngineHealth(
            is_ready=is_ready,
            state="ready" if is_ready else "silent" if self._is_open else "closed",
            heartbeat_age_s=self.silence_s,
            last_progress_age_s=self.stall_s,
        )

    def pardon(self) -> None:
        """Counts silence and stall from now on: nobody was there to hear, or the whole machine stood still."""
        self._heard_s = self._progress_s = self._clock()

    def close(self) -> None:
        """Kills the process."""
        self.process.kill()

    def close_telling(self) -> None:
        """Kills the process once it has written to standard error what its threads are at."""
        self.process.send_signal(TELL_SIGNAL)
        asyncio.get_running_loop().call_later(_TELLING_S, self.process.kill)

    async def aclose(self, grace_s: float = 5.0) -> None:
        """Lets the process end by itself, kills it when that takes longer than grace_s, and waits for its end."""
        try:
            if self._is_open:
                self._send(Close())
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), grace_s)
        finally:
            await self._end_at_once()

    async def _end_at_once(self) -> None:
        """Kills the process and waits for its end, which is near: being cancelled waits for it, too."""
        self.process.kill()
        cancelled: asyncio.CancelledError | None = None
        while not self._gone.is_set():
            try:
                await self._gone.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _connected(self, connecting: asyncio.Future[Any]) -> None:
        if connecting.cancelled() or connecting.exception() is not None:
            self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._is_open = True

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._clock()
        try:
            for message in self._reader.feed(data):
                self._take(message)
        except WireError as error:
            _log.error("engine process %d sent %s: it is killed", self.process.pid, error)
            self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        """The child has died, or closed its end: then it is killed. Its memory is free once it is waited for."""
        self._is_open = False
        self.process.kill()
        waiting = in_daemon_thread(self.process.wait, "tuili-wait")
        waiting.add_done_callback(lambda _: self._end())

    def _end(self) -> None:
        error = EngineUnavailableError("the engine process ended")
        if not self._loaded.done():
            self._loaded.set_exception(EngineUnavailableError("the engine process ended while it loaded the model"))
        for resize in self._resizes:
            if not resize.done():
                resize.set_exception(error)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.lose(error)
        self._gone.set()
        if self.on_lost is not None:
            self.on_lost(self)

    def _take(self, message: FromEngine) -> None:
        match message:
            case Deltas():
                self._hand_out(message)
            case Heartbeat(stats=stats):
                if self.heartbeat is not None and message.cpu_s - self.heartbeat.cpu_s >= _WORK_CPU_S:
                    self._worked_s = self._clock()
                self.heartbeat = message
                if stats is not None and stats.num_steps != self._num_steps:
                    self._num_steps = stats.num_steps
                    self._progress_s = self._clock()
            case CacheResized(num_bytes=num_bytes) if self._resizes:
                self.facts = msgspec.structs.replace(self.facts, cache_bytes=num_bytes)
                if not (resize := self._resizes.popleft()).done():  # else nobody waits any more
                    resize.set_result(None)
            case EngineFacts() if not self._loaded.done():
                self._loaded.set_result(message)
            case LoadFailed(error=error) if not self._loaded.done():
                self._loaded.set_exception(error_of(error))

    def _hand_out(self, message: Deltas) -> None:
        """All deltas of a stream at once, so that its reader wakes up once."""
        self._progress_s = self._clock()
        arrived: dict[int, list[TokenDelta]] = {}
        for wire in message.deltas:
            stream = self._streams.get(wire.stream)
            if stream is not None and wire.index in stream.unfinished:
                arrived.setdefault(wire.stream, []).append(token_delta(stream.request.request_id, wire))
        for number, deltas in arrived.items():
            stream = self._streams[number]
            stream.put(deltas)
            if not stream.unfinished:
                del self._streams[number]

    def _send(self, message: ToEngine) -> None:
        if self._is_open:
            self._transport.write(frame(message))


def _spawn(command: ListLike[str], theirs: socket.socket) -> subprocess.Popen[bytes]:
    """In a session of its own, out of reach of the terminal's Ctrl-C; what it prints goes to our standard error."""
    try:
        os.fstat(_STDERR)
        output = _STDERR
    except OSError:  # closed
        output = subprocess.DEVNULL
    return subprocess.Popen(
        [*command, str(theirs.fileno()), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=(theirs.fileno(),),
        start_new_session=True,
    )
