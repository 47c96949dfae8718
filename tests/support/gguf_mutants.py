"""Changes to GGUF models that know their structure: types, counts, lengths, shapes, offsets, values, bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from support import gguf_bytes as g
from support.gguf_models import GgufModel, Pair
from support.gguf_parsing import part_name, split

WHOLE_NUMBERS = (
    *(0, 1, 2, 3, 5, 7, 8, 31, 32, 33, 64, 100, 127, 128, 255, 256, 4095, 4096, 4097, 65535, 65536, 1 << 20),
    *(2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 32, 2**61, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e-30, 1e30, 3e38, float("inf"), float("-inf"), float("nan"))
TEXTS: tuple[str | bytes, ...] = (
    *("", " ", "a", "a b", "a b c", "\0", "\n", "\u2581", "\U0001f600", "\ufeff", "\u202e", "x" * 70, "x" * 20000),
    *("gpt2", "llama", "bert", "gemma4", "t5", "default", "qwen2", "yarn", "linear", "longrope", "<|im_end|>"),
    *("%s%n", "../../etc/passwd", "{{ cycler.__init__ }}", "{% for i in range(10**9) %}{% endfor %}", "{%"),
    *(b"\xff", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\xc3"),
)
NAMES: tuple[str | bytes, ...] = (
    *("output.weight", "rope_freqs.weight", "blk.0.attn_q.bias", "blk.999999.attn_q.weight", "blk.-1.ffn_up.weight"),
    *(
        "blk.0.attn_q.weight",
        "token_embd.weight",
        "token_embd.bias",
        "",
        "a" * 64,
        "a" * 65,
        ".",
        "blk..weight",
        b"\xff",
    ),
)
KEYS = (
    *("general.architecture", "general.alignment", "split.count", "split.no", "split.tensors.count"),
    *("tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.ggml.token_type", "tokenizer.ggml.eot_token_id"),
    *("tokenizer.chat_template", "tokenizer.chat_template.", "tokenizer.ggml.add_eos_token"),
    *("general.sampling.min_p", "general.license"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.dimension_count", "rope.scale_linear", "expert_count"),
    *("attention.key_length", "attention.sliding_window", "attention.causal", "vocab_size", "logit_scale"),
)
MAGICS = (b"GGUG", b"FUGG", b"\0\0\0\0", b"PK\3\4", b"\x80\4\x95\0", b"ggjt")
DIM_COUNTS = (0, 1, 2, 5, 2**32 - 1)
TENSOR_TYPES = (*range(42), 2**31, 2**32 - 1)
_RANGES = {
    g.UINT8: (0, 8), g.INT8: (1, 8), g.UINT16: (0, 16), g.INT16: (1, 16), g.UINT32: (0, 32), g.INT32: (1, 32),
    g.UINT64: (0, 64), g.INT64: (1, 64),
}  # fmt: skip
Chooser = random.Random
Mutation = Callable[[GgufModel, Chooser], GgufModel]


def _value(kind: int, chooser: Chooser) -> Any:
    if kind in _RANGES:
        is_signed, bits = _RANGES[kind]
        value = chooser.choice(WHOLE_NUMBERS) % (1 << bits)
        return value - (1 << bits) if is_signed and value >> (bits - 1) else value
    if kind in (g.FLOAT32, g.FLOAT64):
        return chooser.choice(FLOATS)
    if kind == g.BOOL:
        return chooser.choice((0, 1, 2, 255))
    return chooser.choice(TEXTS)


def _typed_pair(key: str | bytes, chooser: Chooser) -> Pair:
    kind = chooser.choice([*range(13), 13, 99])
    if kind == g.ARRAY:
        element = chooser.choice([g.UINT8, g.INT32, g.FLOAT32, g.BOOL, g.STRING, g.UINT64])
        return Pair(key, g.ARRAY, [_value(element, chooser) for _ in range(chooser.choice((0, 1, 2, 8, 64)))], element)
    return Pair(key, kind, _value(kind, chooser) if kind < 13 else b"\0")


def _one_pair(change: Callable[[Pair, Chooser], Pair | None]) -> Mutation:
    def mutate(model: GgufModel, chooser: Chooser) -> GgufModel:
        pairs = list(model.pairs)
        if not pairs:
            return model
        at = chooser.randrange(len(pairs))
        changed = change(pairs[at], chooser)
        pairs[at : at + 1] = [] if changed is None else [changed]
        return replace(model, pairs=tuple(pairs))

    return mutate


def _other_value(pair: Pair, chooser: Chooser) -> Pair:
    if pair.kind == g.ARRAY:
        return pair
    return replace(pair, value=_value(pair.kind, chooser))


def _other_array(pair: Pair, chooser: Chooser) -> Pair:
    if pair.kind != g.ARRAY or pair.element is None:
        return pair
    items = list(pair.value)
    how = chooser.choice(["item", "drop", "repeat", "swap", "cut", "count", "element", "empty"])
    if how == "count":
        return replace(pair, count=chooser.choice(WHOLE_NUMBERS))
    if how == "element":
        return replace(pair, element=chooser.choice([g.UINT8, g.INT32, g.BOOL, g.STRING, g.ARRAY]), value=[b"\1"])
    if how == "empty" or not items:
        return replace(pair, value=[])
    at, other = chooser.randrange(len(items)), chooser.randrange(len(items))
    if how == "item":
        items[at] = _value(pair.element, chooser)
    elif how == "drop":
        del items[at]
    elif how == "repeat":
        items.insert(at, items[other])
    elif how == "swap":
        items[at], items[other] = items[other], items[at]
    else:
        del items[at:]
    return replace(pair, value=items)


def _repeat_pair(model: GgufModel, chooser: Chooser) -> GgufModel:
    return replace(model, pairs=(*model.pairs, chooser.choice(model.pairs))) if model.pairs else model


def _add_pair(model: GgufModel, chooser: Chooser) -> GgufModel:
    key = chooser.choice(KEYS)
    arch = next((pair.value for pair in model.pairs if pair.key == "general.architecture"), "llama")
    key = key if key.startswith(("general.", "split.", "tokenizer.")) else f"{arch}.{key}"
    kept = tuple(pair for pair in model.pairs if pair.key != key)
    return replace(model, pairs=(*kept, _typed_pair(key, chooser)))


def _one_entry(change: Callable[[g.Entry, Chooser], g.Entry]) -> Mutation:
    def mutate(model: GgufModel, chooser: Chooser) -> GgufModel:
        entries = list(model.entries)
        if not entries:
            return model
        at = chooser.randrange(len(entries))
        entries[at] = change(entries[at], chooser)
        return replace(model, entries=tuple(entries))

    return mutate


def _other_dims(entry: g.Entry, chooser: Chooser) -> g.Entry:
    dims = list(entry.dims) or [1]
    how = chooser.choice(["edge", "swap", "one more", "one less", "near"])
    at = chooser.randrange(len(dims))
    if how == "edge":
        dims[at] = chooser.choice(WHOLE_NUMBERS)
    elif how == "swap":
        dims.reverse()
    elif how == "one more":
        dims.append(chooser.choice((0, 1, 2, 2**63)))
    elif how == "one less":
        del dims[at]
    else:
        dims[at] = max(dims[at] + chooser.choice((-32, -1, 1, 32)), 0)
    return replace(entry, dims=tuple(dims))


def _repeat_entry(model: GgufModel, chooser: Chooser) -> GgufModel:
    if not model.entries:
        return model
    entry = chooser.choice(model.entries)
    renamed = replace(entry, name=chooser.choice((*NAMES, entry.name)))
    return replace(model, entries=(*model.entries, renamed), data=(*model.data, b""))


def _drop_entry(model: GgufModel, chooser: Chooser) -> GgufModel:
    if not model.entries:
        return model
    at = chooser.randrange(len(model.entries))
    return replace(
        model,
        entries=model.entries[:at] + model.entries[at + 1 :],
        data=model.data[:at] + model.data[at + 1 :],
    )


def _swap_entries(model: GgufModel, chooser: Chooser) -> GgufModel:
    entries = list(model.entries)
    chooser.shuffle(entries)
    return replace(model, entries=tuple(entries))


def _other_data(model: GgufModel, chooser: Chooser) -> GgufModel:
    """Bytes no quantizer writes: scales of infinity and NaN, random codes, all ones."""
    if not model.data:
        return model
    at = chooser.randrange(len(model.data))
    size = len(model.data[at])
    content = chooser.choice([b"\xff" * size, b"\0\x7c" * (size // 2 + 1), chooser.randbytes(size), bytes(size)])
    return replace(model, data=(*model.data[:at], content[:size], *model.data[at + 1 :]))


def _header(model: GgufModel, chooser: Chooser) -> GgufModel:
    how = chooser.choice(["magic", "version", "pairs", "tensors"])
    if how == "magic":
        return replace(
            model, magic=chooser.choice([b"GGUG", b"FUGG", b"\0\0\0\0", b"PK\3\4", b"\x80\4\x95\0", b"ggjt"])
        )
    if how == "version":
        return replace(model, version=chooser.choice([0, 1, 2, 4, 3 << 24, 2**32 - 1]))
    count = chooser.choice([*WHOLE_NUMBERS, len(model.pairs) - 1, len(model.pairs) + 1, len(model.entries) - 1])
    return replace(model, num_pairs=count) if how == "pairs" else replace(model, num_tensors=count)


STRUCTURAL: Mapping[str, Mutation] = {
    "value": _one_pair(_other_value),
    "array": _one_pair(_other_array),
    "type": _one_pair(lambda pair, chooser: _typed_pair(pair.key, chooser)),
    "no key": _one_pair(lambda pair, chooser: None),
    "other key": _one_pair(lambda pair, chooser: replace(pair, key=chooser.choice((*KEYS, *TEXTS)))),
    "repeated key": _repeat_pair,
    "new key": _add_pair,
    "shape": _one_entry(_other_dims),
    "tensor type": _one_entry(lambda entry, chooser: replace(entry, kind=chooser.choice(TENSOR_TYPES))),
    "tensor name": _one_entry(lambda entry, chooser: replace(entry, name=chooser.choice(NAMES))),
    "repeated tensor": _repeat_entry,
    "no tensor": _drop_entry,
    "tensor order": _swap_entries,
    "data": _other_data,
}
DAMAGE: Mapping[str, Mutation] = {
    "offset": _one_entry(lambda entry, chooser: replace(entry, offset=chooser.choice(WHOLE_NUMBERS))),
    "dimension count": _one_entry(
        lambda entry, chooser: replace(entry, num_dims=chooser.choice((0, 1, 2, 5, 2**32 - 1)))
    ),
    "name length": _one_entry(lambda entry, chooser: replace(entry, name_length=chooser.choice(WHOLE_NUMBERS))),
    "header": _header,
    "tail": lambda model, chooser: replace(model, tail=chooser.randbytes(chooser.choice((1, 31, 32, 100)))),
}


def _damage_bytes(content: bytes, chooser: Chooser) -> bytes:
    """Bytes changed without knowing what they mean, mostly in the header."""
    changed = bytearray(content)
    end = len(changed) if chooser.random() < 0.2 else min(len(changed), 8192)
    at = chooser.randrange(end)
    how = chooser.choice(["cut", "flip", "word", "remove", "insert"])
    if how == "cut":
        del changed[at:]
    elif how == "flip":
        changed[at] ^= 1 << chooser.randrange(8)
    elif how == "word":
        changed[at : at + 8] = g.number(g.UINT64, chooser.choice(WHOLE_NUMBERS))
    elif how == "remove":
        del changed[at : at + chooser.randrange(1, 40)]
    else:
        changed[at:at] = chooser.randbytes(chooser.randrange(1, 40))
    return bytes(changed)


def _mutant(model: GgufModel, chooser: Chooser) -> tuple[list[str], bytes]:
    """What was done to the model, and the file."""
    done = []
    for _ in range(chooser.choice((1, 1, 1, 2, 3))):
        kind = chooser.choice(sorted(STRUCTURAL))
        model = STRUCTURAL[kind](model, chooser)
        done.append(kind)
    style = chooser.random()
    if style < 0.6:
        model = model.settled()
        done.append("settled")
    elif style < 0.8:
        kind = chooser.choice(sorted(DAMAGE))
        model = DAMAGE[kind](model, chooser)
        done.append(kind)
    content = model.encode()
    if style >= 0.8:
        content = _damage_bytes(content, chooser)
        done.append("bytes")
    return done, content


def mutants(models: Mapping[str, GgufModel], seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` files with what was done to each. The same seed gives the same files."""
    chooser = random.Random(seed)
    names = sorted(models)
    for _ in range(count):
        name = chooser.choice(names)
        done, content = _mutant(models[name], chooser)
        yield ", ".join((name, *done)), content


def split_mutants(models: Mapping[str, GgufModel], seed: int, count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """`count` models in two to four files, by name, one of which is not as it should be."""
    chooser = random.Random(seed)
    names = sorted(models)
    for _ in range(count):
        name, num_parts = chooser.choice(names), chooser.choice((2, 3, 4))
        parts = split(models[name], num_parts)
        files = {part_name(i, num_parts): part.encode() for i, part in enumerate(parts, start=1)}
        at, other = chooser.sample(sorted(files), 2)
        how = chooser.choice(("part", "part", "part", "count", "missing", "another", "other model", "empty", "renamed"))
        if how == "part":
            done, files[at] = _mutant(parts[sorted(files).index(at)], chooser)
            how = f"part {at}: {', '.join(done)}"
        elif how == "count":
            part = parts[sorted(files).index(at)]
            pairs = tuple(_split_number(pair, chooser) for pair in part.pairs)
            files[at] = replace(part, pairs=pairs).encode()
        elif how == "another":
            files[at] = files[other]
        elif how == "other model":
            files[at] = split(models[chooser.choice(names)], num_parts)[sorted(files).index(at)].encode()
        elif how == "empty":
            files[at] = b""
        else:
            content = files.pop(at)
            if how == "renamed":
                files[part_name(chooser.choice((0, num_parts + 1, 99999)), num_parts)] = content
        yield f"{name} in {num_parts}, {how}", files


def _split_number(pair: Pair, chooser: Chooser) -> Pair:
    return replace(pair, value=_value(pair.kind, chooser)) if str(pair.key).startswith("split.") else pair
