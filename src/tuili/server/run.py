"""Runs the server: sockets, TLS, uvicorn, signals, and the exit code.

The first SIGTERM or SIGINT drains: nothing new is accepted, what runs may end. The second does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import ssl
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

from tuili.errors import EngineUnavailableError, InvalidRequestError
from tuili.program_log import start_logging
from tuili.runtime.pool.model_pool import ModelPool, open_pool
from tuili.server.app import create_app
from tuili.server.door import Door
from tuili.server.guards.bind import check_bind
from tuili.server.guards.http_protocol import guarded_protocol
from tuili.server.listeners import Listeners, open_listeners
from tuili.server.serving import Serving
from tuili.server.settings.serve_settings import ServeSettings
from tuili.server.socket_activation import inherited_sockets
from tuili.server.turnstile import Turnstile

EXIT_LOST = 70  # EX_SOFTWARE: the engines that were to be there are given up
_CUT_S = 2.0  # after the drain's deadline: to tell clients that their answers end here


def serve(settings: ServeSettings) -> int:
    """Serves until it is told to stop; the exit code. Says on stderr where, once models named at start are loaded.

    Raises InvalidRequestError for addresses, certificates and keys that do not do, before anything is
    loaded, and what loading a model named at start raises.
    """
    http = settings.http()
    check_bind(http)
    _check_tls(settings)
    start_logging(settings.log_format)
    listeners = open_listeners(settings.addresses(), inherited_sockets())
    try:
        pool = open_pool(settings.pool())
        server = _Server(_uvicorn_config(settings, create_app(http, pool)))
        gc.collect()
        gc.freeze()  # what is there before any model: looking through it again would hold up streams for 40 ms
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            return runner.run(_Run(settings, server, pool, listeners).main())
    finally:
        listeners.close()


def _uvicorn_config(settings: ServeSettings, app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http=guarded_protocol(settings.http(), app.state.door.refusal),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        root_path=settings.root_path,
        timeout_keep_alive=int(settings.timeout_keep_alive_s),
        timeout_graceful_shutdown=int(_CUT_S),
        ssl_keyfile=settings.ssl_keyfile,
        ssl_certfile=settings.ssl_certfile,
        ssl_ca_certs=settings.ssl_ca_certs,
        ssl_cert_reqs=settings.ssl_cert_reqs,
        ssl_ciphers=settings.ssl_ciphers or "TLSv1",
    )


def _check_tls(settings: ServeSettings) -> None:
    """Raises InvalidRequestError for files that are no certificate and no key, or do not belong together."""
    if settings.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password=lambda: "")
    except OSError as error:
        reason = "not a certificate and its key in PEM, or of different pairs, or with a password"
        raise InvalidRequestError(f"ssl_certfile, ssl_keyfile: {reason} ({error.strerror or error})") from None
    try:
        if settings.ssl_ca_certs is not None:
            context.load_verify_locations(settings.ssl_ca_certs)
    except OSError as error:
        raise InvalidRequestError(f"ssl_ca_certs: no certificates in PEM ({error.strerror or error})") from None
    try:
        if settings.ssl_ciphers is not None:
            context.set_ciphers(settings.ssl_ciphers)
    except ssl.SSLError:
        raise InvalidRequestError(f"ssl_ciphers: no such cipher: {settings.ssl_ciphers!a:.200}") from None


class _Server(uvicorn.Server):
    """uvicorn's, with signals left to us and a main loop that sleeps."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()
        self.turnstile: Turnstile | None = None

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is not None
        await super().startup([listener.dup() for listener in sockets])
        if not self.config.is_ssl:
            state = self.config.app.state  # type: ignore[union-attr]
            door: Door = state.door
            self.turnstile = Turnstile(self, sockets, door, state.serving.settings)
            door.on_refusal = self.turnstile.note_refusal

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.turnstile is not None:
            self.turnstile.close()
        await super().shutdown(sockets)

    async def main_loop(self) -> None:
        await self.stop.wait()  # no ticks: GuardedHttpProtocol sees to the Date header
        self.should_exit = True


class _Run:
    """One run of the server, from listening to its exit code."""

    def __init__(self, settings: ServeSettings, server: _Server, pool: ModelPool, listeners: Listeners) -> None:
        self._settings, self._server, self._pool, self._listeners = settings, server, pool, listeners
        self._serving: Serving = server.config.app.state.serving  # type: ignore[union-attr]
        self._signals: asyncio.Queue[int] = asyncio.Queue()

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        http = loop.create_task(self._server.serve(self._listeners.sockets))
        try:
            return await self._until_told(http)
        finally:
            self._server.stop.set()
            await asyncio.wait([http])
            if not http.cancelled() and (error := http.exception()) is not None:
                raise error

    async def _until_told(self, http: asyncio.Task[None]) -> int:
        told = asyncio.create_task(self._signals.get())
        lost = asyncio.create_task(self._pool.all_lost())
        try:
            while self._serving.starting is None and not http.done():
                await asyncio.sleep(0)
            starting = self._serving.starting
            if starting is not None:
                await asyncio.wait([starting, told, http], return_when=asyncio.FIRST_COMPLETED)
                if starting.done() and not starting.cancelled():
                    starting.result()  # raises what went wrong
                    self._say(f"tuili serves {self._served()} on {', '.join(self._urls())}")
            await asyncio.wait([told, lost, http], return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                return await self._drain(told.result())
            if lost.done():
                self._say(f"error: the engine of {', '.join(lost.result())} ended again and again, and is given up")
                self._serving.cut(EngineUnavailableError("the engine is given up"))
                return EXIT_LOST
            return 1
        finally:
            told.cancel()
            lost.cancel()

    async def _drain(self, number: int) -> int:
        """The exit code: 0 when everything that ran has ended, or was told that it ends here."""
        limit_s = self._settings.drain_timeout_s
        self._serving.drain()
        again = asyncio.create_task(self._signals.get())
        idle = asyncio.create_task(self._serving.idle())
        await asyncio.wait([idle], timeout=0)
        if not idle.done():
            self._say(f"tuili ends when running answers have, or in {limit_s:g} s; {_name(number)} again ends it now")
        try:
            await asyncio.wait([again, idle], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not idle.done():
                self._serving.cut(EngineUnavailableError("the server is shutting down"))
                closing = asyncio.create_task(self._pool.aclose())  # which also ends what waits for a model
                await asyncio.wait([idle, closing], timeout=_CUT_S)
        finally:
            idle.cancel()
            again.cancel()
        if again.done() and not again.cancelled():
            self._server.config.timeout_graceful_shutdown = 0
            return 128 + again.result()
        return 0

    def _served(self) -> str:
        named = [model.name for model in self._pool.loaded()]
        return ", ".join(named) or "the models that are stored"

    def _urls(self) -> list[str]:
        scheme = "https" if self._settings.ssl_certfile else "http"
        return [
            f"unix:{address.uds}" if address.uds else f"{scheme}://{address}" for address in self._listeners.addresses
        ]

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody listens
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
