"""/metrics: what each loaded model measured, under vLLM's names, and what the server knows of itself.

Prometheus' text format. Nothing in it tells what was asked.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import psutil
from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family

from tuili.engine.wire import EngineFacts
from tuili.runtime.metrics import Counter, Gauge, Histogram, Metric
from tuili.runtime.pool.served_model import ServedModel
from tuili.server.request_log import RequestLog
from tuili.server.serving import Serving

__all__ = ["CONTENT_TYPE", "exposition"]

_FAMILIES: Mapping[type[Metric], Any] = {
    Histogram: HistogramMetricFamily,
    Counter: CounterMetricFamily,
    Gauge: GaugeMetricFamily,
}


def exposition(serving: Serving, log: RequestLog) -> bytes:
    """Everything, as of now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(serving, log))
    return generate_latest(registry)


class _Collector:
    def __init__(self, serving: Serving, log: RequestLog) -> None:
        self._serving = serving
        self._log = log

    def collect(self) -> Iterator[Family]:
        yield from _model_families(self._serving)
        yield from _engine_families(self._serving)
        yield from _server_families(self._serving)
        yield _http_family(self._log.counts)
        yield CounterMetricFamily("tuili:log_lines_dropped", "Lines the log could not take", self._log.num_dropped)


def _model_families(serving: Serving) -> Iterable[Family]:
    families: dict[str, Family] = {}
    for served in serving.pool.loaded():
        stats = served.client.stats()
        stats = replace(stats, num_waiting=stats.num_waiting + _num_queued(serving, served))
        for metric in served.front.meter.snapshot(stats, served.name):
            _add(families, metric)
    return families.values()


def _num_queued(serving: Serving, served: ServedModel) -> int:
    """Sequences that wait here for a place in the model's engine."""
    parts = [part for answering in serving.running() if answering.model is served for part in answering.parts]
    return sum(part.num_sequences for part in parts if part.phase == "queue")


def _add(families: dict[str, Family], metric: Metric) -> None:
    labels = {**metric.labels, "engine": "0"}  # vLLM's dashboards sum over engines
    values = list(labels.values())
    family: Any = families.get(metric.name)
    if family is None:
        kind = next(family for known, family in _FAMILIES.items() if isinstance(metric, known))
        family = families[metric.name] = kind(metric.name, _help(metric.name), labels=list(labels))
    if isinstance(metric, Histogram):
        family.add_metric(values, [(bound, float(count)) for bound, count in metric.buckets.items()], metric.sum)
    elif isinstance(metric, Counter | Gauge):
        family.add_metric(values, metric.value)


def _help(name: str) -> str:
    return name.partition(":")[2].replace("_", " ").capitalize()


def _engine_families(serving: Serving) -> Iterable[Family]:
    restarts = CounterMetricFamily("tuili:engine_restarts", "Times an engine was started again", labels=["model_name"])
    ready = GaugeMetricFamily("tuili:engine_ready", "Whether the engine answers", labels=["model_name"])
    steps = CounterMetricFamily("tuili:engine_steps", "Steps of the engine", labels=["model_name"])
    computed = CounterMetricFamily(
        "tuili:engine_tokens_computed", "Tokens of prompts and answers the model computed", labels=["model_name"]
    )
    free = GaugeMetricFamily("tuili:kv_blocks_free", "Blocks no sequence holds", labels=["model_name", "group"])
    total = GaugeMetricFamily("tuili:kv_blocks_total", "Blocks of the KV cache", labels=["model_name", "group"])
    labels = ["model_name", "device", "kind"]
    memory = GaugeMetricFamily("tuili:model_memory_bytes", "Memory granted, of a GPU or the host (cpu)", labels=labels)
    for served in serving.pool.loaded():
        health, stats = served.client.health, served.client.stats()
        restarts.add_metric([served.name], health.num_restarts)
        ready.add_metric([served.name], float(health.is_ready))
        steps.add_metric([served.name], stats.num_steps)
        computed.add_metric([served.name], stats.num_computed_tokens)
        for part in served.plan.parts:
            for kind, num_bytes in part.by_kind().items():
                memory.add_metric([served.name, part.device, kind], num_bytes)
        for group, (num_free, num_blocks) in enumerate(zip(stats.num_free_blocks, stats.num_blocks, strict=True)):
            free.add_metric([served.name, str(group)], num_free)
            total.add_metric([served.name, str(group)], num_blocks)
    return restarts, ready, steps, computed, free, total, memory, _cache_family(serving)


def _cache_family(serving: Serving) -> Family:
    """How each engine's KV cache is made: labels of a value that is always 1. An engine in this process tells none."""
    labels = ["model_name", "engine", "block_size", "cache_dtype", "num_gpu_blocks", "kv_cache_memory_bytes"]
    family = GaugeMetricFamily("vllm:cache_config_info", "Configuration of the KV cache", labels=labels)
    for served in serving.pool.loaded():
        facts: EngineFacts | None = getattr(served.client, "facts", None)
        if facts is not None:
            told = (facts.block_size, facts.kv_cache_dtype, sum(served.client.stats().num_blocks), facts.cache_bytes)
            family.add_metric([served.name, "0", *map(str, told)], 1)
    return family


def _server_families(serving: Serving) -> Iterable[Family]:
    process = psutil.Process()
    with process.oneshot():
        memory, times, num_fds = process.memory_info(), process.cpu_times(), process.num_fds()
    admission = serving.admission
    yield GaugeMetricFamily("tuili:requests_running", "Requests accepted and not ended", len(serving.running()))
    yield GaugeMetricFamily("tuili:requests_queued", "Requests waiting for an engine", admission.num_queued)
    yield GaugeMetricFamily("tuili:tokens_queued", "Prompt tokens of those", admission.num_queued_tokens)
    yield CounterMetricFamily("tuili:requests_refused", "Requests refused as too many waited", admission.num_refused)
    yield GaugeMetricFamily("process_resident_memory_bytes", "Memory of the HTTP process", memory.rss)
    yield CounterMetricFamily("process_cpu_seconds", "Processor time of the HTTP process", times.user + times.system)
    yield GaugeMetricFamily("process_open_fds", "Open files of the HTTP process", num_fds)
    yield GaugeMetricFamily("process_start_time_seconds", "When it started", process.create_time())
    yield GaugeMetricFamily("tuili:event_loop_tasks", "Tasks of the event loop", len(asyncio.all_tasks()))
    yield GaugeMetricFamily("tuili:process_id", "The HTTP process", os.getpid())


def _http_family(counts: Tally[tuple[str, str, int]]) -> Family:
    family = CounterMetricFamily("tuili:http_requests", "Answers given", labels=["method", "route", "status"])
    for (method, route, status), count in counts.items():
        family.add_metric([method, route, str(status)], count)
    return family
