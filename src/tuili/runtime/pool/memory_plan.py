"""What a model is granted, by device: how many bytes of which memory, and of what. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

HOST = "cpu"  # the device whose memory is the machine's

Free = Mapping[str, int]  # device -> bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class DevicePart:
    """Bytes of one device."""

    device: str
    weights: int
    kv_cache: int
    workspace: int
    other: int = 0  # interpreter, libraries, tokenizer; of a GPU the driver's

    @property
    def num_bytes(self) -> int:
        return self.weights + self.kv_cache + self.workspace + self.other

    def by_kind(self) -> Mapping[str, int]:
        """Bytes by what takes them."""
        return {"weights": self.weights, "kv_cache": self.kv_cache, "workspace": self.workspace, "other": self.other}


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """A context and a cache that fit. cache_bytes: of each engine's cache as the engine counts it, which is of the
    process where a block takes most. A device has one part.
    """

    max_model_len: int
    cache_bytes: int
    parts: tuple[DevicePart, ...]

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    @property
    def devices(self) -> Free:
        """All bytes of each device."""
        return {part.device: part.num_bytes for part in self.parts}

    @property
    def gpu_bytes(self) -> int:
        """Of all GPUs together."""
        return sum(part.num_bytes for part in self.parts if part.device != HOST)

    @property
    def is_on_gpu(self) -> bool:
        """With a cache there, which is allocated when the model is loaded."""
        return any(part.device != HOST for part in self.parts)

    @property
    def kv_cache_bytes(self) -> int:
        """Of all devices together."""
        return sum(part.kv_cache for part in self.parts)

    def by_kind(self) -> Mapping[str, int]:
        """Bytes of all devices by what takes them."""
        found = [part.by_kind() for part in self.parts]
        return {kind: sum(sizes[kind] for sizes in found) for kind in found[0]}

    def with_host_cache(self, num_bytes: int) -> MemoryPlan:
        """With so many bytes of it in host memory, where all of it is."""
        (part,) = self.parts
        return replace(self, parts=(replace(part, kv_cache=num_bytes),))
