"""The CPU backend: packed weights, int8 activations and paged bfloat16 keys and values, in C++ (csrc)."""

from tuili.backends.cpu.backend import load
from tuili.backends.cpu.quantizing import quantizer

__all__ = ["load", "quantizer"]
