"""What survives a crash: every write is synced before its name, names before what refers to them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from support.index_server import tiny_model
from support.shop import Shop
from tuili.errors import InsufficientStorageError
from tuili.store.durable import make_folder, publish, storage_errors, write_atomic

PART = os.urandom(10_000)


class _PowerCutError(BaseException):
    """Nothing may catch this."""


@contextmanager
def recorded(on_operation: Callable[[str, str], None]) -> Iterator[None]:
    """Calls `on_operation(kind, path)` before every fsync, rename and removal."""
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink

    def recording_fsync(descriptor: int) -> None:
        on_operation("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def recording_replace(self: Path, target: Any) -> Any:
        on_operation("replace", str(target))
        return replace(self, target)

    def recording_unlink(self: Path, missing_ok: bool = False) -> None:
        on_operation("unlink", str(self))
        unlink(self, missing_ok)

    with (
        mock.patch.object(os, "fsync", recording_fsync),
        mock.patch.object(Path, "replace", recording_replace),
        mock.patch.object(Path, "unlink", recording_unlink),
    ):
        yield


def test_a_pull_syncs_contents_before_names_and_the_blob_before_the_manifest(shop: Shop) -> None:
    entry = shop.add(tiny_model(PART))
    trace: list[tuple[str, str]] = []
    with recorded(lambda kind, path: trace.append((kind, path))):
        shop.store.pull("tiny")
    blobs, manifests = str(shop.root / "blobs"), str(shop.root / "manifests" / "_" / "tiny")
    blob = trace.index(("replace", f"{blobs}/sha256-{entry.sha256}"))
    manifest = trace.index(("replace", f"{manifests}/1.json"))
    assert trace[blob - 1] == ("fsync", str(shop.root / "partial" / "_" / "tiny" / "1" / "assembled"))
    assert trace[blob + 1] == ("fsync", blobs)
    assert trace[manifest - 1][0] == "fsync"
    assert trace[manifest - 1][1].startswith(f"{manifests}/.new-")
    assert trace[manifest + 1] == ("fsync", manifests)
    assert blob < manifest
    assert ("fsync", str(shop.root)) in trace[:blob]  # the folders themselves are durable too


def test_cut_at_every_operation_the_store_opens_and_shows_only_whole_models(shop: Shop) -> None:
    shop.add(tiny_model(PART))
    num_cuts = 0
    while _cut(shop, lambda: shop.store.pull("tiny"), num_cuts):
        assert shop.store.check() == ()
        for files in shop.store.list():
            assert files.path.read_bytes() == PART
        assert shop.store.pull("tiny").path.read_bytes() == PART
        shop.store.remove("tiny")
        assert {path.name for path in shop.root.rglob("*") if path.is_file()} <= {"1.lock", "publish.lock"}
        num_cuts += 1
    assert num_cuts > 10


def test_cut_at_every_operation_of_a_removal_no_visible_model_lacks_its_file(shop: Shop) -> None:
    shop.add(tiny_model(PART, name="one:1"))
    shop.add(tiny_model(PART, name="two:1"))
    num_cuts, is_cut = 0, True
    while is_cut:
        shop.store.pull("one")
        two = shop.store.pull("two").path
        is_cut = _cut(shop, lambda: shop.store.remove("one"), num_cuts)
        assert shop.store.check() == ()
        assert two.read_bytes() == PART
        num_cuts += 1
    assert num_cuts > 2


def _cut(shop: Shop, action: Callable[[], object], at: int) -> bool:
    """Whether power was cut, before operation number `at`."""
    remaining = [at]

    def count(_: str, __: str) -> None:
        if remaining[0] == 0:
            raise _PowerCutError
        remaining[0] -= 1

    try:
        with recorded(count):
            action()
    except _PowerCutError:
        return True
    return False


def test_an_atomic_write_replaces_or_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    with (
        mock.patch.object(os, "fsync", side_effect=OSError(errno.EIO, "bad disk")),
        pytest.raises(OSError, match=r"bad disk"),
    ):
        write_atomic(path, b"newer")
    assert [file.read_bytes() for file in path.parent.iterdir()] == [b"new"]


def test_publishing_moves(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"1")
    publish(tmp_path / "part", tmp_path / "x" / "final")
    make_folder(tmp_path / "x")
    assert (tmp_path / "x" / "final").read_bytes() == b"1"
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk of the model store is full: free some space, or name another folder with TUILI_HOME"),
        (errno.EDQUOT, "the disk of the model store is full"),
        (errno.EROFS, r"the model store cannot be used \(Read-only file system\)"),
        (errno.EACCES, r"the model store cannot be used \(Permission denied\)"),
        (errno.EMFILE, r"the model store cannot be used \(Too many open files\)"),
    ],
)
def test_the_systems_refusals_are_explained(number: int, message: str) -> None:
    with pytest.raises(InsufficientStorageError, match=message), storage_errors():
        raise OSError(number, os.strerror(number), "/secret/path")


def test_other_failures_pass_unchanged() -> None:
    with pytest.raises(ConnectionResetError), storage_errors():
        raise ConnectionResetError(errno.ECONNRESET, "reset")
