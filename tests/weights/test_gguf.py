"""GGUF files: those of others read right, those of attackers refused by name."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import gguf_bytes as g
from support.gguf_bytes import Entry, Gguf
from support.gguf_corruptions import CORRUPTIONS, SOUND, WEIGHT
from tuili import quant
from tuili.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from tuili.quant.format import Tensor
from tuili.weights.gguf import GgufFile
from tuili.weights.gguf_metadata import Cursor, _walk_short_strings

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write_file


SECOND = Entry(name="b.weight", offset=96)
BIG = (2**31 - 1, 2**31 + 1, 2**32 - 1, 2**32 + 1, 2**61, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1)


def refusal(write: Write, file: Gguf | bytes) -> str:
    """The message a file is refused with, which names the file first."""
    with pytest.raises(ModelFileError) as caught:
        GgufFile(write(file if isinstance(file, bytes) else file.encode()))
    message = str(caught.value)
    assert message.startswith("model.gguf: ")
    assert "Traceback" not in message
    assert "/" not in message
    return message.removeprefix("model.gguf: ")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_named_corruptions(write: Write, name: str) -> None:
    file, words = CORRUPTIONS[name]
    assert words in refusal(write, file)


@pytest.mark.parametrize("name", SOUND)
def test_named_files_that_are_sound(write: Write, name: str) -> None:
    file = GgufFile(write(SOUND[name].encode()))
    assert len(file.tensors) == len(SOUND[name].entries)
    assert len(file.metadata) == len(SOUND[name].pairs)


def test_tensors_lie_where_their_alignment_says(write: Write) -> None:
    file = GgufFile(write(SOUND["DATA_CUSTOM_ALIGN"].encode()))
    assert file.alignment == 1
    assert file.tensors["b.weight"].data.ravel().tolist() == list(range(68, 136))


@pytest.mark.parametrize("count", BIG)
def test_huge_counts_and_lengths(write: Write, count: int) -> None:
    """Refused before a byte is allocated for them."""
    long_array = g.array(g.UINT8, [b"\0"], count)
    long_strings = g.array(g.STRING, [g.text("a")], count)
    assert "tensors, at most" in refusal(write, Gguf(num_tensors=count))
    assert "metadata keys, at most" in refusal(write, Gguf(num_pairs=count))
    assert "elements at byte" in refusal(write, Gguf(pairs=[g.pair("key", g.ARRAY, long_array)]))
    assert "elements at byte" in refusal(write, Gguf(pairs=[g.pair("key", g.ARRAY, long_strings)]))
    assert "tensor name of" in refusal(write, Gguf(entries=[Entry(name_length=count)]))
    assert "where it must begin" in refusal(write, Gguf(entries=[Entry(offset=count)]))
    for dims in ((count,), (count, count), (1, count), (1, 1, 1, count)):
        assert "ends at byte" in refusal(write, Gguf(entries=[Entry(dims=dims, kind=0)]))
    in_array = g.array(g.STRING, [g.text("a"), g.text("b", count), g.text("c")])
    assert "key of 3 strings at byte" in refusal(write, Gguf(pairs=[g.pair("key", g.ARRAY, in_array)]))


@pytest.mark.parametrize("count", [1, 2, 1000, 2**20, 2**22])
def test_arrays_longer_than_the_file(write: Write, count: int) -> None:
    for kind in (g.UINT8, g.BOOL, g.FLOAT64):
        words = refusal(write, Gguf(pairs=[g.pair("key", g.ARRAY, g.array(kind, [], count))]).encode()[:51])
        assert "goes past the end, the file has 51 bytes" in words
    words = refusal(write, Gguf(pairs=[g.pair("key", g.ARRAY, g.array(g.STRING, [], count))]).encode()[:51])
    assert f"key of {count} strings at byte 51 goes past the end, the file has 51 bytes" in words


def test_arrays_have_a_limit_together(write: Write) -> None:
    half = g.array(g.UINT8, [bytes(2**21 + 1)], 2**21 + 1)
    pairs = [g.pair("first", g.ARRAY, half), g.pair("second", g.ARRAY, half)]
    assert "second has 2097153 elements" in refusal(write, Gguf(pairs=pairs))


def test_headers_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(Gguf(num_pairs=1).encode()[:24] + g.text("key") + g.number(g.UINT32, g.STRING))
        file.write(g.number(g.UINT64, 64 << 20))
        file.truncate(1 << 30)  # sparse
    with pytest.raises(ModelFileError, match="goes past the end, a header has at most 67108864 bytes"):
        GgufFile(path)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (Gguf(version=struct.pack(">I", 3)), "big-endian GGUF, only little-endian files are read"),
        (Gguf(entries=[Entry(num_dims=0, dims=())]), "tensor a.weight has 0 dimensions, 1 to 4 are allowed"),
        (Gguf(entries=[Entry(dims=(33,))]), "type Q8_0 has rows of 33, they must be multiples of 32"),
        (Gguf(entries=[Entry(dims=(128,), kind=12)]), "type Q4_K has rows of 128, they must be multiples of 256"),
        (Gguf(entries=[Entry(dims=(2**32 + 32,))]), "tensor a.weight ends at byte"),
        (Gguf(entries=[Entry(name=b"\xff")]), "tensor name at byte 32 is not UTF-8, all text must be"),
        (Gguf(pairs=[g.pair(b"\xc3", g.BOOL, b"\0")]), "metadata key at byte 32 is not UTF-8"),
        (Gguf(pairs=[g.pair("key", g.STRING, g.text(b"a\x80"))]), "key at byte 47 is not UTF-8"),
        (Gguf(pairs=[g.pair("key", g.BOOL, b"\2")]), "key holds a bool of 2, allowed are 0 and 1"),
        (Gguf(pairs=[g.pair("key", g.ARRAY, g.array(g.BOOL, [b"\1\3"], 2))]), "key holds a bool of 3"),
        (Gguf(pairs=[g.pair("key", g.ARRAY, g.array(77, []))]), "element type of key is 77, allowed are 0 to 12"),
        (Gguf(entries=[WEIGHT, Entry(name="b.weight", offset=0)]), "tensor b.weight has offset 0, 96 is where"),
        (Gguf(entries=[WEIGHT, Entry(name="b.weight", offset=128)]), "tensor b.weight has offset 128, 96 is where"),
        (Gguf(entries=[Entry(offset=32)]), "tensor a.weight has offset 32, 0 is where it must begin"),
    ],
)
def test_refusals(write: Write, file: Gguf, words: str) -> None:
    assert words in refusal(write, file)


def test_text_is_utf8_in_every_string_of_an_array(write: Write) -> None:
    """A character may not begin in one string and end in the next."""
    for index, items in enumerate([[b"\xc3", b"\xa9", b"c"], [b"a", b"\xa9", b"c"], [b"a", b"b", b"\xe2\x82"]]):
        pairs = [g.pair("key", g.ARRAY, g.array(g.STRING, [g.text(item) for item in items]))]
        assert f"string {index} of key is not UTF-8, all text must be" in refusal(write, Gguf(pairs=pairs))


def test_arrays_of_arrays_are_refused_at_any_depth(write: Write) -> None:
    bomb = b"".join(g.number(g.UINT32, g.ARRAY) + g.number(g.UINT64, 1) for _ in range(100_000))
    words = refusal(write, Gguf(pairs=[g.pair("key", g.ARRAY, bomb)]))
    assert "key is an array of arrays, elements must be numbers, bools or strings" in words


@pytest.mark.parametrize(
    ("kind", "name"), [(16, "IQ2_XXS"), (18, "IQ3_XXS"), (34, "TQ1_0"), (39, "MXFP4"), (24, "I8"), (28, "F64")]
)
def test_known_types_are_refused_by_name(write: Write, kind: int, name: str) -> None:
    assert gguf.GGMLQuantizationType(kind).name == name
    path = write(Gguf(entries=[Entry(dims=(256,), kind=kind)], data=bytes(4096)).encode())
    with pytest.raises(
        UnsupportedModelError, match=f"^model.gguf: tensor a.weight has type {name}, implemented are F32"
    ):
        GgufFile(path)


@pytest.mark.parametrize(
    "head", [b"PK\x03\x04", b"\x80\x02}q", b"\x80\x04\x95", b"\x80\x05\x95", b"\x93NUMPY", b"\x80\x03"]
)
def test_pickles_under_our_name_are_refused(write: Write, head: bytes) -> None:
    assert refusal(write, head + bytes(100)) == "refused: executable format; convert to safetensors"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^missing\.gguf: no such file$"):
        GgufFile(tmp_path / "missing.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        GgufFile(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 7, 8, 15, 16, 23])
def test_tiny_files(write: Write, size: int) -> None:
    words = refusal(write, Gguf().encode()[:size])
    assert words == "0 bytes, a model file is not empty" if size == 0 else "goes past the end" in words


def rich_file() -> Gguf:
    """A pair of every type, an array of every type, and two tensors."""
    pairs = [g.pair(f"number.{kind}", kind, g.number(kind, 1)) for kind in range(13) if kind not in (g.STRING, g.ARRAY)]
    pairs += [
        g.pair(f"numbers.{kind}", g.ARRAY, g.array(kind, [g.number(kind, i) for i in (0, 1, 1)]))
        for kind in range(13)
        if kind not in (g.STRING, g.ARRAY)
    ]
    pairs += [g.pair("text", g.STRING, g.text("é€𝄞")), g.strings("texts", ["", "a", "é€𝄞", "", "z"])]
    pairs += [g.strings("none", []), g.pair("no.numbers", g.ARRAY, g.array(g.FLOAT64, []))]
    return Gguf(pairs=pairs, entries=[WEIGHT, SECOND], data=bytes(164))


def test_every_value_type(write: Write) -> None:
    file = GgufFile(write(rich_file().encode()))
    expected: dict[str, Any] = {}
    for kind in range(13):
        if kind not in (g.STRING, g.ARRAY):
            one = True if kind == g.BOOL else 1
            expected |= {f"number.{kind}": one, f"numbers.{kind}": [one - one if kind != g.BOOL else False, one, one]}
    expected |= {"text": "é€𝄞", "texts": ["", "a", "é€𝄞", "", "z"], "none": [], "no.numbers": []}
    assert dict(file.metadata) == expected
    assert {type(file.metadata[f"number.{kind}"]) for kind in (g.FLOAT32, g.FLOAT64)} == {float}
    assert type(file.metadata[f"number.{g.BOOL}"]) is bool
    assert type(file.metadata[f"number.{g.UINT64}"]) is int


def test_version_2_is_the_same(write: Write) -> None:
    file = GgufFile(write(Gguf(version=g.number(g.UINT32, 2), entries=[WEIGHT]).encode()))
    assert (file.version, file.alignment, list(file.tensors)) == (2, 32, ["a.weight"])


def test_truncation_at_every_byte(write: Write) -> None:
    """No prefix is taken for a file, but the one that lacks only padding nobody reads."""
    content = rich_file().encode()
    for size in range(len(content)):
        with pytest.raises(ModelFileError):
            GgufFile(write(content[:size]))
    GgufFile(write(content))


@pytest.mark.parametrize(
    "texts", [["a" * 300, "", "b"], ["a\0b", "\0" * 9, "", "c"], ["", "\0" * 8, ""], [" ", "é" * 200]]
)
def test_strings_that_the_fast_paths_do_not_take(write: Write, texts: list[str]) -> None:
    assert GgufFile(write(Gguf(pairs=[g.strings("key", texts)]).encode())).metadata["key"] == texts


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(max_size=400) | st.text("\0a€", max_size=12)))
def test_any_strings(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "strings.gguf"
    path.write_bytes(Gguf(pairs=[g.strings("key", texts), g.pair("after", g.BOOL, b"\1")]).encode())
    metadata = GgufFile(path).metadata
    assert metadata["key"] == texts
    assert metadata["after"] is True


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes changed, 8-byte fields set to what attackers set them to, pieces cut out or doubled."""
    content = bytearray(rich_file().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["byte", "word", "cut", "double"]))
        if kind == "byte":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "word":
            content[at : at + 8] = g.number(g.UINT64, data.draw(st.sampled_from([0, 1, 9, 255, 2**22, *BIG])))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 40))]
        else:
            content[at:at] = content[at : at + data.draw(st.integers(1, 40))]
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content)
    tensors: Mapping[str, Tensor] = {}
    with contextlib.suppress(ModelFileError):
        tensors = GgufFile(path).tensors
    assert all(tensor.dequantize().shape == tensor.shape for tensor in tensors.values())


def test_refusing_takes_no_memory(write: Write) -> None:
    content = rich_file().encode()
    chooser = random.Random(0)
    tracemalloc.start()
    try:
        for _ in range(200):
            changed = bytearray(content)
            at = chooser.randrange(len(changed) - 8)
            changed[at : at + 8] = g.number(g.UINT64, chooser.choice([2**21, *BIG]))
            path = write(bytes(changed))
            with contextlib.suppress(ModelFileError):
                GgufFile(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fill", [0, 1, 255])
def test_looking_for_strings_takes_memory_by_their_number(fill: int) -> None:
    count = 1 << 17  # within zeros every byte begins what could be a length
    cursor = Cursor(np.full(64 * count, fill, np.uint8), "model.gguf")
    tracemalloc.start()
    try:
        assert _walk_short_strings(cursor, count) is None
        assert tracemalloc.get_traced_memory()[1] < 64 * count
    finally:
        tracemalloc.stop()


def test_files_of_the_gguf_package(tmp_path: Path) -> None:
    """A writer we did not write: every type we read, every kind of value, a custom alignment."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_string("name", "Ünïcode")
    writer.add_array("tokens", [f"token {i} é" for i in range(500)])
    writer.add_array("scores", [float(i) / 8 for i in range(500)])
    writer.add_array("flags", [True, False])
    writer.add_float64("double", 0.1)
    writer.add_int64("negative", -5)
    rng = np.random.default_rng(0)
    expected = {}
    for kind in quant.BY_NAME:
        quantization = gguf.GGMLQuantizationType[kind]
        group_size, group_bytes = gguf.GGML_QUANT_SIZES[quantization]
        raw = rng.integers(0, 120, (3, 256 // group_size * group_bytes), np.uint8)
        expected[kind] = gguf.quants.dequantize(raw, quantization)
        writer.add_tensor(kind, raw, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GgufFile(path)
    assert file.alignment == 64
    assert file.num_bytes == path.stat().st_size
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["name"] == "Ünïcode"
    assert file.metadata["tokens"] == [f"token {i} é" for i in range(500)]
    assert file.metadata["scores"] == [i / 8 for i in range(500)]
    assert file.metadata["flags"] == [True, False]
    assert (file.metadata["double"], file.metadata["negative"]) == (0.1, -5)
    assert list(file.tensors) == list(expected)
    assert file.tensor_types == dict.fromkeys(expected, 1)
    for kind, values in expected.items():
        assert file.tensors[kind].shape == (3, 256)
        assert not file.tensors[kind].data.flags.writeable
        np.testing.assert_array_equal(file.tensors[kind].dequantize(), values)


@pytest.mark.no_cover
def test_a_real_model_as_the_gguf_package_reads_it(smollm2_gguf: Path) -> None:
    file, oracle = GgufFile(smollm2_gguf), gguf.GGUFReader(smollm2_gguf)
    assert [t.name for t in oracle.tensors] == list(file.tensors)
    for expected in oracle.tensors:
        found = file.tensors[expected.name]
        assert found.format.name == expected.tensor_type.name
        assert found.shape == tuple(int(dim) for dim in reversed(expected.shape))
        head = found.data[:4].ravel()
        np.testing.assert_array_equal(head, expected.data.view(np.uint8).ravel()[: head.size])
    for key, field in oracle.fields.items():
        if not key.startswith("GGUF."):
            assert file.metadata[key] == field.contents(), key


def test_a_quarter_of_a_million_tokens(gemma3_gguf: Path) -> None:
    file = GgufFile(gemma3_gguf)
    tokens, kinds = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    assert (len(tokens), len(kinds)) == (262_144, 262_144)
    assert [tokens[i] for i in (0, 1, 2, 105, 106, 238, 262_143)] == [
        *("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<0x00>", "<unused6241>"),
    ]
    assert file.tensor_types == {"F32": 109, "Q5_0": 81, "Q4_K": 27, "Q8_0": 10, "Q6_K": 9}


@pytest.mark.no_cover
def test_vocabularies_without_weights(llama_cpp_models: Path) -> None:
    paths = sorted(llama_cpp_models.glob("ggml-vocab-*.gguf"))
    assert len(paths) > 5
    for path in paths:
        file = GgufFile(path)
        assert file.tensors == {}
        assert len(file.metadata["tokenizer.ggml.tokens"]) > 1000  # type: ignore[arg-type]
