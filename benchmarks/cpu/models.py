"""Collects the models of the table: files of the store, re-quantizations, and a large shape of seeded random weights.

Knows what every contender can read; measures nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tuili.config import store_dir
from tuili.store.store import Store

QWEN3_1_7B: Mapping[str, int] = {
    "num_layers": 28,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_dim": 128,
    "max_position": 40960,
}
QWEN_VOCABULARY = "ggml-vocab-qwen2.gguf"
VOCABULARY_KEYS = "tokenizer."
TO_DIRECTORY = Path(__file__).parent / "to_directory.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchModel:
    """One model of the table, and the file each contender takes. Variants of one weight set share `directory`."""

    name: str
    label: str
    gguf: Path
    llama_cpp: Mapping[str, Path]  # label of the quantization -> file
    directory: Path  # Hugging Face layout, bfloat16; made when first needed
    full: Path | None = None  # what `directory` is made of, where not of `gguf`
    openvino: Path | None = None
    has_real_weights: bool = True
    notes: Mapping[str, str] = field(default_factory=dict)  # peer -> why it is left out


@dataclass(frozen=True, slots=True)
class ModelMaker:
    """Makes what is missing under `folder`. `llama_cpp` holds the built tools, `sources` llama.cpp's tree."""

    folder: Path
    llama_cpp: Path
    sources: Path

    @staticmethod
    def in_folder(folder: Path) -> ModelMaker:
        """The maker for a folder that setup_peers filled."""
        models = folder / "models"
        models.mkdir(exist_ok=True)
        return ModelMaker(models, folder / "llama_cpp", folder / "llama_cpp_source")

    def smollm2(self) -> BenchModel:
        gguf = self._stored("smollm2:135m")
        q4_0 = self.quantized(gguf, "smollm2-135m-q4_0.gguf", "Q4_0")
        return BenchModel(
            name="smollm2",
            label="SmolLM2-135M Q4_1",
            gguf=gguf,
            llama_cpp={"Q4_1": gguf, "Q4_0": q4_0},
            openvino=gguf,
            directory=self.folder / "smollm2-135m-bf16",
        )

    def gemma3(self) -> BenchModel:
        gguf = self._stored("gemma3:270m")
        return BenchModel(
            name="gemma3",
            label="Gemma 3 270M Q4_K_M",
            gguf=gguf,
            llama_cpp={"Q4_K_M": gguf, "Q4_0": self.quantized(gguf, "gemma3-270m-q4_0.gguf", "Q4_0")},
            directory=self.folder / "gemma3-270m-bf16",
            notes={"openvino": "OpenVINO GenAI reads GGUF files of llama, qwen2 and qwen3 only"},
        )

    def qwen3_q4_k_m(self) -> BenchModel:
        return self._qwen3("Q4_K_M", ("Q4_K_M", "Q4_0"))

    def qwen3_q8_0(self) -> BenchModel:
        return self._qwen3("Q8_0", ("Q8_0",))

    def _qwen3(self, quantization: str, for_llama_cpp: tuple[str, ...]) -> BenchModel:
        source = self.folder / "qwen3-1.7b-shape-f16.gguf"
        if not source.exists():
            write_qwen3_shape(source, self.sources / "models" / QWEN_VOCABULARY)
        files = {q: self.quantized(source, f"qwen3-1.7b-shape-{q.lower()}.gguf", q) for q in for_llama_cpp}
        return BenchModel(
            name=f"qwen3-{quantization.lower()}",
            label=f"Qwen3-1.7B shape {quantization}",
            gguf=files[quantization],
            llama_cpp=files,
            openvino=files[quantization],
            directory=self.folder / "qwen3-1.7b-shape-bf16",
            full=source,
            has_real_weights=False,
        )

    def _stored(self, name: str) -> Path:
        """A link that ends in .gguf, as some readers insist on."""
        store, link = Store(store_dir()), self.folder / f"{name.replace(':', '-')}.gguf"
        if not link.exists():
            link.symlink_to(store.path(name) if store.has(name) else store.pull(name).path)
        return link

    def quantized(self, source: Path, name: str, quantization: str, flags: Sequence[str] = ()) -> Path:
        """FOLDER/models/NAME, made by llama-quantize if it is missing."""
        target = self.folder / name
        if not target.exists():
            part = target.with_suffix(".part")
            tool = self.llama_cpp / "bin" / "llama-quantize"
            command = [str(tool), "--allow-requantize", *flags, str(source), str(part), quantization]
            subprocess.run(command, check=True, capture_output=True)
            part.rename(target)
        return target


def make_directory(model: BenchModel, python: Path) -> Path:
    """model.directory, written by an interpreter with torch, transformers, accelerate and gguf if it is missing."""
    if not (model.directory / "config.json").exists():
        source = model.full or model.gguf
        subprocess.run([str(python), str(TO_DIRECTORY), str(source), str(model.directory)], check=True)
    return model.directory


MODELS = ("smollm2", "gemma3", "qwen3-q4_k_m", "qwen3-q8_0")


def open_bench_model(maker: ModelMaker, name: str) -> BenchModel:
    """One of MODELS, made where it is missing."""
    made: BenchModel = getattr(maker, name.replace("-", "_"))()
    return made


def write_qwen3_shape(target: Path, vocabulary: Path) -> None:
    """Qwen3-1.7B's shape and a Qwen vocabulary over seeded normal weights, in float16."""
    import gguf

    shape, source = QWEN3_1_7B, gguf.GGUFReader(vocabulary)
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen3")
    _write_settings(writer, shape)
    for key, entry in source.fields.items():
        if key.startswith(VOCABULARY_KEYS):
            copy_field(writer, key, entry)
    vocab_size = len(source.fields["tokenizer.ggml.tokens"].data)
    shapes = _qwen3_shapes(shape, vocab_size)
    for name, dims in shapes.items():
        dtype = np.float32 if len(dims) == 1 else np.float16
        writer.add_tensor_info(name, dims, np.dtype(dtype), int(np.prod(dims)) * np.dtype(dtype).itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    for dims in shapes.values():
        writer.write_tensor_data(_random_tensor(dims, generator))
    writer.close()
    part.rename(target)


def copy_field(writer: Any, key: str, field: Any, value: object = None) -> None:
    """Adds a reader's field to a writer, with another value of its type where one is given."""
    sub_type = field.types[-1] if len(field.types) > 1 else None
    writer.add_key_value(key, field.contents() if value is None else value, field.types[0], sub_type)


def _write_settings(writer: Any, shape: Mapping[str, int]) -> None:
    writer.add_name("Qwen3-1.7B shape, random weights")
    writer.add_block_count(shape["num_layers"])
    writer.add_context_length(shape["max_position"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_heads"])
    writer.add_head_count_kv(shape["num_kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_file_type(1)


def _qwen3_shapes(shape: Mapping[str, int], vocab_size: int) -> dict[str, tuple[int, ...]]:
    """GGUF tensor names and [rows, columns]; the head is tied to the embedding."""
    hidden, wide = shape["hidden_size"], shape["intermediate_size"]
    queries, keys = shape["num_heads"] * shape["head_dim"], shape["num_kv_heads"] * shape["head_dim"]
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_q_norm": (shape["head_dim"],),
        "attn_k_norm": (shape["head_dim"],),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (wide, hidden),
        "ffn_up": (wide, hidden),
        "ffn_down": (hidden, wide),
    }
    layers = {f"blk.{i}.{name}.weight": dims for i in range(shape["num_layers"]) for name, dims in layer.items()}
    return {"token_embd.weight": (vocab_size, hidden), "output_norm.weight": (hidden,), **layers}


def _random_tensor(dims: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Gains are one; matrices keep the size of what they multiply."""
    if len(dims) == 1:
        return np.ones(dims, np.float32)
    values = generator.standard_normal(dims, np.float32)
    values *= np.float32(dims[1] ** -0.5)
    return values.astype(np.float16)
