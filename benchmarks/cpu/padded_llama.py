"""Widens a model of the llama family with zeros until every row fills blocks of 256 weights; its logits stay the same.

K-quants store rows in such blocks, and llama-quantize gives rows of another length another format. New columns of the
residual stream are zero in the embedding and in everything that writes to it, new heads and neurons have no weights.
A root mean square over more numbers is smaller, so gains and epsilon shrink with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.cpu.models import copy_field
from numpy.typing import NDArray

BLOCK = 256
AXES: Mapping[str, tuple[str, ...]] = {
    "token_embd": ("", "hidden"),
    "output": ("", "hidden"),
    "output_norm": ("hidden",),
    "attn_norm": ("hidden",),
    "attn_q": ("queries", "hidden"),
    "attn_k": ("keys", "hidden"),
    "attn_v": ("keys", "hidden"),
    "attn_output": ("hidden", "queries"),
    "ffn_norm": ("hidden",),
    "ffn_gate": ("neurons", "hidden"),
    "ffn_up": ("neurons", "hidden"),
    "ffn_down": ("hidden", "neurons"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Widths:
    """Sizes before and after; a head keeps its size, a key head the number of query heads that share it."""

    hidden: int
    neurons: int
    heads: int
    kv_heads: int
    epsilon: float

    def __post_init__(self) -> None:
        if self.hidden % self.heads or BLOCK % self.head_dim or self.padded("hidden") // self.head_dim % self.group:
            raise ValueError(f"{self}: heads that do not fill blocks of {BLOCK}")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def share(self) -> float:
        """Of the new width that the old one fills."""
        return self.hidden / self.padded("hidden")

    def padded(self, axis: str) -> int:
        """How long an axis of AXES becomes."""
        if axis == "keys":
            return self.padded("queries") // self.group
        return -(-(self.neurons if axis == "neurons" else self.hidden) // BLOCK) * BLOCK

    def settings(self) -> Mapping[str, int | float]:
        """Metadata that changes, without the name of the architecture."""
        heads = self.padded("queries") // self.head_dim
        return {
            "embedding_length": self.padded("hidden"),
            "feed_forward_length": self.padded("neurons"),
            "attention.head_count": heads,
            "attention.head_count_kv": heads // self.group,
            "attention.layer_norm_rms_epsilon": self.epsilon * self.share,
        }

    def widened(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """A tensor of the old model in its new size."""
        axes = AXES[name.removesuffix(".weight").rpartition(".")[2]]
        if len(axes) == 1:
            values = values * np.float32(self.share**0.5)
        missing = [self.padded(a) - n if a else 0 for a, n in zip(axes, values.shape, strict=True)]
        return np.pad(values, [(0, count) for count in missing])


def write_padded(source: Path, target: Path) -> None:
    """The model of `source` in float32, widened. Raises ValueError for heads that do not fit, KeyError for biases."""
    import gguf

    reader = gguf.GGUFReader(source)

    def value(name: str) -> int | float:
        number: int | float = reader.fields[f"llama.{name}"].contents()
        return number

    widths = Widths(
        hidden=int(value("embedding_length")),
        neurons=int(value("feed_forward_length")),
        heads=int(value("attention.head_count")),
        kv_heads=int(value("attention.head_count_kv")),
        epsilon=value("attention.layer_norm_rms_epsilon"),
    )
    changed = {f"llama.{name}": number for name, number in widths.settings().items()}
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            copy_field(writer, key, field, changed.get(key))
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, widths.widened(tensor.name, values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)
