"""Which device and which dtypes a model runs in. Knows torch's devices and the options' words; no model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from tuili.checks import refusal
from tuili.config import KvCacheDtype
from tuili.errors import DeviceFailureError, InvalidRequestError

_log = logging.getLogger(__name__)

DEVICE_TYPES = ("cuda", "xpu", "mps", "cpu")  # in the order in which "auto" looks for them
DTYPES: Mapping[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
    "float": torch.float32,
}
BATCHED_TOKENS: Mapping[str, int] = {"cuda": 8192}  # of a step, unless somebody says: so many fill a GPU
_CACHE_DTYPES: Mapping[KvCacheDtype, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
_FP8_CAPABILITY = (8, 9)
_ACCELERATOR_ERRORS = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()  # since 2.8
_FAILURES = (  # in messages of torch, its libraries and Triton
    *("CUDA error", "HIP error", "XPU error", "NCCL error", "Triton Error [CUDA]", "Triton Error [HIP]"),
    *("CUBLAS_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_INTERNAL_ERROR", "CUDNN_STATUS_EXECUTION_FAILED"),
)


def has_gpu() -> bool:
    """Whether torch sees a GPU: NVIDIA's or AMD's, or Apple's. Intel's are used when they are asked for."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def choose_device(name: str | None) -> torch.device:
    """The device called `name`, as config.check_device allows it; None and "auto" are the first one there is.

    Raises InvalidRequestError for a device that torch does not see here.
    """
    if name in (None, "auto"):
        return _indexed(torch.device(next(kind for kind in DEVICE_TYPES if _module(kind).is_available())))
    device = torch.device(str(name))
    module = _module(device.type)
    count = module.device_count() if module.is_available() else 0
    if (device.index or 0) >= count:
        raise InvalidRequestError(f"device {name!r}: torch {torch.__version__} sees {count} of them", param="device")
    return _indexed(device)


def _module(kind: str) -> Any:
    return getattr(torch, kind)


def _indexed(device: torch.device) -> torch.device:
    """With its number, where there may be several: "cuda" alone would mean whatever is current later."""
    if device.type in ("cuda", "xpu") and device.index is None:
        return torch.device(device.type, _module(device.type).current_device())
    return device


def choose_dtype(name: str, device: torch.device, stored_format: str) -> torch.dtype:
    """The dtype of weights and activations.

    "auto" is float32 on the CPU; on a GPU float16 for a checkpoint that is stored so, else bfloat16, or float16 where
    the GPU has no bfloat16. Raises InvalidRequestError.
    """
    if name != "auto":
        if name not in DTYPES:
            raise refusal("dtype", name, f"one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else True
    return torch.float16 if stored_format == "F16" or not has_bfloat16 else torch.bfloat16


def warn_of_tf32(device: torch.device, dtype: torch.dtype) -> None:
    """Where the process lets float32 products be rounded to ten bits. That is its own affair, and off by default."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)  # since 2.9; asking both ways is an error
    is_on = matmul.allow_tf32 if precision is None else precision == "tf32"
    if device.type == "cuda" and dtype == torch.float32 and is_on:
        _log.warning(
            "float32 products are rounded to TF32, as this process has set it: logits are not the reference's to 1e-4 "
            "(torch.set_float32_matmul_precision('highest') changes that)"
        )


@contextmanager
def current(device: torch.device) -> Iterator[torch.device]:
    """Makes `device` the thread's own meanwhile: where events are recorded, memory is pinned and Triton launches.

    Raises DeviceFailureError for what torch raises when the device can compute no more.
    """
    try:
        with _module(device.type).device(device) if device.type in ("cuda", "xpu") else nullcontext():
            yield device
    except RuntimeError as error:
        if not is_device_failure(error):
            raise
        raise device_failure(error, device) from error.with_traceback(None)


def is_device_failure(error: RuntimeError) -> bool:
    """Whether a driver reported an error after which it refuses the process everything; no memory left is none."""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        return False
    return isinstance(error, _ACCELERATOR_ERRORS) or any(word in str(error) for word in _FAILURES)


def device_failure(error: RuntimeError, device: torch.device) -> DeviceFailureError:
    """Says what became of the device, and what helps."""
    reason = str(error).partition("\n")[0]
    return DeviceFailureError(
        f"{device} failed: {reason}. This process can compute nothing there any more: load the model in a new process "
        "(a server's engine is restarted by itself). If it recurs, CUDA_LAUNCH_BLOCKING=1 tells where"
    )


def synchronize(device: torch.device) -> None:
    """Waits until everything is done that was asked of the device."""
    if device.type != "cpu":
        _module(device.type).synchronize()


def release_memory(device: torch.device) -> None:
    """Gives back what torch keeps of the device's memory without using it; nothing where the device has failed."""
    if device.type == "cpu":
        return
    try:
        _module(device.type).empty_cache()
    except RuntimeError as error:
        if not is_device_failure(error):
            raise


def check_cache_dtype(name: KvCacheDtype, device: torch.device) -> None:
    """Raises InvalidRequestError for a cache whose elements the GPU's instructions do not know."""
    if name == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < _FP8_CAPABILITY:
        raise refusal("kv_cache_dtype", name, "auto, bfloat16 or int8 on a GPU of compute capability below 8.9")


def cache_dtype(name: KvCacheDtype, dtype: torch.dtype) -> torch.dtype:
    """The dtype of cached keys and values; "auto" is the model's own."""
    return dtype if name == "auto" else _CACHE_DTYPES[name]
