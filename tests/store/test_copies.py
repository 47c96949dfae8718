"""A model under a second name: the same files, for as long as either name is there."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from support.index_server import tiny_model
from support.shop import Shop
from tuili.errors import ConflictError, InvalidRequestError, ModelFileError, ModelNotFoundError
from tuili.store import records

CONTENTS = os.urandom(20_000)


@pytest.fixture
def copied(shop: Shop) -> Shop:
    shop.add(tiny_model(CONTENTS))
    shop.store.pull("tiny:1")
    shop.store.copy("tiny", "mine")
    return shop


def test_a_copy_shares_its_files(copied: Shop) -> None:
    source, copy = copied.store.resolve("tiny"), copied.store.resolve("mine")
    assert (copy.name, copy.path, copy.digest, copy.num_bytes) == ("mine", source.path, source.digest, len(CONTENTS))
    assert (copy.source, copy.license, copy.quantization) == (source.source, source.license, source.quantization)
    assert [files.name for files in copied.store.list()] == ["mine", "tiny:1"]
    assert copied.store.check() == ()
    assert len(list((copied.root / "blobs").iterdir())) == 1


def test_a_list_is_read_again_only_where_something_changed(copied: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    store = copied.store
    real = records.read_manifest
    monkeypatch.setattr(records, "read_manifest", lambda path: (read.append(path.name), real(path))[1])

    def listed() -> list[str]:
        read.clear()
        return [files.name for files in store.list()]

    assert (listed(), len(read)) == (["mine", "tiny:1"], 2)
    assert (listed(), read) == (["mine", "tiny:1"], [])
    assert store.sole() is None
    (manifest,) = (copied.root / "manifests").rglob("1.json")
    kept = manifest.read_bytes()
    manifest.write_bytes(b"{")
    assert (listed(), read) == (["mine"], ["1.json"])
    manifest.write_bytes(kept)
    assert (listed(), read) == (["mine", "tiny:1"], ["1.json"])
    store.remove("tiny")
    assert (listed(), read) == (["mine"], [])
    assert store.sole() == store.resolve("mine")
    store.remove("mine")
    assert (listed(), store.sole()) == ([], None)


@pytest.mark.parametrize("order", [("tiny", "mine"), ("mine", "tiny")])
def test_files_go_with_the_last_name(copied: Shop, order: tuple[str, str]) -> None:
    first, last = order
    copied.store.remove(first)
    assert copied.store.path(last).read_bytes() == CONTENTS
    assert copied.store.check() == ()
    copied.store.remove(last)
    assert list((copied.root / "blobs").iterdir()) == []


def test_a_changed_file_is_told_for_every_name(copied: Shop) -> None:
    path = copied.store.path("mine")
    path.write_bytes(bytes(len(CONTENTS)))
    assert len(copied.store.check()) == 2
    path.write_bytes(b"short")
    with pytest.raises(ModelFileError, match="5 bytes"):
        copied.store.copy("mine", "another")


def test_a_copy_keeps_what_the_catalogue_recommends(shop: Shop) -> None:
    entry, wheels = tiny_model(CONTENTS)
    shop.add((replace(entry, sampling=(("temperature", 0.3),)), wheels))
    shop.store.pull("tiny")
    shop.store.copy("tiny", "mine")
    shop.store.copy("mine", "org/third:tag")
    assert shop.store.recommended_sampling("mine") == {"temperature": 0.3}
    assert shop.store.recommended_sampling("org/third:tag") == {"temperature": 0.3}


def test_copying_again_changes_nothing(copied: Shop) -> None:
    assert copied.store.copy("tiny", "mine") == copied.store.resolve("mine")


def test_names_that_are_taken_are_refused(copied: Shop) -> None:
    copied.add(tiny_model(os.urandom(9_000), name="other:1"))
    copied.store.pull("other")
    copied.store.copy("other", "theirs")
    with pytest.raises(ConflictError, match="'theirs' is stored already"):
        copied.store.copy("tiny", "theirs")
    with pytest.raises(InvalidRequestError, match="catalogued"):
        copied.store.copy("tiny", "other")
    with pytest.raises(ModelNotFoundError, match="'absent' is not stored"):
        copied.store.copy("absent", "new")
    with pytest.raises(InvalidRequestError, match="model name"):
        copied.store.copy("tiny", "../outside")
    assert [files.name for files in copied.store.list()] == ["mine", "other:1", "theirs", "tiny:1"]
