"""A model that a pool has loaded, as everybody else sees it, what runs it, and what may be asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tuili.engine.client import EngineClient
from tuili.runtime.front.front import Front
from tuili.runtime.pool.memory_plan import MemoryPlan
from tuili.store.records import ModelFiles


class ServedEngine(EngineClient, Protocol):
    """An engine that a pool can account for and let go of."""

    on_given_up: Callable[[], None] | None  # called when it has ended again and again, and nobody waits for it

    @property
    def is_given_up(self) -> bool:
        """Whether that was so and it has not come back since, though it may try."""
        ...

    @property
    def is_outdated(self) -> bool:
        """Whether it will not, as its files are others now."""
        ...

    @property
    def own_bytes(self) -> int:
        """What it has taken of the memory granted to it."""
        ...

    async def resize_cache(self, num_bytes: int, *, may_forget: bool = False) -> int:
        """Bytes its KV cache takes when it is full, after it was asked to take so many: at least what is in use and one
        context more, at most what it was started with. Cached prefixes are in use unless they may be forgotten.
        """
        ...

    async def aclose(self) -> None:
        """Frees all of it; what still runs ends with an error."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedModel:
    """A model that runs: its text side, and the engine that answers for it."""

    front: Front
    client: ServedEngine


@dataclass(kw_only=True, slots=True, eq=False)
class ServedModel:
    """A loaded model: its text side, and the client of its engine.

    plan: what it is granted of which memory. loaded_at and expires_at are seconds since the epoch; expires_at is
    None for a model that stays. num_active: requests that use or await it.
    """

    name: str
    aliases: tuple[str, ...]
    front: Front
    client: EngineClient
    files: ModelFiles
    max_num_seqs: int
    plan: MemoryPlan
    loaded_at: float
    load_s: float
    expires_at: float | None = None
    is_pinned: bool = False
    num_active: int = 0

    @property
    def num_bytes(self) -> int:
        """All its memory."""
        return self.plan.num_bytes

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes by what takes them."""
        return self.plan.by_kind()


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """A model that may be asked for. files tell sizes, digest and license; nothing of it need be loaded."""

    name: str
    aliases: tuple[str, ...]
    files: ModelFiles
    is_loaded: bool
    max_model_len: int | None = field(default=None)  # known once it is loaded

    @property
    def names(self) -> tuple[str, ...]:
        """All that it is known by, each once."""
        return tuple(dict.fromkeys((self.name, *self.aliases)))
