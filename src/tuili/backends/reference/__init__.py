"""The reference backend: NumPy, float32, complete and slow. Every other backend is measured against it.

Weights are dequantized to float32 when loaded; arithmetic is plain float32 with sums as NumPy and its BLAS do them.
"""

from tuili.backends.reference.executor import load
from tuili.weights.quantizing import Quantizer, quantize_tensor

__all__ = ["load", "quantizer"]


def quantizer(num_threads: int) -> Quantizer:
    """The Quantizer of this backend: one thread, whatever their number."""
    return quantize_tensor
