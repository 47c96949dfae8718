"""A moment of an engine in numbers, for whoever watches it from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Prefill(NamedTuple):
    """How far the computation of a prompt has come."""

    num_computed: int = 0  # tokens, those that were found in the cache among them
    num_cached: int = 0  # those
    elapsed_s: float = 0.0  # since it was begun


@dataclass(slots=True)
class Counts:
    """What an engine has done so far. See EngineStats."""

    num_steps: int = 0
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """A moment of the engine. Sequences count, so a request with n = 4 may count four times."""

    num_running: int
    num_waiting: int
    num_blocks: tuple[int, ...]  # per cache group
    num_free_blocks: tuple[int, ...]  # of those: held by no sequence
    num_steps: int
    num_preemptions: int
    num_prefix_queries: int  # prompt tokens looked up in the prefix cache
    num_prefix_hits: int  # of those: found
    num_computed_tokens: int
    num_output_tokens: int
    num_draft_tokens: int  # computed on trial, in the hope that they would be chosen
    num_accepted_tokens: int  # of those: chosen
    max_step_tokens: int | None = None  # computed at a time, once a larger step found no memory
    num_swaps: int = 0  # preemptions that left what was computed in host memory
    prefill: Mapping[str, Prefill] = field(default_factory=dict)  # long ones, by the request's id


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineHealth:
    """Whether an engine answers. Ages, in seconds: since a sign of life, since a step ended or there was none."""

    is_ready: bool
    state: str
    heartbeat_age_s: float = 0.0
    last_progress_age_s: float = 0.0
    num_restarts: int = 0
