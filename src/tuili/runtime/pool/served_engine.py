"""Starts a model for a pool: its engine in a process of its own, under supervision, and its text side in this one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tuili.daemon_threads import in_daemon_thread
from tuili.errors import TuiliError
from tuili.runtime.front.front import Front
from tuili.runtime.loading.loading import LoadOptions, check_vocabulary, open_front, tokenizer_source
from tuili.runtime.pool.served_model import StartedModel
from tuili.runtime.replicas.replicated_engine import ReplicatedEngine
from tuili.runtime.replicas.starting import start_replicas
from tuili.runtime.supervision.engine_start import named_by_path, start_engine
from tuili.runtime.supervision.supervised_engine import RestartPolicy, SupervisedEngine
from tuili.weights.checkpoint import open_checkpoint


async def start_served_model(
    source: str, path: Path, options: LoadOptions, *, policy: RestartPolicy | None = None, num_replicas: int = 1
) -> StartedModel:
    """The model at `path`, which the store calls `source`. The text side is made while the engine's process loads.

    With num_replicas so many processes load it, each as `options` say.

    Raises what loading raises; then, and when it is cancelled, nothing is left running.
    """
    options = await in_daemon_thread(partial(named_by_path, options), "tuili-pull")
    engine: asyncio.Task[SupervisedEngine | ReplicatedEngine] = asyncio.create_task(
        start_engine(path, options, policy=policy)
        if num_replicas == 1
        else start_replicas(path, options, num_replicas, policy=policy)
    )
    front = in_daemon_thread(partial(_open_front, source, path, options), "tuili-front")  # it may fetch a tokenizer
    both: list[asyncio.Future[Any]] = [engine, front]
    try:
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    except BaseException:
        engine.cancel()  # once: a second time would cut its farewell short
        front.cancel()
        await asyncio.wait(both)
        with suppress(TuiliError, asyncio.CancelledError, OSError):
            await engine.result().aclose(0)
        raise
    client = engine.result()
    return StartedModel(front=replace(front.result(), max_model_len=client.facts.max_model_len), client=client)


def _open_front(source: str, path: Path, options: LoadOptions) -> Front:
    """Headers, tokenizer and template; no weight is read."""
    from tuili.runtime.front.text_parts import open_tokenizer

    checkpoint = open_checkpoint(path)
    front = open_front(source, checkpoint, tokenizer_source(checkpoint, options), options.chat_template)
    if options.speculative is not None and options.speculative.model is not None:
        draft = open_checkpoint(Path(options.speculative.model))
        check_vocabulary(checkpoint, front.tokenizer, draft, open_tokenizer(draft))
    return front
