"""Servers to test against: an application in this process over a model that starts in no time, and real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from support.fake_backend import FakeBackend
from support.small_model import small_model
from tuili.engine.client import InProcess
from tuili.errors import ModelNotFoundError
from tuili.runtime.loading.pipeline import Pipeline
from tuili.runtime.pool.memory_plan import HOST, DevicePart, MemoryPlan
from tuili.runtime.pool.pulls import Pulls
from tuili.runtime.pool.served_model import ModelCard
from tuili.server.app import create_app
from tuili.server.dialect import Dialect
from tuili.server.guards.http_protocol import guarded_protocol
from tuili.server.http_settings import HttpSettings
from tuili.server.tracing import Tracer
from tuili.store.records import ModelFiles

PLAN = MemoryPlan(
    max_model_len=128, cache_bytes=2, parts=(DevicePart(device=HOST, weights=1, kv_cache=2, workspace=3),)
)


@dataclass(eq=False)
class PooledModel:
    """What the pool calls a served model, over a pipeline of this process."""

    pipeline: Pipeline
    max_num_seqs: int = 4
    aliases: tuple[str, ...] = ()
    path: Path = Path("small.gguf")
    plan: MemoryPlan = PLAN
    loaded_at: float = field(default_factory=time.time)
    load_s: float = 0.0
    expires_at: float | None = None
    is_pinned: bool = False
    num_active: int = 0

    def __post_init__(self) -> None:
        self.name, self.front = self.pipeline.name, self.pipeline.front
        self.client = InProcess(self.pipeline.loop)
        self.memory, self.num_bytes = self.plan.by_kind(), self.plan.num_bytes
        self.files = ModelFiles(name=self.name, path=self.path, source="local", num_bytes=1000, created=0)


class SmallPool:
    """The pool's interface over models that are loaded already. `gate` holds loading back."""

    def __init__(self, *pipelines: Pipeline, path: Path = Path("small.gguf")) -> None:
        self.models = {pipeline.name: PooledModel(pipeline, path=path) for pipeline in pipelines}
        self.gate = asyncio.Event()
        self.gate.set()
        self.pulls = Pulls(4)

    @asynccontextmanager
    async def use(self, name: str, *, keep_alive_s: float | None = None) -> AsyncIterator[PooledModel]:
        model = await self.load(name)
        model.num_active += 1
        try:
            yield model
        finally:
            model.num_active -= 1

    async def load(self, name: str, *, keep_alive_s: float | None = None, pin: bool = False) -> PooledModel:
        if name not in self.models:
            raise ModelNotFoundError(f"there is no model {name!r}")
        await self.gate.wait()
        return self.models[name]

    async def unload(self, name: str) -> None:
        await self.load(name)

    @property
    def default_name(self) -> str | None:
        return next(iter(self.models), None)

    def loaded(self) -> tuple[PooledModel, ...]:
        return tuple(self.models.values())

    @property
    def given_names(self) -> Collection[str]:
        return self.models.keys()

    def cards(self) -> tuple[ModelCard, ...]:
        return tuple(map(self.card, self.models))

    def card(self, name: str) -> ModelCard:
        if name not in self.models:
            raise ModelNotFoundError(f"there is no model {name!r}")
        model = self.models[name]
        return ModelCard(
            name=name, aliases=model.aliases, files=model.files, is_loaded=True, max_model_len=model.front.max_model_len
        )

    async def start(self) -> None:
        await self.gate.wait()

    async def aclose(self) -> None:
        for model in self.models.values():
            await asyncio.to_thread(model.pipeline.close)


@asynccontextmanager
async def small_app(
    *,
    spoken: Sequence[Dialect] | None = None,
    pool: SmallPool | None = None,
    tracer: Tracer | None = None,
    root_path: str = "",
    **settings: Any,
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """The application over model "small", and a client of it without sockets. Its lifespan has begun."""
    settings.setdefault("log_path", Path("/dev/null"))
    pool = pool or SmallPool(small_model(FakeBackend()))
    app = create_app(HttpSettings(**settings), pool, spoken=spoken, tracer=tracer)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, root_path=root_path)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=240) as client:
            yield app, client


@dataclass
class Listening:
    """A server on a port of the loopback."""

    app: FastAPI
    pool: SmallPool
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def wait_idle(self, timeout_s: float = 240) -> None:
        """Returns when no engine runs anything any more."""
        until_s = time.monotonic() + timeout_s
        while any(model.client.stats().num_running for model in self.pool.loaded()):
            assert time.monotonic() < until_s, "an engine still runs requests"
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        """A connection, whose reads give up at last."""
        return socket.create_connection((self.host, self.port), timeout=240)


@contextmanager
def listening(
    *,
    spoken: Sequence[Dialect] | None = None,
    pool: SmallPool | None = None,
    tracer: Tracer | None = None,
    **settings: Any,
) -> Iterator[Listening]:
    """The application under uvicorn, in a thread of this process."""
    settings.setdefault("log_path", Path("/dev/null"))
    made = HttpSettings(**settings)
    pool = pool or SmallPool(small_model(FakeBackend()))
    app = create_app(made, pool, spoken=spoken, tracer=tracer)
    http = guarded_protocol(made, app.state.door.refusal)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", http=http, ws="none", access_log=False)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)  # so that who does not read is felt soon
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        _await_start(server)
        yield Listening(app, pool, *listener.getsockname()[:2])
    finally:
        server.should_exit = True
        thread.join()
        with contextlib.suppress(OSError):
            listener.close()


def _await_start(server: uvicorn.Server) -> None:
    until_s = time.monotonic() + 240
    while not server.started:
        assert time.monotonic() < until_s, "the server did not start"
        time.sleep(0.005)
