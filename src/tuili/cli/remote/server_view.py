"""What `tuili ps` and `tuili top` show of a running server: asked for in three requests, drawn as text."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuili.cli.remote.server_client import ServerClient
from tuili.cli.terminal import format_bytes, format_table, one_line

_METRIC = re.compile(r"^([a-zA-Z_:]+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_MODEL = re.compile(r'model_name="([^"]*)"')
_PHASES = ("queue", "prefill", "decode")
_LONG_S = 10 * 365 * 86400


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerView:
    """A moment of a server, as plain values: --json prints them."""

    url: str
    models: Sequence[dict[str, Any]]
    requests: Sequence[dict[str, Any]]
    queued_requests: int
    queued_tokens: int
    tokens_per_s: float
    resident_bytes: float
    cached: float  # share of prompt tokens that were found in prefix caches
    cache_used: dict[str, float]  # by model, the share of KV blocks that sequences hold


def view(client: ServerClient) -> ServerView:
    """Raises what the server tells."""
    running = client.get("/v1/requests")
    metrics = client.text("/metrics")
    return ServerView(
        url=str(client.address),
        models=client.get("/api/ps")["models"],
        requests=running["data"],
        queued_requests=running["queued_requests"],
        queued_tokens=running["queued_tokens"],
        tokens_per_s=round(sum(row["tokens_per_s"] for row in running["data"]), 2),
        resident_bytes=next(
            (value for name, _, value in _samples(metrics) if name == "process_resident_memory_bytes"), 0
        ),
        cached=_cached(metrics),
        cache_used=_cache_used(metrics),
    )


def render_models(models: Sequence[dict[str, Any]]) -> str:
    """A line per loaded model."""
    return format_table(
        ("NAME", "MEMORY", "OF THAT CACHE", "CONTEXT", "UNTIL"), [_model_cells(model) for model in models]
    )


def render_view(shown: ServerView) -> str:
    """The whole of it: totals, models, requests."""
    phases = Counter(row["phase"] for row in shown.requests)
    totals = [
        f"{shown.url}  memory {format_bytes(shown.resident_bytes + sum(model['size'] for model in shown.models))}, "
        f"of that HTTP process {format_bytes(shown.resident_bytes)}",
        "  ".join(f"{name} {phases[name]}" for name in _PHASES)
        + f"  waiting tokens {shown.queued_tokens}  cached {shown.cached:.0%}  {shown.tokens_per_s:.1f} tokens/s",
    ]
    header = ("MODEL", "MEMORY", "OF THAT CACHE", "CONTEXT", "UNTIL", "CACHE IN USE")
    models = [
        (*_model_cells(model), f"{shown.cache_used.get(model['model'].removesuffix(':latest'), 0):.0%}")
        for model in shown.models
    ]
    columns = ("REQUEST", "MODEL", "KEY", "PHASE", "PROMPT", "CACHED", "OUTPUT", "TOKENS/S", "AGE")
    rows = [_request_cells(row) for row in shown.requests]
    return "\n".join([*totals, "", format_table(header, models), format_table(columns, rows)])


def _model_cells(model: dict[str, Any]) -> tuple[str, ...]:
    memory = model.get("memory", {})
    return (
        one_line(model["name"]),
        _sizes(model),
        format_bytes(memory.get("kv_cache", 0)),
        str(model["context_length"]),
        _until(model["expires_at"]),
    )


def _sizes(model: dict[str, Any]) -> str:
    """All of it, and what it takes of each GPU."""
    devices = {name: found["size"] for name, found in model.get("devices", {}).items() if name != "cpu"}
    where = [f"{one_line(name)} {format_bytes(size)}" for name, size in devices.items()]
    return format_bytes(model["size"]) + (f" ({', '.join(where)})" if where else "")


def _until(expires_at: str) -> str:
    left_s = datetime.fromisoformat(expires_at).timestamp() - time.time()
    return "for ever" if left_s > _LONG_S else f"{max(left_s, 0):.0f} s" if left_s < 120 else f"{left_s / 60:.0f} min"


def _request_cells(row: dict[str, Any]) -> tuple[str, ...]:
    texts = (row["id"][-10:], row["model"], row["key"], row["phase"])
    prompt = f"{row['computed_tokens']}/{row['prompt_tokens']}" if row["phase"] == "prefill" else row["prompt_tokens"]
    counts = (prompt, row["cached_tokens"], row["output_tokens"])
    return (*map(one_line, texts), *map(str, counts), f"{row['tokens_per_s']:.1f}", f"{row['age_s']:.0f} s")


def _samples(metrics: str) -> list[tuple[str, str, float]]:
    """(name, labels, value) of every line of Prometheus' text format that is a sample."""
    return [(match[1], match[2] or "", float(match[3])) for match in _METRIC.finditer(metrics)]


def _cached(metrics: str) -> float:
    hits, queries = (
        sum(value for name, _, value in _samples(metrics) if name == f"vllm:prefix_cache_{what}_total")
        for what in ("hits", "queries")
    )
    return hits / queries if queries else 0.0


def _cache_used(metrics: str) -> dict[str, float]:
    blocks: dict[str, Counter[str]] = {}
    for name, labels, value in _samples(metrics):
        if name in ("tuili:kv_blocks_free", "tuili:kv_blocks_total") and (model := _MODEL.search(labels)):
            blocks.setdefault(model[1], Counter())[name.rpartition("_")[2]] += int(value)
    return {model: 1 - counts["free"] / counts["total"] for model, counts in blocks.items() if counts["total"]}
