"""Weights quantized by the C++ runtime, on all threads: the bytes that NumPy's quantizers give. Computes nothing."""

from __future__ import annotations

import numpy as np

from tuili.backends.cpu import _native
from tuili.machine import thread_limits
from tuili.quant.format import QuantFormat, Tensor
from tuili.weights.quantizing import Quantizer, quantize_tensor, refusal


def quantizer(num_threads: int) -> Quantizer:
    """The Quantizer of this backend; 0 threads are as many as this process may use."""
    count = num_threads or min(thread_limits(0).num_threads, _native.MAX_THREADS)

    def quantize(target: QuantFormat, tensor: Tensor, name: str) -> Tensor:
        if target.group_size == 1:
            return quantize_tensor(target, tensor, name)
        rows = np.ascontiguousarray(tensor.data)
        cols = tensor.shape[-1]
        out = np.empty((len(rows), target.row_bytes(cols)), np.uint8)
        if not _native.quantize_weights(target.name, tensor.format.name, rows, cols, out, count):
            raise refusal(target, tensor, name)
        return Tensor(target, tensor.shape, out)

    return quantize
