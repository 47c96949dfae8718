"""The engine process: weights, backend and engine without a tokenizer, behind one end of a socket pair.

    python -m tuili.runtime.supervision.engine_process DESCRIPTOR PARENT

It dies with its parent, leaves the terminal's and the service manager's signals to it, and ends when the socket does.
A thread of its own sends a heartbeat, whatever the engine is at. Once the model is loaded the engine's thread itself
reads the socket. Knows `wire` and token ids.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from tuili.engine.loop import EngineLoop
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
    Generate,
    Heartbeat,
    Load,
    LoadFailed,
    ResizeCache,
    ToEngine,
    WireDelta,
    WireError,
    asked_indexes,
    frame,
    note_of,
    token_request,
    wire_delta,
)
from tuili.errors import DeviceFailureError, EngineUnavailableError, ModelFileError, TuiliError
from tuili.machine import process_memory
from tuili.parent_process import die_with
from tuili.program_log import start_logging
from tuili.runtime.loading.loading import LoadOptions, open_engine
from tuili.runtime.loading.running_engine import RunningEngine
from tuili.types import TokenDelta, TokenRequest
from tuili.weights.mapped_file import file_stamps

HEARTBEAT_S = 1.0
IDLE_HEARTBEAT_S = 2.0
BUSY_HEARTBEAT_S = 0.25
_RECEIVE_BYTES = 1 << 18
_log = logging.getLogger(__name__)


class EngineProcess:
    """Answers one parent until it closes the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._running: RunningEngine | None = None
        self._arrived: list[WireDelta] = []  # of the step under way; the engine's thread alone
        self._used: tuple[int, int, float] = (0, 0, 0.0)  # as last looked at: that is the dearest of a heartbeat
        self._told_load, self._told_s = (0, 0), 0.0
        self._is_closing = False
        self._requests: dict[int, RequestSink] = {}
        self._reader: FrameReader[ToEngine] = FrameReader(ToEngine)

    def run(self) -> int:
        """Answers until it is told to close, or nobody is there any more; the exit code."""
        threading.Thread(target=self._beat, name="tuili-heartbeat", daemon=True).start()
        while self._running is None and not self._is_closing:
            self._receive(True)
        if self._running is not None:
            self._running.loop.serve(self._receive)
            self._running.close()
        return 0

    def _receive(self, waits: bool) -> None:
        """Takes what has come over the socket; where nothing has, waits for it or not."""
        try:
            data = self._connection.recv(_RECEIVE_BYTES, 0 if waits else socket.MSG_DONTWAIT)
            if not data:
                os._exit(0)
            for message in self._reader.feed(data):
                self._take(message)
        except BlockingIOError:
            return
        except (ConnectionError, WireError) as error:
            _log.error("the engine process ends: %s", error)
            os._exit(EXIT_INTERNAL)

    def _take(self, message: ToEngine) -> None:
        match message:
            case Load():
                self._load(message)
            case Generate():
                self._generate(message)
            case ResizeCache(num_bytes=num_bytes, may_forget=may_forget):
                with suppress(EngineUnavailableError):  # it is closing
                    self._loop.resize_cache(num_bytes, self._tell_resized, may_forget=may_forget)
            case Abort(stream=stream, index=index):
                if (sink := self._requests.get(stream)) is not None:
                    self._loop.abort(sink.request.request_id, index, sink)
            case Close():
                self._is_closing = True
                if self._running is not None:
                    self._running.loop.close()

    @property
    def _loop(self) -> EngineLoop:
        if self._running is None:
            raise WireError("a request before the model was loaded")
        return self._running.loop

    def _load(self, message: Load) -> None:
        try:
            path = Path(message.path)
            options = msgspec.msgpack.decode(message.options, type=LoadOptions)
            stamps = file_stamps(path)
            if message.stamps is not None and stamps != frozenset(message.stamps):
                raise ModelFileError(f"{path.name}: changed on disk since it was loaded: unload it and load it again")
            running = open_engine(path, options)
            running.loop.add_listener(self._flush)
            gc.collect()
            gc.freeze()  # it stays as long as the process: looking through it again would hold up a step
            self._running = running
            self._send(self._heartbeat())  # so that nobody sees an engine without numbers
            self._send(facts_of(running, stamps))
        except FileNotFoundError:
            self._send(LoadFailed(note_of(ModelFileError(f"{path.name}: removed from the disk"))))
        except TuiliError as error:
            self._send(LoadFailed(note_of(error)))
        except Exception as error:
            _log.critical("the model could not be loaded", exc_info=error)
            self._send(LoadFailed(note_of(TuiliError("the model could not be loaded"))))

    def _generate(self, message: Generate) -> None:
        loop = self._loop
        try:
            request = token_request(message)
            sink = self._requests[message.stream] = RequestSink(self, message.stream, request)
            loop.submit(request, sink)
        except TuiliError as error:
            self._requests.pop(message.stream, None)
            stream, note = message.stream, note_of(error)
            endings = [WireDelta(stream, i, (), finish_reason="error", error=note) for i in asked_indexes(message)]
            self._send(Deltas(endings))

    def take_delta(self, sink: RequestSink, delta: TokenDelta) -> None:
        """Called in the engine's thread. An engine that broke down is of no more use: whoever restarts it goes on."""
        if isinstance(delta.error, EngineUnavailableError) and not self._is_closing:
            _leave(delta.error)
        self._arrived.append(wire_delta(sink.stream, delta))
        if not sink.num_unfinished:
            self._requests.pop(sink.stream, None)

    def _flush(self) -> None:
        """Called in the engine's thread after each step: all that came of it is one frame."""
        if (failure := self._loop.failure) is not None:
            _leave(failure)
        if not self._arrived:
            return
        arrived, self._arrived = self._arrived, []
        try:
            self._send(Deltas(arrived))
        except WireError:  # too large together, so one by one
            for delta in arrived:
                self._send_alone(delta)
        self._tell_changes()

    def _tell_changes(self) -> None:
        """A heartbeat out of turn when requests came or went, or the last one is old for an engine at work."""
        stats, now = self._loop.stats(), time.monotonic()
        load = (stats.num_running, stats.num_waiting)
        if load != self._told_load or now - self._told_s > BUSY_HEARTBEAT_S:
            self._told_load, self._told_s = load, now
            self._send(Heartbeat(stats, *self._used))

    def _tell_resized(self, num_bytes: int) -> None:
        """Called in the engine's thread. Whoever hears of it looks at the memory that is left."""
        self._used = (*process_memory(), self._used[2])
        self._send(Heartbeat(self._loop.stats(), *self._used))
        self._send(CacheResized(num_bytes))

    def _send_alone(self, delta: WireDelta) -> None:
        try:
            self._send(Deltas([delta]))
        except WireError as error:
            note = note_of(TuiliError(f"the answer is {error}: ask for fewer logprobs"))
            self._send(Deltas([WireDelta(delta.stream, delta.index, (), finish_reason="error", error=note)]))

    def _beat(self) -> None:
        pause = threading.Event()
        told = None
        while True:
            stats = None if self._running is None else self._running.loop.stats()
            is_idle = stats is not None and stats == told and not stats.num_running
            self._send(Heartbeat(stats, *self._used) if is_idle else self._heartbeat())
            told = stats
            pause.wait(IDLE_HEARTBEAT_S if is_idle else HEARTBEAT_S)

    def _heartbeat(self) -> Heartbeat:
        running = self._running
        self._used = (*process_memory(), time.process_time() - time.thread_time())
        return Heartbeat(None if running is None else running.loop.stats(), *self._used)

    def _send(self, message: FromEngine) -> None:
        data = frame(message)
        try:
            with self._send_lock:
                self._connection.sendall(data)
        except OSError:  # nobody is left to hear it
            os._exit(0)


class RequestSink:
    """Where the engine puts the deltas of one request."""

    __slots__ = ("_process", "num_unfinished", "request", "stream")

    def __init__(self, process: EngineProcess, stream: int, request: TokenRequest) -> None:
        self.stream = stream
        self.request = request
        self.num_unfinished = len(request.indexes)
        self._process = process

    def __call__(self, delta: TokenDelta) -> None:
        self.num_unfinished -= delta.finish_reason is not None
        self._process.take_delta(self, delta)


def _leave(failure: EngineUnavailableError) -> NoReturn:
    """Ends a process that can compute nothing any more."""
    _log.critical("the engine process ends: %s", failure)
    os._exit(EXIT_DEVICE if isinstance(failure, DeviceFailureError) else EXIT_INTERNAL)


def facts_of(running: RunningEngine, stamps: frozenset[tuple[str, int, int, int]]) -> EngineFacts:
    """What those who ask from another process must know; stamps are of the model's files."""
    engine, backend, draft = running.engine, running.backend, running.draft_backend
    config = engine.config
    return EngineFacts(
        process_id=os.getpid(),
        vocab_size=backend.vocab_size,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        capacity=engine.blocks.capacity,
        block_size=config.block_size,
        num_blocks=tuple(pool.num_blocks for pool in engine.blocks.pools),
        cache_bytes=engine.cache_size.num_bytes,
        weight_bytes=sum(getattr(b, "weight_bytes", 0) for b in (backend, draft)),
        kv_cache_dtype=config.kv_cache_dtype,
        num_threads=getattr(backend, "num_threads", 1),
        isa=getattr(backend, "isa", None),
        load_s=running.load_s,
        stamps=tuple(sorted(stamps)),
    )


def main(arguments: list[str]) -> int:
    descriptor, parent = map(int, arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with(parent)
    faulthandler.enable()
    if sys.platform != "win32":
        faulthandler.register(TELL_SIGNAL)
    start_logging()
    return EngineProcess(socket.socket(fileno=descriptor)).run()


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # threads and memory need no farewell
