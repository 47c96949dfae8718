"""The OpenAPI document is complete, and a fuzzer that believes it finds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import gguf_models
from support.served import SmallPool, listening, small_app
from support.small_model import small_model

SEED = 20261121
NUM_EXAMPLES = int(os.environ.get("TUILI_FUZZ_EXAMPLES", "3"))
LARGE = "completions$|messages$|/api/generate$|/api/chat$"  # bodies of many fields
LEFT_OUT = "/api/pull$"  # fetches


async def test_the_document_tells_bodies_scopes_and_errors() -> None:
    async with small_app() as (_, client):
        document = (await client.get("/openapi.json")).json()
    shared = document["components"]["schemas"]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["x-scope"] in ("public", "infer", "manage"), path
            assert {"200", "4XX", "5XX"} <= set(operation["responses"]), path
            assert "422" not in operation["responses"]
            assert method == "get" or operation["summary"]
    chat = document["paths"]["/v1/chat/completions"]["post"]
    schema = chat["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["model"]["examples"] == ["small"]
    assert "text/event-stream" in chat["responses"]["200"]["content"]
    assert "#/components/schemas/openai.StreamOptions" in str(schema)
    assert {"openai.StreamOptions", "openai.Options", "ollama.Options"} <= set(shared)
    assert "$defs" not in str(document)


@pytest.mark.parametrize(
    ("paths", "phases"),
    [
        (["--exclude-path-regex", f"{LARGE}|{LEFT_OUT}"], "examples,coverage,fuzzing"),
        (["--include-path-regex", LARGE], "examples,fuzzing"),  # test_edge_matrix.py has their boundary values
    ],
    ids=["small", "large"],
)
def test_a_fuzzer_finds_no_answer_that_is_not_documented(
    paths: list[str], phases: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """schemathesis: examples, boundary values and random bodies, with the same seed each time."""
    monkeypatch.setenv("TUILI_HOME", str(tmp_path / "home"))
    (tmp_path / "small.gguf").write_bytes(gguf_models.seeds()["llama"].encode())
    with listening(pool=SmallPool(small_model(), path=tmp_path / "small.gguf")) as server:
        command = [Path(sys.executable).with_name("st"), "run", f"{server.url}/openapi.json", *paths]
        checks = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]  # ranges are not in the schemas
        limits = ["--phases", phases, "--max-examples", str(NUM_EXAMPLES), "--seed", str(SEED)]
        quiet = ["--generation-database", "none", "--no-color"]
        result = subprocess.run(
            [*command, *checks, *limits, *quiet], capture_output=True, text=True, timeout=550, cwd=tmp_path
        )
        assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
        counts = server.app.state.request_log.counts
    assert sum(counts.values()) > 20
    assert {key: count for key, count in counts.items() if key[2] >= 500} == {}
