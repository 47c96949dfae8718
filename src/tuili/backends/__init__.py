"""Backends by name. One is imported when it is asked for, so that none pays for another's dependencies."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from tuili.backend import Backend, BackendOptions
from tuili.checks import refusal
from tuili.config import BACKENDS as BACKENDS
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor
from tuili.weights.quantizing import Quantizer


def load_backend(name: str, spec: ModelSpec, weights: Mapping[str, Tensor], options: BackendOptions) -> Backend:
    """Loads `spec` with its canonical weights into the backend called `name`.

    Raises InvalidRequestError for a name that is not in BACKENDS and for texts longer than learned positions reach,
    UnsupportedModelError for what the backend lacks.
    """
    module = _module(name)
    if spec.position == "learned" and options.max_model_len > spec.max_position:
        raise refusal("max_model_len", options.max_model_len, f"in [1, {spec.max_position}] for this model")
    backend: Backend = module.load(spec, weights, options)
    return backend


def load_quantizer(name: str, num_threads: int) -> Quantizer:
    """How the backend called `name` quantizes weights. Raises InvalidRequestError for a name not in BACKENDS."""
    quantizer: Quantizer = _module(name).quantizer(num_threads)
    return quantizer


def _module(name: str) -> Any:
    if name not in BACKENDS:
        raise refusal("backend", name, f"one of {', '.join(BACKENDS)}")
    return importlib.import_module(f"{__name__}.{name}")
