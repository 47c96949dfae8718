"""Weight formats, found by directory discovery and looked up by name, GGUF id or safetensors dtype."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tuili import registry
from tuili.quant import formats
from tuili.quant.format import QuantFormat

_FOUND: tuple[QuantFormat, ...] = tuple(module.FORMAT for module in registry.discover(formats).values())

BY_NAME: Mapping[str, QuantFormat] = MappingProxyType(registry.index([(f.name, f) for f in _FOUND], "format"))
BY_GGUF_ID: Mapping[int, QuantFormat] = MappingProxyType({f.gguf_id: f for f in _FOUND})
BY_SAFETENSORS_DTYPE: Mapping[str, QuantFormat] = MappingProxyType(
    registry.index([(f.safetensors_dtype, f) for f in _FOUND if f.safetensors_dtype is not None], "safetensors dtype")
)
