"""Telling a model from another: any change of what would be loaded, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tuili.errors import ModelFileError
from tuili.runtime.jobs.model_identity import model_digest
from tuili.store.manifest import FileRecord, Manifest
from tuili.store.records import ModelFiles


def _digest(path: Path, digest: str | None = None) -> str:
    return model_digest(ModelFiles(name="m", path=path, source="local", num_bytes=1, created=0, digest=digest))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))


def test_a_file_is_told_by_both_ends_size_and_time(tmp_path: Path) -> None:
    path, data = tmp_path / "m.gguf", bytes(3 << 20)
    _write(path, data)
    seen = {_digest(path)}
    assert _digest(path) in seen
    for other in (b"x" + data[1:], data[:-1] + b"x", data + b"x"):
        _write(path, other)
        seen.add(_digest(path))
    os.utime(path, ns=(0, 1))
    seen.add(_digest(path))
    assert len(seen) == 5


def test_all_parts_and_all_files_of_a_folder_count(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        _write(part, b"GGUF")
    one, folder = _digest(parts[0]), _digest(tmp_path)
    _write(tmp_path / "out.jsonl", b"a job's answers")
    _write(tmp_path / "other.gguf", b"GGUF")
    assert _digest(parts[0]) == one
    (tmp_path / "other.gguf").unlink()
    assert _digest(tmp_path) == folder
    _write(parts[1], b"GGVF")
    assert _digest(parts[0]) != one
    assert _digest(tmp_path) != folder


def test_a_stored_model_is_told_by_its_manifest(tmp_path: Path) -> None:
    def manifest(sha256: str | None, revision: str | None = None) -> Manifest:
        files = (FileRecord(name="m.gguf", num_bytes=4, sha256=sha256),)
        return Manifest(name="m", source="s", files=files, created=0, revision=revision)

    assert manifest(None).digest is None
    digests = {manifest("a").digest, manifest("b").digest, manifest(None, "r").digest, manifest(None, "q").digest}
    assert len(digests - {None}) == 4
    assert _digest(tmp_path / "never read", "known") == "known"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"gone\.gguf: cannot be read: No such file"):
        _digest(tmp_path / "gone.gguf")
