"""A conversation of the `ollama` package from npm with SmolLM2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from support.served import Listening


def test_a_conversation(smollm2_server: Listening, name: str, node_clients: Path) -> None:
    script = node_clients / "ollama_client.mjs"  # beside the packages it imports
    shutil.copy(Path(__file__).with_name("client.mjs"), script)
    environment = {**os.environ, "URL": smollm2_server.url, "MODEL": name}
    result = subprocess.run(["node", script], env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert "4" in told["whole"]
    assert told["whole"] == told["streamed"] == told["generated"]
    first, second = told["counts"]
    assert (second > first, bool(told["said_then"])) == (True, True)
    assert (told["done"], told["left"], told["models"]) == ("stop", "AbortError", [name])
    (missing, missing_text), (refused, refused_text), (long, long_text) = told["errors"]
    assert (missing, refused, long) == (404, 400, 400)
    assert "the context holds 512" in long_text
    assert told["stopped"][0] == "stop"
    assert "classic" not in told["stopped"][1]
    smollm2_server.wait_idle()
    assert "absent" in missing_text
    assert "format is not implemented" in refused_text
