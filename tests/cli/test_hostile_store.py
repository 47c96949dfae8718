"""A store that somebody put things into: every command ends in lines of its own, and nothing outside is touched."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.json_mutants import VALUES, mutated
from support.shop import Shop

from .conftest import PART, Cli, Outcome

NUM_MUTANTS = int(os.environ.get("TUILI_HOSTILE_MANIFESTS", "60"))
ODD_VALUES = (*VALUES, "\ud800", "\x1b[31m", "a\nb", "/dev/zero", 10**300, 10**4000, -(10**12), 10**14)
RECORD, WORKSPACE = "manifests/_/tiny/1.json", "partial/_/tiny/1"
COMMANDS = (("list",), ("list", "--json"), ("fsck",), ("show", "--path", "tiny"))


def fine(outcome: Outcome) -> bool:
    """Whether a command ended as every one may: lines of ours, and nothing that paints a terminal."""
    lines = outcome.err.splitlines()
    return (
        outcome.code in (0, 1, 2)
        and all(line.startswith(("note: ", "error: ", "tiny_", "checking ", "warning: ")) for line in lines)
        and "internal error" not in outcome.err
        and (outcome.out + outcome.err).replace("\n", "").isprintable()
    )


@pytest.fixture(autouse=True)
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the store that nobody may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    yield folder
    assert (folder / "mine").read_text() == "mine"


def _replaced(path: Path, put: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name("away"))
    else:
        path.unlink(missing_ok=True)
    put(path)


KINDS: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: (path / "x").mkdir(parents=True),
    "file": lambda path: path.write_text("x"),
    "pipe": os.mkfifo,
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "outside": lambda path: path.symlink_to(Path(os.environ["TUILI_HOME"]).parent / "outside"),
}
BLOB = f"blobs/sha256-{hashlib.sha256(PART).hexdigest()}"
PLACES = (RECORD, "manifests/_/tiny", "manifests/_", "manifests", "blobs", "locks", "locks/publish.lock",
          "locks/_/tiny/1.lock", "partial", WORKSPACE, f"{WORKSPACE}/assembled",
          f"{WORKSPACE}/tiny_1_part0-1.0.whl", "blobs/sha256-0\n\x1b[31m..", BLOB)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_odd_things_in_a_store(cli: Cli, shop: Shop, home: Path, place: str) -> None:
    """Whatever lies where the store keeps its own; without it, a pull mends everything."""
    for kind, put in KINDS.items():
        if kind == "pipe" and place.startswith(WORKSPACE):
            continue  # where a download is written to, as a device would be
        assert cli("pull", "tiny").code == 0
        _replaced(home / place, put)
        for arguments in (("fsck",), ("pull", "tiny"), ("list",), ("rm", "tiny")):
            outcome = cli(*arguments)
            assert fine(outcome), (kind, arguments, outcome)
        shutil.rmtree(home)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [RECORD, BLOB])
def test_fsck_finds_each(cli: Cli, shop: Shop, home: Path, place: str, kind: str) -> None:
    cli("pull", "tiny")
    _replaced(home / place, KINDS[kind])
    outcome = cli("fsck")
    assert outcome.code == 1
    assert "pull it again, or remove it" in outcome.err


def test_records_changed_by_strangers(cli: Cli, shop: Shop, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read, or refused and found by fsck; a record that is read is of the model it is filed under."""
    monkeypatch.setattr("support.json_mutants.VALUES", ODD_VALUES)
    cli("pull", "tiny")
    record = home / RECORD
    sound = record.read_bytes()
    chooser = random.Random(4)
    num_found = 0
    for _ in range(NUM_MUTANTS):
        record.write_bytes(json.dumps(mutated(json.loads(sound), chooser)).encode())
        outcomes = {arguments: cli(*arguments) for arguments in COMMANDS}
        assert all(map(fine, outcomes.values())), (record.read_bytes(), outcomes)
        num_found += outcomes["fsck",].code
        listed: list[Any] = json.loads(outcomes["list", "--json"].out)
        assert [model["name"] for model in listed] in (["tiny:1"], [])
        assert outcomes["fsck",].code == 1 or listed
    assert num_found > NUM_MUTANTS // 2
    assert cli("rm", "tiny").code == 0
    assert cli("list", "--json").out == "[]\n"
