"""safetensors files: accepted exactly when the reference implementation accepts them, duplicates aside."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tuili.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from tuili.weights.safetensors import SafetensorsFile, merge_shards, read_weight_map


def encode(header: str | bytes | Mapping[str, Any], data: bytes = bytes(range(16)), length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else header if isinstance(header, str) else json.dumps(header)
    raw = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape: object = (4,), offsets: object = (0, 16), dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(f"{path.name}: ")
    return str(caught.value).removeprefix(f"{path.name}: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def is_accepted(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        SafetensorsFile(path)
    except ModelFileError:
        return False
    return True


def is_accepted_by_reference(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


def test_tensors_of_torch(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": torch.randn(3, 5, generator=generator),
        "half": torch.randn(2, 3, 4, generator=generator).half(),
        "brain": torch.randn(7, generator=generator).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert file.num_bytes == path.stat().st_size
    assert set(file.tensors) == set(tensors)
    for name, expected in tensors.items():
        found = file.tensors[name]
        assert found.shape == tuple(expected.shape)
        assert found.format.safetensors_dtype == {"half": "F16", "brain": "BF16"}.get(name, "F32")
        np.testing.assert_array_equal(found.dequantize(), expected.float().numpy())
        assert not found.data.flags.writeable


@pytest.mark.parametrize("dtype", ["I64", "F8_E4M3", "BOOL", "F4"])
def test_other_dtypes_are_refused_by_name_when_asked_for(path: Path, dtype: str) -> None:
    count = {"I64": 2, "F4": 32}.get(dtype, 16)
    path.write_bytes(encode({"a": entry([count], dtype=dtype)}))
    file = SafetensorsFile(path)
    allowed = "implemented are BF16, F16, F32"
    with pytest.raises(UnsupportedModelError, match=f"^model.safetensors: tensor a has dtype {dtype}, {allowed}$"):
        file.tensors["a"]


TAKES = 'it must have "dtype", "shape" and two "data_offsets", whole numbers below 2^64'
REFUSALS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes, a model file is not empty"),
    "no length": (b"\0" * 7, "7 bytes, a safetensors file begins with 8 bytes of header length"),
    "length past end": (encode("{}", b"", 3), "header ends at byte 11, the file has 10"),
    "length past cap": (
        encode("{}", length=2**63),
        "header of 9223372036854775808 bytes, at most 100000000 are allowed",
    ),
    "length wraps": (encode("{}", length=2**64 - 1), "at most 100000000 are allowed"),
    "not UTF-8": (encode(b'{"\xff": 1}'), "byte 2 is not UTF-8, JSON must be"),
    "not JSON": (encode('{"a": }'), "not valid JSON"),
    "not an object": (encode("[1]"), "JSON list, an object is expected"),
    "nothing": (encode(""), "not valid JSON"),
    "NaN": (encode('{"a": NaN}'), "NaN is not a JSON number"),
    "deep arrays": (encode('{"a":' + "[" * 100_000), "JSON nested too deeply"),
    "deep objects": (encode('{"a":' * 100_000), "JSON nested too deeply"),
    "many items": (encode("[" + "[]," * 2_000_000 + "[]]"), "JSON of more than 4000000 items, more are not allowed"),
    "long number": (encode('{"a": ' + "9" * 5000 + "}"), "not valid JSON"),
    "duplicate tensor": (
        encode(f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}'),
        "not valid JSON: duplicate key 'a'",
    ),
    "duplicate field": (encode('{"a": {"dtype": "F32", "dtype": "F32"}}'), "not valid JSON: duplicate key 'dtype'"),
    "surrogate": (encode('{"\\ud800": {}}'), "not valid JSON: unpaired surrogate in '\\ud800'"),
    "metadata of numbers": (
        encode({"__metadata__": {"a": 1}, "a": entry()}),
        "__metadata__ is {'a': 1}, an object of strings is allowed",
    ),
    "metadata list": (encode({"__metadata__": []}, b""), "__metadata__ is [], an object of strings is allowed"),
    "entry of null": (encode({"a": None}), f"tensor a is None, {TAKES}"),
    "no shape": (encode({"a": {"dtype": "F32", "data_offsets": [0, 16]}}), TAKES),
    "shape of floats": (encode({"a": entry([4.0])}), TAKES),
    "shape of bools": (encode({"a": entry([True], [0, 4])}), TAKES),
    "shape of strings": (encode({"a": entry(["4"])}), TAKES),
    "negative dimension": (encode({"a": entry([-4])}), TAKES),
    "dimension of 2^64": (encode({"a": entry([2**64])}), TAKES),
    "negative zero": (encode('{"a":{"dtype":"F32","shape":[4],"data_offsets":[-0,16]}}'), TAKES),
    "three offsets": (encode({"a": entry(offsets=[0, 8, 16])}), TAKES),
    "unknown dtype": (encode({"a": entry(dtype="F31")}), "tensor a has dtype 'F31', allowed are F4, F6_E2M3"),
    "dtype of null": (encode({"a": entry(dtype=None)}), "tensor a has dtype None, allowed are"),
    "shape does not match": (encode({"a": entry([5])}), "shape [5] has 16 bytes, 20 are what it takes"),
    "shape wraps": (encode({"a": entry([2**32, 2**32, 4])}), "shape [4294967296, 4294967296, 4] has 16 bytes"),
    "shape wraps beside zero": (
        encode({"a": entry(), "b": entry([2**32, 2**32, 0], [16, 16])}),
        "shape [4294967296, 4294967296, 0] has 0 bytes",
    ),
    "reversed offsets": (encode({"a": entry(offsets=[16, 0])}), "has -16 bytes, 16 are what it takes"),
    "half a byte": (encode({"a": entry([31], dtype="F4")}), "has 16 bytes, 15.5 are what it takes"),
    "past the end": (encode({"a": entry([5], [0, 20])}), "tensors end at byte 20 of the data, the file has 16"),
    "far past the end": (encode({"a": entry([2**60], [0, 2**62])}), "of the data, the file has 16"),
    "hole before": (encode({"a": entry([3], [4, 16])}), "tensor a begins at byte 4 of the data, 0 is where it must"),
    "hole between": (
        encode({"a": entry([1], [0, 4]), "b": entry([2], [8, 16])}),
        "tensor b begins at byte 8 of the data, 4 is where it must",
    ),
    "overlap": (
        encode({"a": entry([3], [0, 12]), "b": entry([2], [8, 16])}),
        "tensor b begins at byte 8 of the data, 12 is where it must",
    ),
    "bytes left over": (encode({"a": entry([3], [0, 12])}), "tensors end at byte 12 of the data, the file has 16"),
    "no tensors but data": (encode("{}"), "tensors end at byte 0 of the data, the file has 16"),
    "pickle": (b"\x80\x04\x95" + bytes(30), "refused: executable format; convert to safetensors"),
    "zip archive": (b"PK\x03\x04" + bytes(30), "refused: executable format; convert to safetensors"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(path: Path, case: str) -> None:
    content, words = REFUSALS[case]
    assert words in refusal(path, content)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x50280, 0x1950480])
def test_headers_as_long_as_a_pickle_begins_are_read(path: Path, length: int) -> None:
    """A file starts with that length: 0x80 and the version of a protocol, as pickles do."""
    content = encode(json.dumps({"a": entry()}).ljust(length))
    assert is_accepted_by_reference(content)
    assert is_accepted(path, content)


def test_headers_up_to_the_cap_are_bounded(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(ModelFileError, match="header of 100000001 bytes, at most 100000000 are allowed"):
        SafetensorsFile(path)


def test_no_file(path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^model\.safetensors: no such file$"):
        SafetensorsFile(path)


VALID = encode(
    {
        "__metadata__": {"format": "pt"},
        "a": entry([2, 1], [0, 8]),
        "b": entry([0], [8, 8]),
        "ü": entry([3], [8, 14], "BF16"),
        "d": entry([], [14, 16], "F16"),
    }
)


def test_truncation_at_every_byte(path: Path) -> None:
    for size in range(len(VALID)):
        refusal(path, VALID[:size])
    assert is_accepted(path, VALID)
    assert not is_accepted(path, VALID + b"\0")


SNIPPETS = [
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\0", b"\xff", b"\\ud800", b"\\u0061", b'"x":1,'),
    *(
        b"0",
        b"-",
        b"1e1",
        b"16",
        b"1,",
        b"18446744073709551616",
        b"null",
        b"true",
        b'"F16"',
        b'"BF16"',
        b'"I8"',
        b'"F4"',
    ),
]


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_mutated_headers_as_the_reference_judges_them(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    header = bytearray(VALID[8:-16])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(header)))
        removed = data.draw(st.integers(0, 4))
        header[at : at + removed] = data.draw(st.sampled_from([b"", *SNIPPETS]))
    content = encode(bytes(header))
    found = is_accepted(tmp_path_factory.getbasetemp() / "mutated.safetensors", content)
    assert found == (is_accepted_by_reference(content) and has_distinct_keys(bytes(header)))


names = st.sampled_from(["a", "b", "c", "__metadata__"])
sizes = st.integers(0, 5) | st.sampled_from([8, 12, 16, 2**32, 2**64 - 1, 2**64, -1])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "F4", "F6_E2M3", "F33"]),
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | st.lists(sizes, max_size=3),
    }
)


@settings(max_examples=300, deadline=None)
@given(header=st.dictionaries(names, entries, max_size=3), num_bytes=st.integers(0, 16))
def test_random_headers_as_the_reference_judges_them(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], num_bytes: int
) -> None:
    content = encode(header, bytes(num_bytes))
    found = is_accepted(tmp_path_factory.getbasetemp() / "random.safetensors", content)
    assert found == is_accepted_by_reference(content)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_random_tilings_are_accepted(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    position, header = 0, {}
    for index in range(data.draw(st.integers(1, 5))):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        dtype, size = data.draw(st.sampled_from([("F32", 4), ("F16", 2), ("BF16", 2), ("U8", 1), ("I64", 8)]))
        end = position + int(np.prod(shape, dtype=int)) * size
        header[f"t{index}"] = entry(shape, [position, end], dtype)
        position = end
    shuffled = dict(data.draw(st.permutations(list(header.items()))))
    content = encode(shuffled, bytes(position))
    assert is_accepted_by_reference(content)
    assert is_accepted(tmp_path_factory.getbasetemp() / "tiled.safetensors", content)


def has_distinct_keys(header: bytes) -> bool:
    """The reference keeps the last of duplicate tensors; we refuse them."""
    is_distinct = True

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal is_distinct
        is_distinct &= len(dict(pairs)) == len(pairs)
        return dict(pairs)

    json.loads(header, object_pairs_hook=check)
    return is_distinct


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, SafetensorsFile]:
    save_file({"a": torch.zeros(2), "b": torch.ones(3)}, tmp_path / "1.safetensors")
    save_file({"c": torch.full((4,), 2.0)}, tmp_path / "2.safetensors")
    return {name: SafetensorsFile(tmp_path / name) for name in ("1.safetensors", "2.safetensors")}


WEIGHT_MAP = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}


def test_shards_are_one(shards: dict[str, SafetensorsFile]) -> None:
    tensors = merge_shards(shards, {"metadata": {"total_size": 36}, "weight_map": WEIGHT_MAP}, "index.json")
    assert {name: tensor.dequantize().tolist() for name, tensor in tensors.items()} == {
        "a": [0.0, 0.0],
        "b": [1.0, 1.0, 1.0],
        "c": [2.0] * 4,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"c": "1.safetensors"}, "tensor c of 2.safetensors is listed under '1.safetensors'"),
        ({"d": "2.safetensors"}, "tensor d is not in 2.safetensors"),
        ({"b": None}, "tensor b of 1.safetensors is listed under None"),
    ],
)
def test_index_and_shards_must_agree(
    shards: dict[str, SafetensorsFile], changes: dict[str, str | None], words: str
) -> None:
    weight_map = {name: shard for name, shard in (WEIGHT_MAP | changes).items() if shard is not None}
    with pytest.raises(ModelFileError, match=f"^index.json: {words}, weight_map must name its file$"):
        merge_shards(shards, {"weight_map": weight_map}, "index.json")


@pytest.mark.parametrize(
    "shard",
    [
        *("../1.safetensors", "/1.safetensors", "x/1.safetensors", "x\\1.safetensors", "1.safetensors\0"),
        *("..", ".", "", "pytorch_model.bin", 7, None),
    ],
)
def test_shards_have_plain_names(shard: object) -> None:
    with pytest.raises(ModelFileError, match=r"^index\.json: weight_map names .*, plain names \*\.safetensors"):
        read_weight_map({"weight_map": {"a": shard}}, "index.json")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": None}])
def test_an_index_has_a_weight_map(index: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match=r"^index\.json: weight_map is .*, an object of file names is expected$"):
        read_weight_map(index, "index.json")
