"""Starts several engines of one model, each with devices or threads of its own. Knows options; no weights."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from tuili.backends import expected_backend
from tuili.checks import refusal
from tuili.machine import thread_limits
from tuili.runtime.loading.loading import LoadOptions
from tuili.runtime.replicas.replicated_engine import ReplicatedEngine
from tuili.runtime.supervision.engine_start import start_engine
from tuili.runtime.supervision.supervised_engine import RestartPolicy, SupervisedEngine


async def start_replicas(
    path: Path, options: LoadOptions, count: int, *, policy: RestartPolicy | None = None
) -> ReplicatedEngine:
    """`count` engines, each with all that `options` grant. Raises what starting one raises; then none is left."""
    tasks = [
        asyncio.create_task(start_engine(path, replica_options(options, i, count), policy=policy)) for i in range(count)
    ]
    try:
        return ReplicatedEngine(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.gather(*(task.result().aclose(0) for task in tasks if _has_started(task)))
        raise


def _has_started(task: asyncio.Task[SupervisedEngine]) -> bool:
    return not task.cancelled() and task.exception() is None


def replica_options(options: LoadOptions, i: int, count: int) -> LoadOptions:
    """Those of replica i: GPUs side by side from the one that was asked for, or its part of the threads.

    Raises InvalidRequestError for a device of which a machine has one.
    """
    device = options.device
    is_torch = expected_backend(options.backend, device) == "torch"
    if not is_torch or device == "cpu":
        num_threads = thread_limits(options.num_threads).num_threads
        return replace(options, num_threads=max(1, num_threads // count))
    if device in (None, "auto"):
        device = "cuda"
    kind, _, first = str(device).partition(":")
    if kind == "mps":
        raise refusal("data_parallel_size", count, "1 on mps, of which there is one")
    return replace(options, device=f"{kind}:{int(first or 0) + i * options.num_ranks}")
