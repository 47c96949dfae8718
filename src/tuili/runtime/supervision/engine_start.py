"""Starts a model's engine in a process of its own, under supervision."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from tuili.engine.child_process import ChildProcess
from tuili.engine.wire import EngineFacts, Load
from tuili.runtime.loading.fetching import find_model
from tuili.runtime.loading.loading import LoadOptions
from tuili.runtime.supervision.supervised_engine import RestartPolicy, SupervisedEngine

# -P: nothing is imported from where we stand.
COMMAND = (sys.executable, "-P", "-m", "tuili.runtime.supervision.engine_process")


async def start_engine(path: Path, options: LoadOptions, *, policy: RestartPolicy | None = None) -> SupervisedEngine:
    """Loads the model at `path` in a process of its own, where a draft model is looked for by its path only.

    A process that takes over has the same context and cache, and is refused files that have become others: it is to go
    on where the first one was. Raises what loading raises. Cancelled, it leaves nothing behind.
    """

    async def start_child(facts: EngineFacts | None) -> ChildProcess:
        like = options
        if facts is not None:
            like = replace(options, max_model_len=facts.max_model_len, kv_cache_memory_bytes=facts.cache_bytes)
        stamps = None if facts is None else facts.stamps
        return await ChildProcess.start(COMMAND, load_message(path, like, stamps))

    return await SupervisedEngine.start(start_child, policy=policy)


def load_message(path: Path, options: LoadOptions, stamps: tuple[tuple[str, int, int, int], ...] | None = None) -> Load:
    """What the process is asked first."""
    return Load(str(path.absolute()), msgspec.Raw(msgspec.msgpack.encode(options)), stamps)


def named_by_path(options: LoadOptions) -> LoadOptions:
    """With the draft model's path for its name: the engine's process looks nothing up. Raises as find_model."""
    speculative = options.speculative
    if speculative is None or speculative.model is None:
        return options
    path = str(find_model(speculative.model).absolute())
    return replace(options, speculative=replace(speculative, model=path))
