"""Headers of models that are elsewhere: the same outline as of the whole files, for a few of their bytes."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import tiny_models
from support.hub_server import HubServer, serving_hub
from support.index_server import IndexServer, serving, wheel_bytes
from support.shop import Shop
from tuili.errors import DownloadError, InvalidRequestError, ModelFileError, ModelNotFoundError
from tuili.runtime.plan.outline import Outline, open_outline
from tuili.runtime.plan.remote import files_at, write_headers
from tuili.store.catalogue import CatalogueEntry, WheelMember
from tuili.store.offered import OfferedFile, Traffic
from tuili.store.store import Store

NAME = "SmolLM2-Q4_1.gguf"


@pytest.fixture(scope="module")
def gguf_bytes(smollm2_gguf: Path) -> bytes:
    return smollm2_gguf.read_bytes()


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied model of a few hundred kilobytes in two shards."""
    folder = tmp_path_factory.mktemp("snapshot")
    model = tiny_models.build("llama", hidden_size=128, vocab_size=3000, tie_word_embeddings=True)
    model.save_pretrained(folder, max_shard_size="600KB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving_hub() as server:
        yield server


def outline(name: str | Path, store: Store | None = None) -> Outline:
    with open_outline(str(name), store or Store(Path("none"))) as found:
        return found


def assert_same(found: Outline, whole: Outline) -> None:
    assert (found.spec, found.stored, found.file_bytes) == (whole.spec, whole.stored, whole.file_bytes)


def test_a_gguf_at_a_url_is_told_from_its_header(hub: HubServer, gguf_bytes: bytes, smollm2_gguf: Path) -> None:
    hub.repositories["org/name"] = {NAME: gguf_bytes}
    found = outline(f"{hub.url}/org/name/blob/main/{NAME}?download=true")
    assert_same(found, outline(smollm2_gguf))
    assert found.has_tokenizer
    assert found.num_fetched_bytes == hub.num_bytes_sent < 4_500_000


def test_of_a_gguf_in_parts_any_part_names_all(hub: HubServer) -> None:
    names = [f"q 4-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    files = hub.repositories["org/name"] = {name.replace(" ", "%20"): b"GGUF" for name in names}
    for name in files:
        with files_at(f"{hub.url}/org/name/resolve/main/{name}?download=true", Traffic()) as found:
            assert [file.name for file in found] == names
            assert all(file.open().read() == b"GGUF" for file in found)
    files.popitem()
    with pytest.raises(ModelNotFoundError, match=f"has no {names[2]}"):
        outline(f"{hub.url}/org/name/resolve/main/q%204-00001-of-00003.gguf")


@pytest.mark.parametrize("num_bytes", [2**62, 2**63])
def test_a_size_that_no_file_can_have_is_one_line(tmp_path: Path, smollm2_gguf: Path, num_bytes: int) -> None:
    file = OfferedFile(name="m.gguf", num_bytes=num_bytes, open=lambda: smollm2_gguf.open("rb"))
    with pytest.raises(DownloadError, match=f"m.gguf cannot have {num_bytes} bytes here"):
        write_headers([file], tmp_path)


PRINT = """
import sys
from pathlib import Path
from tuili.runtime.plan.outline import open_outline
from tuili.store.store import Store
with open_outline("org/name", Store(Path("none"))) as found:
    print([found.stored, found.file_bytes, found.has_tokenizer, found.num_fetched_bytes])
"""


def test_a_repository_is_told_from_its_headers(hub: HubServer, snapshot: Path, tmp_path: Path) -> None:
    hub.repositories["org/name"] = {path.name: path.read_bytes() for path in snapshot.iterdir()}
    environment = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", PRINT], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    stored, file_bytes, has_tokenizer, num_fetched = ast.literal_eval(done.stdout)
    whole = outline(snapshot)
    assert (stored, file_bytes, has_tokenizer) == (whole.stored, whole.file_bytes, False)
    assert num_fetched < 300_000 < file_bytes


@pytest.mark.parametrize("end", ["", "config.json", "model.safetensors.index.json"])
def test_a_folder_at_a_url_is_told_from_its_headers(hub: HubServer, snapshot: Path, end: str) -> None:
    hub.repositories["org/name"] = {path.name: path.read_bytes() for path in snapshot.iterdir()}
    assert_same(outline(f"{hub.url}/org/name/resolve/main/{end}"), outline(snapshot))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_model_in_wheels_is_told_from_the_first(
    tmp_path: Path, index: IndexServer, gguf_bytes: bytes, smollm2_gguf: Path, compression: int
) -> None:
    entry, wheels = _wheels(gguf_bytes, compression)
    shop = Shop(tmp_path, index)
    shop.add((entry, wheels))
    found = outline("tiny:1", shop.store)
    assert_same(found, outline(smollm2_gguf))
    assert (found.num_fetched_bytes or 0) < 4_500_000
    assert {path.rsplit("/", 1)[-1] for path, _ in index.requests if path.endswith(".whl")} == {sorted(wheels)[0]}


@pytest.fixture
def index() -> Iterator[IndexServer]:
    with serving() as server:
        yield server


def _wheels(data: bytes, compression: int) -> tuple[CatalogueEntry, dict[str, bytes]]:
    members, wheels = [], {}
    for number, part in enumerate((data[:20_000_000], data[20_000_000:])):
        member = f"part{number}/data.gguf"
        digest = hashlib.sha256(part).hexdigest()
        name = f"tiny_{number}"
        members.append(WheelMember(project=name, version="1.0", member=member, num_bytes=len(part), sha256=digest))
        wheels[f"{name}-1.0-py3-none-any.whl"] = wheel_bytes({member: part}, compression)
    entry = CatalogueEntry(
        name="tiny:1",
        file_name=NAME,
        sha256=hashlib.sha256(data).hexdigest(),
        parts=tuple(members),
        quantization="Q4_1",
        license="Apache-2.0",
        summary="for tests",
    )
    return entry, wheels


def test_a_server_without_ranges_is_named_and_nothing_is_downloaded(hub: HubServer, gguf_bytes: bytes) -> None:
    hub.has_ranges = False
    hub.repositories["org/name"] = {NAME: gguf_bytes}
    with pytest.raises(DownloadError, match=f"sends {NAME} only as a whole, not in ranges: download it"):
        outline(f"{hub.url}/org/name/resolve/main/{NAME}")


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("/org/name/resolve/main/none.gguf", ModelNotFoundError, "has no none.gguf"),
        ("/org/name/resolve/main/cut.gguf", DownloadError, "ends after 1000 bytes, within its header"),
        ("/org/name/resolve/main/text.gguf", ModelFileError, "a GGUF file starts with b'GGUF'"),
        ("/org/name/model.bin", InvalidRequestError, r"model URL must end in \.gguf"),
    ],
)
def test_what_is_no_model_is_one_line(
    hub: HubServer, gguf_bytes: bytes, url: str, error: type[Exception], message: str
) -> None:
    hub.repositories["org/name"] = {"cut.gguf": gguf_bytes[:1000], "text.gguf": b"hello" * 100}
    with pytest.raises(error, match=message):
        outline(hub.url + url)


def test_a_name_that_nobody_offers_is_not_looked_for() -> None:
    with pytest.raises(ModelNotFoundError, match="no file or folder"):
        outline("none.gguf")
    with pytest.raises(ModelNotFoundError, match="is not known"):
        outline("nothing")
