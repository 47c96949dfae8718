"""Small GGUF models as structures that tests can take apart: pairs, tensor table, data, written as they stand."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from support import gguf_bytes as g
from support.random_models import random_weights
from tuili.models import families
from tuili.models.gguf_config import gguf_config
from tuili.models.names import GGUF
from tuili.quant import BY_NAME

ALIGNMENT = 32
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Pair:
    """A key and its value. `element` is the type of an array's elements; `count` may lie about their number."""

    key: str | bytes
    kind: int
    value: Any
    element: int | None = None
    count: int | None = None

    @cached_property
    def encoded(self) -> bytes:
        if self.kind == g.ARRAY and self.element is not None:
            items = [_item(self.element, item) for item in self.value]
            return g.pair(self.key, g.ARRAY, g.array(self.element, items, self.count))
        return g.pair(self.key, self.kind, _item(self.kind, self.value))


@dataclass(frozen=True)
class GgufModel:
    """A whole file. `data` holds each tensor's bytes by its place in `entries`."""

    pairs: tuple[Pair, ...]
    entries: tuple[g.Entry, ...]
    data: tuple[bytes, ...]
    magic: bytes = b"GGUF"
    version: int = 3
    num_pairs: int | None = None
    num_tensors: int | None = None
    tail: bytes = field(default=b"")

    def settled(self) -> GgufModel:
        """Offsets and data as the table's names, shapes and types ask for: the file is well formed again."""
        entries, data, offset = [], [], 0
        for index, entry in enumerate(self.entries):
            size = num_data_bytes(entry)
            old = self.data[index] if index < len(self.data) else b""
            entries.append(replace(entry, offset=offset))
            data.append((old * (size // max(len(old), 1) + 1) if old else bytes(size))[:size])
            offset += size + -size % ALIGNMENT
        return replace(self, entries=tuple(entries), data=tuple(data))

    def encode(self) -> bytes:
        data = b"".join(piece + bytes(-len(piece) % ALIGNMENT) for piece in self.data)
        head = g.Gguf(
            magic=self.magic,
            version=g.number(g.UINT32, self.version),
            pairs=[pair.encoded for pair in self.pairs],
            entries=self.entries,
            num_pairs=self.num_pairs,
            num_tensors=self.num_tensors,
            data=data,
        )
        return head.encode() + self.tail


def _item(kind: int, value: Any) -> bytes:
    if kind == g.STRING:
        return g.text(value if isinstance(value, str | bytes) else str(value))
    try:
        return value if isinstance(value, bytes) else g.number(kind, value)
    except (struct.error, KeyError, OverflowError):  # a value of another type than the pair claims
        return b"\1"


def num_data_bytes(entry: g.Entry) -> int:
    """What the tensor takes; nothing for one no reader could place."""
    formats = {fmt.gguf_id: fmt for fmt in BY_NAME.values()}
    fmt = formats.get(entry.kind)
    size = int(np.prod([int(dim) for dim in entry.dims], dtype=object)) if entry.dims else 0
    if fmt is None or not entry.dims or entry.dims[0] % fmt.group_size or size > 1 << 22:
        return 0
    return size // fmt.group_size * fmt.group_bytes


def _gguf_name(canonical: str) -> str:
    """The inverse of the shared table."""
    head, suffix = canonical.rsplit(".", 1)
    parts = head.split(".")
    index = parts[1] if parts[0] == "layers" else None
    generic = f"layers.{{i}}.{'.'.join(parts[2:])}" if index is not None else head
    name = next(source for source, target in GGUF.items() if target == f"{generic}.")
    return name.replace("{i}", index or "") + suffix


def _model(pairs: Sequence[Pair], formats: Mapping[str, str], default: str, tensors: Sequence[str] = ()) -> GgufModel:
    """The model that the pairs describe, with random weights in `default` or the format of their leaf."""
    metadata = {str(pair.key): pair.value for pair in pairs}
    config = gguf_config(metadata, tensors)
    spec = families.read_spec(families.for_gguf(metadata["general.architecture"]), config)
    entries, data = [], []
    for name, tensor in random_weights(spec, default, **formats).items():
        entries.append(g.Entry(_gguf_name(name), tuple(reversed(tensor.shape)), tensor.format.gguf_id))
        data.append(tensor.data.tobytes())
    return GgufModel(tuple(pairs), tuple(entries), tuple(data)).settled()


def _sizes(arch: str, vocab_size: int, **changes: int | float) -> list[Pair]:
    values: dict[str, int | float] = {
        "vocab_size": vocab_size, "context_length": 128, "embedding_length": 64, "block_count": 2,
        "feed_forward_length": 96, "attention.head_count": 4, "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0,
    }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return [
        Pair("general.architecture", g.STRING, arch),
        Pair("general.name", g.STRING, "tiny"),
        Pair("general.alignment", g.UINT32, ALIGNMENT),
        Pair("general.sampling.temp", g.FLOAT32, 0.5),
        Pair("general.sampling.top_k", g.INT32, 20),
        *(
            Pair(f"{arch}.{key}", g.FLOAT32 if isinstance(value, float) else g.UINT32, value)
            for key, value in values.items()
        ),
    ]


def byte_level(pre: str) -> tuple[list[Pair], int]:
    """The pairs of a small tokenizer, and how many tokens it has."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d"]
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), *CONTROL]
    types = [1] * (len(tokens) - len(CONTROL)) + [3] * len(CONTROL)
    pairs = [
        Pair("tokenizer.ggml.model", g.STRING, "gpt2"),
        Pair("tokenizer.ggml.pre", g.STRING, pre),
        Pair("tokenizer.ggml.tokens", g.ARRAY, tokens, g.STRING),
        Pair("tokenizer.ggml.token_type", g.ARRAY, types, g.INT32),
        Pair("tokenizer.ggml.merges", g.ARRAY, merges, g.STRING),
        Pair("tokenizer.ggml.bos_token_id", g.UINT32, tokens.index("<|im_start|>")),
        Pair("tokenizer.ggml.eos_token_id", g.UINT32, tokens.index("<|im_end|>")),
        Pair("tokenizer.ggml.padding_token_id", g.UINT32, tokens.index("<|endoftext|>")),
        Pair("tokenizer.ggml.add_bos_token", g.BOOL, False),
        Pair("tokenizer.chat_template", g.STRING, TEMPLATE),
    ]
    return pairs, len(tokens)


def _sentencepiece() -> tuple[list[Pair], int]:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["▁", "h", "e", "l", "o", "w", "r", "d", "he", "ll", "hell", "hello", "▁w", "or", "▁wor", "▁world"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *byte_tokens, *pieces]
    types = [3, 3, 3, 2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    pairs = [
        Pair("tokenizer.ggml.model", g.STRING, "llama"),
        Pair("tokenizer.ggml.tokens", g.ARRAY, tokens, g.STRING),
        Pair("tokenizer.ggml.token_type", g.ARRAY, types, g.INT32),
        Pair("tokenizer.ggml.scores", g.ARRAY, [-float(i) for i in range(len(tokens))], g.FLOAT32),
        Pair("tokenizer.ggml.bos_token_id", g.UINT32, 2),
        Pair("tokenizer.ggml.eos_token_id", g.UINT32, 1),
        Pair("tokenizer.ggml.unknown_token_id", g.UINT32, 3),
        Pair("tokenizer.ggml.add_space_prefix", g.BOOL, False),
        Pair("tokenizer.chat_template", g.STRING, TEMPLATE),
    ]
    return pairs, len(tokens)


def _wordpiece() -> tuple[list[Pair], int]:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"▁{char}" for char in "abcdefghijklmnopqrstuvwxyz"), "a", "b"]
    pairs = [
        Pair("tokenizer.ggml.model", g.STRING, "bert"),
        Pair("tokenizer.ggml.tokens", g.ARRAY, tokens, g.STRING),
        Pair("tokenizer.ggml.token_type", g.ARRAY, [3, 2, 3, 3, *[1] * 28], g.INT32),
        Pair("tokenizer.ggml.unknown_token_id", g.UINT32, 1),
        Pair("tokenizer.ggml.cls_token_id", g.UINT32, 2),
        Pair("tokenizer.ggml.seperator_token_id", g.UINT32, 3),
        Pair("tokenizer.chat_template", g.STRING, TEMPLATE),
    ]
    return pairs, len(tokens)


def seeds() -> dict[str, GgufModel]:
    """Models of several families, vocabularies and formats, each of which loads and answers."""
    smol, smol_size = byte_level("smollm")
    qwen, qwen_size = byte_level("qwen2")
    gemma, gemma_size = _sentencepiece()
    words, words_size = _wordpiece()
    yarn = [
        Pair("qwen3.rope.scaling.type", g.STRING, "yarn"),
        Pair("qwen3.rope.scaling.factor", g.FLOAT32, 4.0),
        Pair("qwen3.rope.scaling.original_context_length", g.UINT32, 32),
    ]
    head_dim = {"attention__key_length": 16, "attention__value_length": 16}
    window = {"attention__sliding_window": 16, "attention__sliding_window_pattern": 2}
    return {
        "llama": _model([*_sizes("llama", smol_size), *smol], {"v_proj": "Q4_0", "o_proj": "F16"}, "Q8_0"),
        "qwen3": _model(
            [*_sizes("qwen3", qwen_size, **head_dim), *yarn, *qwen],
            {"gate_proj": "BF16", "up_proj": "F32"},
            "F16",
            ["output.weight"],
        ),
        "gemma3": _model(
            [*_sizes("gemma3", gemma_size, **head_dim, **window), *gemma],
            {"q_proj": "Q5_0", "down_proj": "Q5_1"},
            "Q4_1",
        ),
        "k-quants": _model(
            [
                *_sizes("llama", words_size, embedding_length=256, feed_forward_length=256, attention__head_count=8),
                *words,
            ],
            {"q_proj": "Q5_K", "down_proj": "Q6_K"},
            "Q4_K",
            ["blk.0.attn_q.bias", "blk.0.ffn_up.bias"],
        ),
        "small formats": _model(
            [
                *_sizes("llama", smol_size, embedding_length=256, feed_forward_length=256, attention__head_count=8),
                *smol,
            ],
            {"q_proj": "Q2_K", "k_proj": "IQ4_XS", "v_proj": "IQ4_NL", "down_proj": "IQ4_XS", "up_proj": "Q2_K"},
            "Q3_K",
        ),
    }
