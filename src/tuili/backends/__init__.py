"""Backends by name. One is imported when it is asked for, so that none pays for another's dependencies."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuili.backend import Backend, BackendOptions
from tuili.checks import refusal
from tuili.config import BACKENDS as BACKENDS
from tuili.errors import InvalidRequestError
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor
from tuili.weights.quantizing import Quantizer


def load_backend(name: str, spec: ModelSpec, weights: Mapping[str, Tensor], options: BackendOptions) -> Backend:
    """Loads `spec` with its canonical weights into the backend called `name`.

    Raises InvalidRequestError for a name that is not in BACKENDS and for texts longer than learned positions reach,
    UnsupportedModelError for what the backend lacks.
    """
    module = _module(name)
    for size in ("tensor_parallel_size", "pipeline_parallel_size"):
        if getattr(options, size) > 1 and name != "torch":
            raise refusal(size, getattr(options, size), f"1 for the {name} backend")
    if spec.position == "learned" and options.max_model_len > spec.max_position:
        raise refusal("max_model_len", options.max_model_len, f"in [1, {spec.max_position}] for this model")
    backend: Backend = module.load(spec, weights, options)
    return backend


def backend_name(backend: Backend) -> str:
    """Of BACKENDS: that of the package it is from."""
    return type(backend).__module__.removeprefix(f"{__name__}.").partition(".")[0]


def load_quantizer(name: str, num_threads: int) -> Quantizer:
    """How the backend called `name` quantizes weights. Raises InvalidRequestError for a name not in BACKENDS."""
    quantizer: Quantizer = _module(name).quantizer(num_threads)
    return quantizer


def expected_backend(name: str | None, device: str | None) -> str:
    """What choose_backend will probably say, told without importing torch."""
    if name is None and device in (None, "auto"):
        return "torch" if _may_see_a_gpu() else "cpu"
    return choose_backend(name, device)


def choose_backend(name: str | None, device: str | None) -> str:
    """`name`, else torch where a device other than the CPU is asked for, or where torch sees a GPU, else cpu.

    Imports torch only where it may see one: with NVIDIA's or AMD's driver, or on a Mac of Apple's own processors.
    """
    if name is not None:
        return name
    if device in (None, "auto"):
        return "torch" if _torch_sees_a_gpu() else "cpu"
    return "cpu" if device == "cpu" else "torch"


_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of Linux: NVIDIA's, Windows's for WSL, AMD's
_WINDOWS_DRIVERS = ("System32/nvcuda.dll", "System32/amdhip64.dll")
_HIDDEN = ("", "-1")  # CUDA_VISIBLE_DEVICES where no GPU is to be seen


def _may_see_a_gpu() -> bool:
    """Whether it is worth the seconds of importing torch to ask it."""
    if importlib.util.find_spec("torch") is None:
        return False
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in _HIDDEN:
        return False
    if sys.platform == "win32":
        root = Path(os.environ.get("SYSTEMROOT", "C:/Windows"))
        return any((root / name).exists() for name in _WINDOWS_DRIVERS)
    return any(map(Path.exists, map(Path, _DRIVERS)))


def _torch_sees_a_gpu() -> bool:
    if not _may_see_a_gpu():
        return False
    found: bool = importlib.import_module(f"{__name__}.torch.devices").has_gpu()
    return found


def _module(name: str) -> Any:
    if name not in BACKENDS:
        raise refusal("backend", name, f"one of {', '.join(BACKENDS)}")
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InvalidRequestError(
            f"backend {name!r} needs a package that is not installed: pip install 'tuili[{name}]'", param="backend"
        ) from None
