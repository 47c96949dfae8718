"""Model families, one file each, found by looking into this folder.

A family module states which model types it reads (HF_TYPES, GGUF_ARCHS), how checkpoint names map to canonical ones
(HF_NAMES, GGUF_NAMES), which transforms make its values canonical, by leaf name (HF_TRANSFORMS, GGUF_TRANSFORMS), which
tensors are not weights, by prefix or suffix (HF_IGNORED, GGUF_IGNORED), and turns a configuration into a
ModelSpec (spec).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol, cast

from tuili import registry
from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.models.names import Names
from tuili.models.reader import ConfigReader
from tuili.models.spec import ModelSpec


class Family(Protocol):
    """What a family module holds."""

    HF_TYPES: tuple[str, ...]
    GGUF_ARCHS: tuple[str, ...]
    HF_NAMES: Names
    GGUF_NAMES: Names
    HF_TRANSFORMS: Mapping[str, str]
    GGUF_TRANSFORMS: Mapping[str, str]
    HF_IGNORED: tuple[str, ...]
    GGUF_IGNORED: tuple[str, ...]

    def spec(self, c: ConfigReader) -> ModelSpec: ...


def families() -> dict[str, Family]:
    """Every family by its module's name."""
    return cast(dict[str, Family], registry.discover(sys.modules[__name__]))


def for_hf(model_type: str) -> Family:
    """The family that reads config.json's `model_type`. Raises UnsupportedModelError naming those that exist."""
    return _find(model_type, "model_type", [(t, f) for f in families().values() for t in f.HF_TYPES])


def for_gguf(arch: str) -> Family:
    """The family that reads GGUF's general.architecture. Raises UnsupportedModelError naming those that exist."""
    return _find(arch, "general.architecture", [(a, f) for f in families().values() for a in f.GGUF_ARCHS])


def read_spec(family: Family, config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a configuration from hf_config or gguf_config.

    Raises ModelFileError for a bad value, UnsupportedModelError for anything that changes the mathematics and that
    the family does not implement.
    """
    reader = ConfigReader(config)
    spec = family.spec(reader)
    reader.refuse_unread()
    return spec


def _find(name: str, key: str, entries: list[tuple[str, Family]]) -> Family:
    table = registry.index(entries, key)
    if not isinstance(name, str):
        raise ModelFileError(f"{key} is {name!r:.80}; allowed: one of {', '.join(sorted(table))}")
    if name not in table:
        raise UnsupportedModelError(f"{key} {name!r:.80} is not implemented; allowed: {', '.join(sorted(table))}")
    return table[name]
