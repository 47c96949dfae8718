"""Manifests: written and read back; what is damaged is refused by field."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuili.errors import ModelFileError
from tuili.store.manifest import MAX_MANIFEST_BYTES, FileRecord, Manifest, read_manifest

BLOB = Manifest(
    name="a:b",
    source="pypi",
    files=(FileRecord(name="a.gguf", num_bytes=7, sha256="ab" * 32),),
    created=1,
    license="MIT",
)
SNAPSHOT = Manifest(
    name="o/a",
    source="huggingface",
    files=(FileRecord(name="x/b.gguf", num_bytes=7, sha256=None), FileRecord(name="c", num_bytes=0, sha256=None)),
    created=1,
    folder="/cache",
    revision="r",
    quantization="BF16",
)


@pytest.mark.parametrize("manifest", [BLOB, SNAPSHOT])
def test_a_manifest_is_read_as_written(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(manifest.to_bytes())
    assert read_manifest(path) == manifest
    assert manifest.num_bytes == 7


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(BLOB.to_bytes()) | fields).encode()


def changed_file(**fields: Any) -> bytes:
    content = json.loads(BLOB.to_bytes())
    return changed(files=[content["files"][0] | fields])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 10**5, "not JSON"),
        (b"[]", "must be a JSON object, found list"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "more than 4194304 bytes"),
        (changed(format=2), "format must be 1, found 2: upgrade tuili"),
        (changed(name=3), "field name must be str, found 3"),
        (changed(created=True), "field created must be int, found True"),
        (changed(license=[]), "field license must be str"),
        (changed(files=[]), "field files must be a list of objects"),
        (changed(files=[1]), "field files must be a list of objects"),
        (changed_file(sha256=None), "without a folder must have one file with a sha256"),
        (changed_file(sha256="../../../../etc/passwd"), "64 lower-case hex digits"),
        (changed_file(sha256="AB" * 32), "64 lower-case hex digits"),
        (changed_file(sha256="ab" * 32 + "\n"), "64 lower-case hex digits"),
        (changed_file(name="../x"), "outside its folder"),
        (changed_file(name="/x"), "outside its folder"),
        (changed_file(name="a\\..\\b"), "outside its folder"),
        (changed_file(name=""), "outside its folder"),
        (changed_file(num_bytes=-1), r"field num_bytes must be in \[0, 9223372036854775807\], found -1"),
        (changed_file(num_bytes=2**63), "field num_bytes must be in"),
        (changed(created=-1), "field created must be in"),
        (changed(created=10**20), "field created must be in"),
        (changed_file(num_bytes=1.5), "field num_bytes must be int"),
    ],
)
def test_damage_is_refused_by_field(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=message):
        read_manifest(path)


@given(st.integers(0, 10**4), st.integers(0, 255))
def test_no_single_byte_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    data = bytearray(SNAPSHOT.to_bytes())
    data[at % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "mutant.json"
    path.write_bytes(data)
    with contextlib.suppress(ModelFileError):
        assert isinstance(read_manifest(path), Manifest)
