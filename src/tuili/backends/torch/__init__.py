"""The torch backend: any decoder on CUDA, XPU, MPS or the CPU, with paged keys and values and packed weights."""

from tuili.backends.torch.backend import load
from tuili.weights.quantizing import Quantizer, quantize_tensor

__all__ = ["load", "quantizer"]


def quantizer(num_threads: int) -> Quantizer:
    """The Quantizer of this backend: one thread, whatever their number."""
    return quantize_tensor
