"""What a pool of models is told at start. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuili.runtime.loading.loading import LoadOptions


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model named at start, by a stored name or a path, and what clients call it if something else."""

    model: str
    served_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSettings:
    """models are loaded at start and stay until memory is needed for others, with is_pinned even then.

    memory_share: of the memory that is free at start, what all models together may take. keep_alive_s: how long a
    model that came on demand stays when idle; 0 no longer than its requests, negative for ever. load_timeout_s bounds
    the wait for room and for loading, hang_timeout_s is RestartPolicy's.
    allow_pull fetches known models that are not stored, max_pulls of them at once; only_named leaves no model but
    `models`. seed: what requests without a seed draw theirs from; None is chance. num_replicas: engines of each model,
    loaded as `load` says each.
    """

    models: tuple[NamedModel, ...] = ()
    load: LoadOptions = field(default_factory=LoadOptions)
    num_replicas: int = 1
    max_loaded_models: int | None = None
    memory_share: float = 0.9
    keep_alive_s: float = 300.0
    load_timeout_s: float = 300.0
    hang_timeout_s: float = 60.0
    is_pinned: bool = False
    allow_pull: bool = False
    max_pulls: int = 4
    only_named: bool = False
    seed: int | None = None
    generation_config: str = "auto"
    override_generation_config: Mapping[str, Any] = field(default_factory=dict)
    default_template_args: Mapping[str, Any] = field(default_factory=dict)
