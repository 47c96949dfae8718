"""Engines under supervision, for tests that let things happen to them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from support import fake_engine
from support.answers import Answers
from tuili.engine.child_process import ChildProcess
from tuili.engine.wire import EngineFacts, Load
from tuili.runtime.loading.loading import LoadOptions
from tuili.runtime.supervision.supervised_engine import RestartPolicy, SupervisedEngine
from tuili.types import TokenDelta, TokenRequest

FACTS = EngineFacts(  # of an engine that there is none of
    process_id=0,
    vocab_size=61,
    max_model_len=128,
    max_num_seqs=4,
    capacity=None,
    block_size=16,
    num_blocks=(8,),
    cache_bytes=8,
    weight_bytes=0,
    kv_cache_dtype="bfloat16",
    num_threads=1,
    isa=None,
    load_s=0.0,
    stamps=(),
)


async def start_fake(folder: Path, policy: RestartPolicy | None = None, **faults: object) -> SupervisedEngine:
    """Over support.fake_engine; the folder is where it finds a file to call its model."""
    model = folder / "model"
    model.touch()

    async def start_child(facts: EngineFacts | None) -> ChildProcess:
        stamps = None if facts is None else facts.stamps
        load = Load(str(model), msgspec.Raw(msgspec.msgpack.encode(LoadOptions())), stamps)
        return await ChildProcess.start(fake_engine.command(**faults), load)

    return await SupervisedEngine.start(start_child, policy=policy)


class KillAt:
    """Sends the engine's process a signal once so many deltas have come."""

    def __init__(self, engine: SupervisedEngine, num_deltas: int, how: signal.Signals = signal.SIGKILL) -> None:
        self._engine = engine
        self._left = num_deltas
        self._how = how
        self.is_done = False

    def __call__(self, deltas: Sequence[TokenDelta]) -> None:
        self._left -= len(deltas)
        if self._left <= 0 and not self.is_done:
            self.is_done = True
            os.kill(self._engine.facts.process_id, self._how)


async def collect(
    engine: SupervisedEngine, request: TokenRequest, watch: Callable[[Sequence[TokenDelta]], None] | None = None
) -> Answers:
    """All of a request, which `watch` sees as it comes."""
    answers = Answers()
    async for deltas in engine.generate(request):
        for delta in deltas:
            answers(delta)
        if watch is not None:
            watch(deltas)
    return answers


async def take_all(
    engine: SupervisedEngine,
    requests: Sequence[TokenRequest],
    watch: Callable[[Sequence[TokenDelta]], None] | None = None,
) -> list[Answers]:
    """Of all requests at once."""
    return await asyncio.gather(*(collect(engine, request, watch) for request in requests))
