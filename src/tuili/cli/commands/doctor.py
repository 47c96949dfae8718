"""`tuili doctor`: what this machine offers and what tuili makes of it."""

from __future__ import annotations

import json
import platform
from typing import Annotated, Any

import typer

import tuili
from tuili.cli.terminal import format_bytes
from tuili.config import store_dir

_PACKAGES = ("numpy", "tokenizers", "jinja2", "huggingface_hub", "httpx", "torch")


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show processor features, the threads allowed and why, memory and versions."""
    report = collect()
    typer.echo(json.dumps(report, indent=2) if as_json else render(report), nl=as_json)


def collect() -> dict[str, Any]:
    """The report as plain values; "processor" is null where the native backend is not built."""
    import psutil

    from tuili.store.store import Store

    models = Store(store_dir()).list()
    return {
        "processor": _processor(),
        "total_memory_bytes": psutil.virtual_memory().total,
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
        *_processor_facts(report["processor"], report["total_memory_bytes"]),
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


def _processor_facts(processor: dict[str, Any] | None, total_memory_bytes: int) -> list[tuple[str, str]]:
    memory = f"{format_bytes(total_memory_bytes)} in all"
    if processor is None:
        return [("processor", "the native backend is not built: reinstall tuili"), ("memory", memory)]
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
        ("memory", f"{format_bytes(processor['available_memory_bytes'])} free, {memory}"),
    ]


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
