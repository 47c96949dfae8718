"""What the server needs of a pool of models; the pool itself is runtime's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from tuili.engine.client import EngineClient
from tuili.runtime.front import Front
from tuili.runtime.served_model import ModelCard
from tuili.store.records import ModelFiles


class ServedModel(Protocol):
    """A loaded model."""

    name: str
    aliases: tuple[str, ...]
    front: Front
    client: EngineClient
    files: ModelFiles
    memory: Mapping[str, int]  # bytes, by what takes them
    max_num_seqs: int
    loaded_at: float
    expires_at: float | None


class ModelPool(Protocol):
    """Loads models by name."""

    def use(self, name: str, *, keep_alive_s: float | None = None) -> AbstractAsyncContextManager[ServedModel]: ...

    async def load(self, name: str, *, keep_alive_s: float | None = None, pin: bool = False) -> ServedModel: ...

    async def unload(self, name: str) -> None: ...

    def loaded(self) -> tuple[ServedModel, ...]: ...

    @property
    def default_name(self) -> str | None: ...

    @property
    def given_names(self) -> Collection[str]: ...

    def cards(self) -> tuple[ModelCard, ...]: ...

    def card(self, name: str) -> ModelCard: ...

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...
