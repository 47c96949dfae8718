"""What a pool of models needs of this machine: sizes from headers, free memory, and models started.

`LocalHost` has models in this machine's store and one engine for each.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from tuili.backends import expected_backend
from tuili.daemon_threads import in_daemon_thread
from tuili.errors import ModelNotFoundError
from tuili.machine import available_memory
from tuili.runtime.fetching import find_model
from tuili.runtime.front import Front
from tuili.runtime.gpu_memory import GpuMemory, gpu_memory
from tuili.runtime.loading import LoadOptions
from tuili.runtime.pool.model_memory import Footprint, MemoryPlan, read_footprint
from tuili.runtime.pool.pulls import Pulls
from tuili.runtime.pool.served_model import StartedModel
from tuili.runtime.pool.served_names import KnownModel
from tuili.runtime.pool.settings import PoolSettings
from tuili.runtime.sampling_defaults import configured_sampling
from tuili.store.progress import ProgressCallback
from tuili.store.records import ModelFiles
from tuili.store.store import Store


class StartModel(Protocol):
    """Loads the model at a path, which the store calls `source`; options are of each engine. Raises as loading does.

    Then, and when it is cancelled, nothing is left running.
    """

    async def __call__(self, source: str, path: Path, options: LoadOptions) -> StartedModel: ...


class ModelHost(Protocol):
    """The pool's outside. Its methods raise what opening and loading a model raises."""

    async def footprint(self, model: KnownModel) -> Footprint: ...

    async def start(self, model: KnownModel, plan: MemoryPlan) -> StartedModel: ...

    def files(self, model: KnownModel) -> ModelFiles: ...

    def free_bytes(self) -> int:
        """Of the memory that models are counted in."""
        ...

    def budget_bytes(self, share: float) -> int:
        """Of it, what all models together may take."""
        ...


class LocalHost:
    """ModelHost over a store."""

    def __init__(self, settings: PoolSettings, store: Store, start_model: StartModel, pulls: Pulls) -> None:
        self._settings, self._start_model = settings, start_model
        self._store, self._pulls = store, pulls
        is_one = settings.num_replicas == settings.load.num_ranks == 1  # else there are several GPUs
        self._gpu = _gpu_of(settings.load) if is_one else None
        self._seeds = None if settings.seed is None else random.Random(settings.seed)

    async def footprint(self, model: KnownModel) -> Footprint:
        """A model that is not stored yet is fetched first, which takes nobody knows how long."""
        if await in_daemon_thread(partial(self._is_missing, model.source), "tuili-find"):
            async with self._pulls.watch(model.source, partial(self._find, model)) as pull:
                await pull.end()
        gpu_share = None if self._gpu is None else 1 / max(1, len(self._settings.models))
        return await asyncio.to_thread(
            partial(
                read_footprint,
                may_cap=not model.is_named,
                num_replicas=self._settings.num_replicas,
                gpu_share=gpu_share,
            ),
            *(model.source, self._store, self._settings.load),
        )

    def _is_missing(self, source: str) -> bool:
        try:
            self._store.path(source)
        except ModelNotFoundError:
            return True
        return False

    def _find(self, model: KnownModel, note: ProgressCallback) -> None:
        try:
            find_model(model.source, self._store, note)
        except ModelNotFoundError:
            if model.source in (model.name, *model.aliases):
                raise  # else it is a path, which clients are not shown
            raise ModelNotFoundError(f"model {model.name!r}: its files were removed from the disk") from None

    async def start(self, model: KnownModel, plan: MemoryPlan) -> StartedModel:
        cache_bytes = plan.kv_cache_bytes // self._settings.num_replicas
        options = replace(self._settings.load, max_model_len=plan.max_model_len, kv_cache_memory_bytes=cache_bytes)
        path = await asyncio.to_thread(self._store.path, model.source)
        started = await self._start_model(model.source, path, options)
        try:
            return replace(started, front=self._set_up(started.front, model))
        except BaseException:
            await started.client.aclose()
            raise

    def _set_up(self, front: Front, model: KnownModel) -> Front:
        """Under its served name, with the defaults and the seeds that the settings ask for."""
        front = replace(front, name=model.name, default_template_args=self._settings.default_template_args)
        settings = self._settings
        sampling = configured_sampling(
            front.default_sampling, settings.generation_config, settings.override_generation_config
        )
        front = replace(front, default_sampling=sampling)
        return front if self._seeds is None else replace(front, draw_seed=partial(self._seeds.getrandbits, 64))

    def files(self, model: KnownModel) -> ModelFiles:
        return self._store.resolve(model.source)

    def free_bytes(self) -> int:
        return available_memory() if self._gpu is None else self._gpu().free_bytes

    def budget_bytes(self, share: float) -> int:
        """Of a GPU's, a share of the whole, without what others have."""
        if self._gpu is None:
            return int(share * available_memory())
        free, total = self._gpu()
        return max(0, int(share * total) - (total - free))


def _gpu_of(options: LoadOptions) -> Callable[[], GpuMemory] | None:
    """What tells of the GPU that models are loaded to; None where the host's memory counts."""
    if expected_backend(options.backend, options.device) != "torch" or gpu_memory(options.device) is None:
        return None

    def told() -> GpuMemory:
        found = gpu_memory(options.device)
        return GpuMemory(0, 0) if found is None else found

    return told
