"""`tuili doctor`: what this machine offers and what tuili makes of it."""

from __future__ import annotations

import json
import platform
from typing import Annotated, Any

import typer

import tuili
from tuili.cli.terminal import format_bytes
from tuili.config import store_dir
from tuili.machine import memory_limits, process_memory

_PACKAGES = ("numpy", "tokenizers", "jinja2", "huggingface_hub", "httpx", "torch")


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show processor features, the threads allowed and why, memory and versions."""
    report = collect()
    typer.echo(json.dumps(report, indent=2) if as_json else render(report), nl=as_json)


def collect() -> dict[str, Any]:
    """The report as plain values; "processor" is null where the native backend is not built."""
    from tuili.store.store import Store

    models = Store(store_dir()).list()
    return {
        "processor": _processor(),
        "memory": _memory(),
        "store": {
            "folder": str(store_dir()),
            "num_models": len(models),
            "num_bytes": sum(model.num_bytes for model in models),
        },
        "versions": {"tuili": tuili.__version__}
        | {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def render(report: dict[str, Any]) -> str:
    """The report for people."""
    store = report["store"]
    facts = [
        *_processor_facts(report["processor"]),
        *_memory_facts(report["memory"]),
        ("store", f"{store['folder']}: {store['num_models']} models, {format_bytes(store['num_bytes'])}"),
        ("versions", ", ".join(f"{name} {found}" for name, found in report["versions"].items())),
        ("python", report["python"]),
        ("system", report["system"]),
    ]
    return "".join(f"{label:<12}  {fact}\n" for label, fact in facts)


def _processor() -> dict[str, Any] | None:
    try:
        from tuili.backends.cpu.platform import report
    except ImportError:
        return None
    return report()


def _processor_facts(processor: dict[str, Any] | None) -> list[tuple[str, str]]:
    if processor is None:
        return [("processor", "the native backend is not built: reinstall tuili")]
    threads = processor["threads"]
    quota = "none" if threads["quota"] is None else f"{threads['quota']:g}"
    return [
        ("processor", processor["cpu"]),
        ("features", " ".join(processor["features"])),
        ("kernels", processor["isa"]),
        (
            "threads",
            f"{threads['num_threads']}, by {threads['reason']} (affinity {threads['affinity']}, "
            f"physical cores {threads['cores']}, control group quota {quota})",
        ),
    ]


def _memory() -> dict[str, Any]:
    """Of the machine, of the control group, and what this process takes before there is a model."""
    own_bytes, mapped_bytes = process_memory()
    import psutil

    from tuili.runtime.loading.memory import CACHE_SHARE

    limits = memory_limits()
    return {
        "total_bytes": psutil.virtual_memory().total,
        "free_bytes": limits.free_bytes,
        "free_by": limits.reason,
        "group_limit_bytes": limits.group_limit_bytes,
        "kv_cache_limit_bytes": int(limits.free_bytes * CACHE_SHARE),
        "process_own_bytes": own_bytes,
        "process_mapped_bytes": mapped_bytes,
    }


def _memory_facts(memory: dict[str, Any]) -> list[tuple[str, str]]:
    limit, free_by = memory["group_limit_bytes"], memory["free_by"]
    group = "none" if limit is None else format_bytes(limit)
    own, mapped = memory["process_own_bytes"], memory["process_mapped_bytes"]
    return [
        (
            "memory",
            f"{format_bytes(memory['free_bytes'])} free, by {free_by} (in all {format_bytes(memory['total_bytes'])}, "
            f"control group limit {group}), of which {format_bytes(memory['kv_cache_limit_bytes'])} for KV cache",
        ),
        ("process", f"{format_bytes(own)} of its own, {format_bytes(mapped)} mapped from files, without a model"),
    ]


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
