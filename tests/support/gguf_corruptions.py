"""The hand-made GGUF files of llama.cpp's tests/test-gguf.cpp by name, and our words for what is wrong with each."""

from __future__ import annotations

from support import gguf_bytes as g
from support.gguf_bytes import Entry, Gguf

WEIGHT = Entry()
ALIGN = "general.alignment"
_ALIGN_1 = g.pair(ALIGN, g.UINT32, g.number(g.UINT32, 1))
_CLOSE = (WEIGHT, Entry(name="b.weight", offset=68))

# Names that end in a refusal, and the words of ours.
CORRUPTIONS: dict[str, tuple[Gguf, str]] = {
    "HEADER_BAD_MAGIC": (Gguf(magic=b"FUGG"), "starts with b'FUGG', a GGUF file starts with b'GGUF'"),
    "HEADER_BAD_VERSION_0": (Gguf(version=g.number(g.UINT32, 0)), "GGUF version 0, versions 2 and 3 are read"),
    "HEADER_BAD_VERSION_1": (Gguf(version=g.number(g.UINT32, 1)), "GGUF version 1, versions 2 and 3 are read"),
    "HEADER_BAD_VERSION_FUTURE": (Gguf(version=g.number(g.UINT32, 4)), "GGUF version 4, versions 2 and 3 are read"),
    "HEADER_BAD_N_TENSORS": (Gguf(num_tensors=2**64 - 1), "18446744073709551615 tensors, at most 65536 are allowed"),
    "HEADER_BAD_N_KV": (Gguf(num_pairs=2**64 - 1), "18446744073709551615 metadata keys, at most 65536 are allowed"),
    "KV_BAD_KEY_SIZE": (
        Gguf(pairs=[g.text("key", 2**64 - 1)]),
        "metadata key of 18446744073709551615 bytes at byte 32, at most 65535 are allowed",
    ),
    "KV_EMPTY_KEY": (
        Gguf(pairs=[g.pair("", g.UINT8, b"\0")]),
        "empty metadata key '', keys must be distinct and not empty",
    ),
    "KV_BAD_TYPE": (Gguf(pairs=[g.pair("key", 13, b"\0")]), "type of key is 13, allowed are 0 to 12"),
    "KV_BAD_VALUE_SIZE": (
        Gguf(pairs=[g.pair("key", g.STRING, g.text("abc", 2**40))]),
        "key of 1099511627776 bytes at byte 47, at most 67108864 are allowed",
    ),
    "KV_DUPLICATE_KEY": (
        Gguf(pairs=[g.pair("key", g.BOOL, b"\0")] * 2),
        "duplicate metadata key 'key', keys must be distinct and not empty",
    ),
    "KV_BAD_ALIGN": (
        Gguf(pairs=[g.pair(ALIGN, g.UINT32, g.number(g.UINT32, 13))]),
        "general.alignment is 13 of type uint32, a power of two of type uint32 is allowed",
    ),
    "KV_WRONG_TYPE_ALIGN": (
        Gguf(pairs=[g.pair(ALIGN, g.INT32, g.number(g.INT32, 32))]),
        "general.alignment is 32 of type int32, a power of two of type uint32 is allowed",
    ),
    "TENSORS_BAD_NAME_SIZE": (
        Gguf(entries=[Entry(name="n" * 65)]),
        "tensor name of 65 bytes at byte 32, at most 64 are allowed",
    ),
    "TENSORS_BAD_N_DIMS": (
        Gguf(entries=[Entry(num_dims=5)]),
        "tensor a.weight has 5 dimensions, 1 to 4 are allowed",
    ),
    "TENSORS_BAD_SHAPE": (
        Gguf(entries=[Entry(dims=(2**64 - 1,), kind=0)]),
        f"tensor a.weight ends at byte {64 + 4 * (2**64 - 1)}, the file has 132",
    ),
    "TENSORS_ZERO_DIM": (
        Gguf(entries=[Entry(dims=(32, 0))]),
        "tensor a.weight has shape [0, 32], every dimension must be at least 1",
    ),
    "TENSORS_NE_TOO_BIG": (
        Gguf(entries=[Entry(dims=(4 * (2**31 - 1),) * 2, kind=0)]),
        f"tensor a.weight ends at byte {96 + 4 * (4 * (2**31 - 1)) ** 2}, the file has 164",
    ),
    "TENSORS_NBYTES_TOO_BIG": (
        Gguf(entries=[Entry(dims=(3_100_000_000,) * 2, kind=0)]),
        f"tensor a.weight ends at byte {96 + 4 * 3_100_000_000**2}, the file has 164",
    ),
    "TENSORS_NBYTES_PAD_WRAP": (
        Gguf(entries=[Entry(dims=(4, 2**30 - 1, 2**30 + 1), kind=0)]),
        f"tensor a.weight ends at byte {96 + 2**64 - 16}, the file has 164",
    ),
    "TENSORS_BAD_TYPE": (Gguf(entries=[Entry(kind=99)]), "tensor a.weight has unknown type 99, allowed are F32, F16"),
    "TENSORS_BAD_OFFSET": (
        Gguf(entries=[Entry(offset=2**64 - 1)]),
        "tensor a.weight has offset 18446744073709551615, 0 is where it must begin",
    ),
    "TENSORS_DUPLICATE_NAME": (
        Gguf(entries=[WEIGHT, Entry(offset=96)], data=bytes(200)),
        "duplicate tensor a.weight, names must be distinct",
    ),
    "TENSORS_BAD_ALIGN": (
        Gguf(pairs=[g.pair(ALIGN, g.UINT32, g.number(g.UINT32, 0))], entries=[WEIGHT]),
        "general.alignment is 0 of type uint32, a power of two of type uint32 is allowed",
    ),
    "TENSORS_INCONSISTENT_ALIGN": (
        Gguf(entries=[WEIGHT, Entry(name="b.weight", offset=68)], data=bytes(200)),
        "tensor b.weight has offset 68, 96 is where it must begin",
    ),
    "DATA_NOT_ENOUGH_DATA": (
        Gguf(entries=[WEIGHT], data=bytes(67)),
        "tensor a.weight ends at byte 164, the file has 163",
    ),
    "DATA_BAD_ALIGN": (
        Gguf(pairs=[g.pair(ALIGN, g.UINT32, g.number(g.UINT32, 13))], entries=[WEIGHT], alignment=13),
        "general.alignment is 13 of type uint32, a power of two of type uint32 is allowed",
    ),
    "DATA_INCONSISTENT_ALIGN": (
        Gguf(entries=[WEIGHT, Entry(name="b.weight", offset=72)], alignment=1, data=bytes(200)),
        "tensor b.weight has offset 72, 96 is where it must begin",
    ),
    "DATA_MEM_SIZE_OVERFLOW": (
        Gguf(
            entries=[
                Entry(dims=(2**63 - 64,), kind=0),
                Entry(name="b.weight", dims=(2**63 - 64,), kind=0, offset=2**63 - 64),
            ]
        ),
        f"tensor a.weight ends at byte {128 + 4 * (2**63 - 64)}, the file has 196",
    ),
}

# Names that end well: nothing in the file, pairs alone, tensors alone, an alignment of its own, with data and without.
SOUND: dict[str, Gguf] = {
    "HEADER_EMPTY": Gguf(),
    "KV_SUCCESS": Gguf(pairs=[g.pair("key", g.BOOL, b"\1"), g.strings("texts", ["a", ""])]),
    "TENSORS_SUCCESS": Gguf(entries=[WEIGHT]),
    "TENSORS_CUSTOM_ALIGN": Gguf(pairs=[_ALIGN_1], entries=[WEIGHT], alignment=1),
    "DATA_SUCCESS": Gguf(entries=[WEIGHT, Entry(name="b.weight", offset=96)], data=bytes(164)),
    "DATA_CUSTOM_ALIGN": Gguf(pairs=[_ALIGN_1], entries=_CLOSE, alignment=1, data=bytes(range(136))),
}
