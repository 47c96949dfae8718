"""Counters and histograms of a loaded model's requests, under the names and in the shapes of vLLM's `get_metrics`.

Knows finished requests and the engine's counters; not who asked. Histograms count up to and including
their bounds, as Prometheus does, and end in "+Inf".
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tuili.engine.stats import EngineStats
from tuili.types import Done, FinishReason, SamplingParams

_BOUNDS_S = tuple(digit * 10.0**power for power in range(-4, 3) for digit in (1, 2.5, 5))
_BOUNDS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))  # of tokens and answers
_SECONDS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_inference_time_seconds",
)
_COUNTS = (
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_max_num_generation_tokens",
    "request_prefill_kv_computed_tokens",
    "request_params_n",
    "request_params_max_tokens",
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured value by name; labels tell values of one name apart."""

    name: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """Only grows."""

    value: int


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """The state of this moment."""

    value: float


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """Observations, in seconds where the name says so.

    buckets maps upper bounds to how many were not above them; the last is "+Inf".
    """

    count: int
    sum: float
    buckets: dict[str, int]


class _Observations:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class RequestMeter:
    """Takes in requests as they finish. Any thread may add, any may read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._observed = {name: _Observations(_BOUNDS_S) for name in _SECONDS}
        self._observed |= {name: _Observations(_BOUNDS) for name in _COUNTS}
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._endings: Tally[str] = Tally()

    def add_prompt(self, num_tokens: int, num_cached: int) -> None:
        """Takes in a prompt that has been computed: its request's first token has come."""
        with self._lock:
            self._num_prompt_tokens += num_tokens
            self._num_cached_tokens += num_cached

    def add(
        self,
        done: Done,
        reasons: Iterable[FinishReason],
        gaps_s: Sequence[float],
        sampling: SamplingParams,
        num_longest: int,
    ) -> None:
        """Takes in a finished request: what it asked, how each answer ended, the seconds between its tokens, and the
        tokens of its longest answer.
        """
        usage, timings = done.usage, done.timings
        prefill_s = timings.time_to_first_token_s - timings.queue_s
        num_gaps = usage.num_output_tokens - sampling.n
        values: tuple[tuple[str, float], ...] = (
            ("request_prompt_tokens", usage.num_prompt_tokens),
            ("request_generation_tokens", usage.num_output_tokens),
            ("request_max_num_generation_tokens", num_longest),
            ("request_prefill_kv_computed_tokens", usage.num_prompt_tokens - usage.num_cached_tokens),
            ("request_params_n", sampling.n),
            *(() if sampling.max_tokens is None else (("request_params_max_tokens", sampling.max_tokens),)),
            *((("request_time_per_output_token_seconds", sum(gaps_s) / num_gaps),) if num_gaps > 0 else ()),
            ("time_to_first_token_seconds", timings.time_to_first_token_s),
            ("e2e_request_latency_seconds", timings.time_to_first_token_s + timings.decode_s),
            ("request_queue_time_seconds", timings.queue_s),
            ("request_prefill_time_seconds", prefill_s),
            ("request_decode_time_seconds", timings.decode_s),
            ("request_inference_time_seconds", prefill_s + timings.decode_s),
            *(("inter_token_latency_seconds", gap) for gap in gaps_s),
        )
        with self._lock:
            for name, value in values:
                self._observed[name].add(value)
            self._endings.update(reasons)

    def add_unfinished(self, reason: FinishReason, count: int) -> None:
        """Takes in answers of a request that broke, or that nobody wants any more."""
        with self._lock:
            self._endings[reason] += count

    def snapshot(self, stats: EngineStats, model_name: str) -> list[Metric]:
        """Everything measured so far, and the engine's state."""
        labels = {"model_name": model_name}
        metrics: list[Metric] = [
            Gauge(f"vllm:{name}", dict(labels), value)
            for name, value in (
                ("num_requests_running", stats.num_running),
                ("num_requests_waiting", stats.num_waiting),
                ("kv_cache_usage_perc", _usage(stats)),
            )
        ]
        with self._lock:
            counts = (
                ("prefix_cache_queries", stats.num_prefix_queries),
                ("prefix_cache_hits", stats.num_prefix_hits),
                ("num_preemptions", stats.num_preemptions),
                ("prompt_tokens", self._num_prompt_tokens),
                ("prompt_tokens_cached", self._num_cached_tokens),
                ("generation_tokens", stats.num_output_tokens),
                ("spec_decode_num_draft_tokens", stats.num_draft_tokens),
                ("spec_decode_num_accepted_tokens", stats.num_accepted_tokens),
            )
            metrics += [Counter(f"vllm:{name}", dict(labels), value) for name, value in counts]
            metrics += [
                Counter("vllm:request_success", {**labels, "finished_reason": reason}, count)
                for reason, count in self._endings.items()
            ]
            metrics += [_histogram(name, dict(labels), observed) for name, observed in self._observed.items()]
        return metrics


def _usage(stats: EngineStats) -> float:
    """The share of blocks that sequences hold, of the fullest group."""
    pools = zip(stats.num_free_blocks, stats.num_blocks, strict=True)
    return max((1.0 - free / total for free, total in pools if total), default=0.0)


def _histogram(name: str, labels: dict[str, str], observed: _Observations) -> Histogram:
    bounds = (*(f"{bound:g}" for bound in observed.bounds), "+Inf")
    buckets = dict(zip(bounds, accumulate(observed.counts), strict=True))
    return Histogram(f"vllm:{name}", labels, buckets["+Inf"], observed.sum, buckets)
