"""What a pool of models needs of this machine: sizes from headers, free memory, and models started.

`LocalHost` has models in this machine's store and one engine for each.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from tuili.backends import expected_backend
from tuili.daemon_threads import in_daemon_thread
from tuili.errors import ModelNotFoundError
from tuili.machine import available_memory
from tuili.runtime.devices.gpu_memory import GpuMemory, gpu_memory
from tuili.runtime.devices.torch_memory import GPU_CONTEXT_BYTES
from tuili.runtime.front.front import Front
from tuili.runtime.front.sampling_defaults import configured_sampling
from tuili.runtime.loading.fetching import find_model
from tuili.runtime.loading.loading import LoadOptions
from tuili.runtime.pool.engine_parts import Gpus
from tuili.runtime.pool.memory_plan import HOST, Free, MemoryPlan
from tuili.runtime.pool.model_memory import Footprint, read_footprint
from tuili.runtime.pool.pulls import Pulls
from tuili.runtime.pool.served_model import StartedModel
from tuili.runtime.pool.served_names import KnownModel
from tuili.runtime.pool.settings import PoolSettings
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

    def free_bytes(self) -> Free:
        """Of every device that models are counted on."""
        ...

    def budget_bytes(self, share: float) -> Free:
        """Of it, what all models together may take."""
        ...


class LocalHost:
    """ModelHost over a store."""

    def __init__(self, settings: PoolSettings, store: Store, start_model: StartModel, pulls: Pulls) -> None:
        self._settings, self._start_model = settings, start_model
        self._store, self._pulls = store, pulls
        self._gpus = gpus_of(settings.load, settings.num_replicas)
        self._granted = self.budget_bytes(settings.memory_share)  # before any model is there
        self._seeds = None if settings.seed is None else random.Random(settings.seed)

    async def footprint(self, model: KnownModel) -> Footprint:
        """A model that is not stored yet is fetched first, which takes nobody knows how long."""
        if await in_daemon_thread(partial(self._is_missing, model.source), "tuili-find"):
            async with self._pulls.watch(model.source, partial(self._find, model)) as pull:
                await pull.end()
        gpus = None
        if self._gpus:
            gpus = Gpus(
                names=self._gpus,
                granted_bytes=min(self._granted[name] for name in self._gpus) - GPU_CONTEXT_BYTES,
                cache_share=1 / max(1, len(self._settings.models)),
            )
        return await asyncio.to_thread(
            partial(
                read_footprint,
                may_cap=not model.is_named,
                num_replicas=self._settings.num_replicas,
                gpus=gpus,
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
        load = self._settings.load
        options = replace(load, max_model_len=plan.max_model_len, kv_cache_memory_bytes=plan.cache_bytes)
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

    def free_bytes(self) -> Free:
        return {HOST: available_memory()} | {name: _gpu(name).free_bytes for name in self._gpus}

    def budget_bytes(self, share: float) -> Free:
        """Of a GPU's, a share of the whole, without what others have."""
        found = {HOST: int(share * available_memory())}
        for name in self._gpus:
            free, total = _gpu(name)
            found[name] = max(0, int(share * total) - (total - free))
        return found


def gpus_of(options: LoadOptions, num_replicas: int) -> tuple[str, ...]:
    """The GPU of each process that a model is loaded into, replica by replica; none where the host's memory counts.

    That is so without a GPU, and where no driver tells of the memory of all of them.
    """
    if expected_backend(options.backend, options.device) != "torch" or options.device == "cpu":
        return ()
    kind, _, first = (options.device or "auto").partition(":")
    if kind not in ("auto", "cuda"):
        return ()
    start = int(first or 0)
    names = tuple(f"cuda:{i}" for i in range(start, start + num_replicas * options.num_ranks))
    return names if all(gpu_memory(name) is not None for name in names) else ()


def _gpu(name: str) -> GpuMemory:
    """Nothing, once the driver tells no more."""
    return gpu_memory(name) or GpuMemory(0, 0)
