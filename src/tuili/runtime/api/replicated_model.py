"""A model loaded several times, each engine in a process of its own, as one Pipeline for callers in this process."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from os import PathLike, fspath

from tuili.backends import expected_backend
from tuili.checks import refusal
from tuili.config import store_dir
from tuili.errors import InsufficientMemoryError
from tuili.machine import available_memory
from tuili.runtime.front.modelfile_settings import model_context
from tuili.runtime.loading.fetching import find_model
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.runtime.loading.pipeline import Pipeline
from tuili.store.store import Store
from tuili.weights.checkpoint import open_checkpoint


def open_replicas(model: str | PathLike[str], options: LoadOptions, count: int) -> Pipeline:
    """As open_model, where `count` is 1. Else so many engines load it, each as `options` say.

    Their devices lie side by side, or they share the threads. Raises what open_model raises; then none is left.
    """
    if count == 1:
        return open_model(model, options)
    from tuili.runtime.api.replica_loop import ReplicaLoop
    from tuili.runtime.pool.served_engine import start_served_model

    start = time.monotonic()
    name = model if isinstance(model, str) else fspath(model) if isinstance(model, PathLike) else None
    if not isinstance(name, str) or not name:
        raise refusal("model", model, "a name or a path")
    path = find_model(name)
    spec = open_checkpoint(path).spec
    if options.max_model_len is None:
        context = model_context(Store(store_dir()).modelfile(name), spec.max_position)
        options = replace(options, max_model_len=context)
    options = _sized(name, options, count)
    loop = ReplicaLoop(partial(start_served_model, name, path, options, num_replicas=count))
    return Pipeline(
        front=loop.front,
        spec=spec,
        backend=None,
        loop=loop,
        max_num_seqs=count * options.max_num_seqs,
        load_s=time.monotonic() - start,
    )


def _sized(name: str, options: LoadOptions, count: int) -> LoadOptions:
    """With a context and caches that fit beside each other into the host's memory, if that is where they are."""
    from tuili.runtime.pool.memory_plan import HOST
    from tuili.runtime.pool.model_memory import read_footprint

    is_on_host = expected_backend(options.backend, options.device) != "torch" or options.device == "cpu"
    if not is_on_host or options.kv_cache_memory_bytes is not None:
        return options
    footprint = read_footprint(name, Store(store_dir()), options, may_cap=False, num_replicas=count)
    free_bytes = available_memory()
    plan = footprint.fit({HOST: free_bytes})
    if plan is None:
        least = footprint.least().num_bytes
        raise InsufficientMemoryError(
            f"data_parallel_size: {count} engines of {name} take {least / 2**30:.2f} GiB with one context each, "
            f"{free_bytes / 2**30:.2f} are free"
        )
    return replace(options, max_model_len=plan.max_model_len, kv_cache_memory_bytes=plan.cache_bytes)
