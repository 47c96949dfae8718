"""The Hugging Face source: which files it wants, and a pull through huggingface_hub from a hub of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hub_server import COMMIT, HubServer, serving_hub
from tuili.errors import DownloadError, ModelNotFoundError, TuiliError, UnsupportedModelError
from tuili.store.names import parse_model_name
from tuili.store.sources.huggingface import choose_files

SNAPSHOT = {
    name: name.encode()
    for name in (
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
        "README.md",
    )
}
UNWANTED = (
    *("modeling_x.py", "pytorch_model.bin", "consolidated.safetensors", "model.fp16.safetensors", "optimizer.pt"),
    *("training_args.bin", "x.pkl", "onnx/model.onnx", "adapter_model.safetensors", "sub/config.json"),
)
PARTS = ("q/m-Q8_0-00001-of-00002.gguf", "q/m-Q8_0-00002-of-00002.gguf")
GGUFS = ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "sub/m-BF16.gguf", "m.IQ2_XXS.gguf")


def chosen(files: tuple[str, ...], name: str = "org/name") -> list[str]:
    return choose_files(dict.fromkeys(files), parse_model_name(name))


def test_a_snapshot_is_what_a_model_needs_and_no_code_or_pickle() -> None:
    assert chosen((*SNAPSHOT, *UNWANTED, *GGUFS)) == sorted(SNAPSHOT)


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        *(("Q8_0", "m-Q8_0.gguf"), ("q8_0", "m-Q8_0.gguf"), ("m-Q8_0", "m-Q8_0.gguf")),
        *(("BF16", "sub/m-BF16.gguf"), ("IQ2_XXS", "m.IQ2_XXS.gguf")),
    ],
)
def test_the_tag_chooses_among_gguf_files(tag: str, file: str) -> None:
    assert chosen((*SNAPSHOT, *GGUFS), f"org/name:{tag}") == [file]


def test_all_parts_of_a_gguf_are_chosen() -> None:
    assert chosen(PARTS) == list(PARTS)
    for tag in ("q8_0", "m-Q8_0"):
        assert chosen((*SNAPSHOT, *GGUFS[:1], *reversed(PARTS)), f"org/name:{tag}") == list(PARTS)
    assert chosen((*PARTS, "q/m-Q8_0.gguf"), "org/name:Q8_0") == ["q/m-Q8_0.gguf"]


def test_without_a_tag_there_is_a_default() -> None:
    assert chosen(GGUFS) == ["m-Q4_K_M.gguf"]
    assert chosen(("only.gguf", "README.md")) == ["only.gguf"]


@pytest.mark.parametrize(
    ("files", "name", "error", "message"),
    [
        (
            GGUFS,
            "org/name:Q5_0",
            ModelNotFoundError,
            "has 0 GGUF files for 'Q5_0'; there are org/name:Q4_K_M, ",
        ),
        (GGUFS[1:], "org/name", ModelNotFoundError, "has 0 GGUF files for 'Q4_K_M'; there are org/name:Q8_0"),
        (("a-Q8_0.gguf", "b-Q8_0.gguf"), "org/name:Q8_0", ModelNotFoundError, "has 2 GGUF files for 'Q8_0'"),
        (("README.md",), "org/name:x", ModelNotFoundError, "there are none with a tag"),
        (("pytorch_model.bin",), "org/name", UnsupportedModelError, "weights in other formats are not fetched"),
        (("model.safetensors",), "org/name", UnsupportedModelError, "has safetensors without a config.json"),
        (
            PARTS[:1],
            "org/name",
            DownloadError,
            "org/name lacks q/m-Q8_0-00002-of-00002.gguf, a part of m-Q8_0-00001-of",
        ),
    ],
)
def test_what_cannot_be_chosen_is_said(
    files: tuple[str, ...], name: str, error: type[TuiliError], message: str
) -> None:
    with pytest.raises(error) as info:
        chosen(files, name)
    assert message in str(info.value)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serving_hub() as server:
        server.repositories["org/name"] = {**SNAPSHOT, **dict.fromkeys(UNWANTED, b"import os")}
        server.repositories["org/quants"] = dict(zip(GGUFS, (b"GGUF1", b"GGUF2", b"GGUF3", b"GGUF4"), strict=True))
        yield server


class Machine:
    """Runs the command line with a home and a Hugging Face cache of its own."""

    def __init__(self, folder: Path, hub: HubServer) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        self._environment = {
            **kept,
            "TUILI_HOME": str(folder / "home"),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def __call__(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """What the command wrote: to stdout when it must succeed, else to stderr."""
        command = [sys.executable, "-m", "tuili.cli.main", *arguments]
        done = subprocess.run(
            command, env=self._environment | environment, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout


@pytest.fixture
def machine(tmp_path: Path, hub: HubServer) -> Machine:
    return Machine(tmp_path, hub)


def test_a_snapshot_is_used_in_place_and_found_again_offline(machine: Machine, hub: HubServer, tmp_path: Path) -> None:
    machine("pull", "org/name", HF_TOKEN="hf_secret")
    assert sorted(hub.fetched()) == sorted(SNAPSHOT)
    assert {token for _, _, token in hub.requests} == {"Bearer hf_secret"}
    folder = Path(machine("show", "org/name", "--path").strip())
    assert folder.is_relative_to(tmp_path / "hf")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == SNAPSHOT
    (model,) = json.loads(machine("list", "--json"))
    assert {"name": "org/name", "source": "huggingface", "license": "mit"}.items() <= model.items()
    assert model["size"] == sum(map(len, SNAPSHOT.values()))
    hub.requests.clear()
    machine("pull", "org/name", HF_HUB_OFFLINE="1")
    assert hub.requests == []
    machine("pull", "org/name")
    assert hub.fetched() == []


def test_one_quantization_is_pulled_and_a_damaged_one_fetched_again(machine: Machine, hub: HubServer) -> None:
    hub.damaged["m-Q8_0.gguf"] = 1
    machine("pull", "org/quants:q8_0")
    assert hub.fetched() == ["m-Q8_0.gguf"] * 2
    assert Path(machine("show", "org/quants:q8_0", "--path").strip()).read_bytes() == b"GGUF2"
    hub.damaged["m-Q4_K_M.gguf"] = 2
    assert "m-Q4_K_M.gguf arrived damaged twice: its sha256 or size differs" in machine("pull", "org/quants", code=1)
    models: list[dict[str, Any]] = json.loads(machine("list", "--json"))
    assert [(model["name"], model["quantization"]) for model in models] == [("org/quants:q8_0", "Q8_0")]


def test_a_gguf_in_parts_is_pulled_whole(machine: Machine, hub: HubServer) -> None:
    hub.repositories["org/parts"] = dict(zip(PARTS, (b"GGUF1", b"GGUF22"), strict=True))
    machine("pull", "org/parts")
    assert sorted(hub.fetched()) == [Path(part).name for part in PARTS]
    first = Path(machine("show", "org/parts", "--path").strip())
    assert (first.name, first.read_bytes()) == ("m-Q8_0-00001-of-00002.gguf", b"GGUF1")
    assert first.with_name("m-Q8_0-00002-of-00002.gguf").read_bytes() == b"GGUF22"
    (model,) = json.loads(machine("list", "--json"))
    assert (model["size"], model["quantization"]) == (11, "Q8_0")


def test_a_cache_filled_by_others_serves_offline(machine: Machine, tmp_path: Path) -> None:
    repository = tmp_path / "hf" / "hub" / "models--org--mine"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs" / "1").write_bytes(b"GGUF")
    (snapshot / "m-Q8_0.gguf").symlink_to("../../blobs/1")
    machine("pull", "org/mine", HF_HUB_OFFLINE="1")
    assert machine("show", "org/mine", "--path", HF_HUB_OFFLINE="1").strip() == str(snapshot / "m-Q8_0.gguf")
    message = machine("pull", "org/none", code=1, HF_HUB_OFFLINE="1")
    assert message == "error: org/none is not in the Hugging Face cache and HF_HUB_OFFLINE is set\n"


def test_refusals_of_the_hub_are_one_line(machine: Machine, hub: HubServer) -> None:
    hub.gated.add("org/name")
    for name, expected, environment in (
        ("org/none", "no model 'org/none' on the hub, or it is private: then set HF_TOKEN", {}),
        ("org/name", "org/name is gated: accept its terms on its page, then set HF_TOKEN", {}),
        ("org/name", "cannot download org/name: ", {"HF_ENDPOINT": "http://127.0.0.1:1"}),
    ):
        message = machine("pull", name, code=1, **environment)
        assert message.startswith(f"error: {expected}")
        assert message.count("\n") == 1
