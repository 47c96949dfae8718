"""--quantize of the commands that have it: what is refused before anything is fetched, and what show makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support import tiny_models
from support.fake_pipeline import FakePipeline

from .conftest import Cli


@pytest.mark.parametrize(
    "command",
    [
        ("run", "no/such", "hello"),
        ("bench", "no/such"),
        ("show", "no/such"),
        ("plan", "no/such"),
        ("explain", "no/such", "hello"),
    ],
)
def test_no_recipe_of_that_name(cli: Cli, pipeline: FakePipeline, command: tuple[str, ...]) -> None:
    outcome = cli(*command, "--quantize", "awq")
    assert outcome.code == 2
    assert outcome.err.startswith("error: quantization must be one of q4_0, q4_1, ")
    assert outcome.err.endswith("got 'awq': checkpoints of that kind are not read here\n")
    assert outcome.err.count("\n") == 1


def test_show_counts_what_would_be_run(cli: Cli, tmp_path: Path) -> None:
    tiny_models.build("llama", num_hidden_layers=2).save_pretrained(tmp_path / "m")
    plain = json.loads(cli("show", str(tmp_path / "m"), "--json").out)
    found = json.loads(cli("show", str(tmp_path / "m"), "--json", "--quantize", "Q8_0").out)
    assert plain["formats"].keys() == {"F32"}
    assert found["formats"].keys() == {"F32", "Q8_0"}
    assert found["num_parameters"] == plain["num_parameters"]
    q8_0 = found["formats"]["Q8_0"]
    assert q8_0["num_bytes"] * 32 == q8_0["num_parameters"] * 34
    assert "Q8_0" in cli("show", str(tmp_path / "m"), "--quantize", "q8_0").out


@pytest.mark.parametrize("command", [("run", "hello", "--model"), ("show",), ("plan",)])
def test_what_is_quantized_is_not_quantized_again(cli: Cli, smollm2_gguf: Path, command: tuple[str, ...]) -> None:
    outcome = cli(*command, str(smollm2_gguf), "--quantize", "q4_0")
    words = "quantization='q4_0': the weights are Q8_0 already, only wider floats can be quantized"
    assert (outcome.code, outcome.err) == (2, f"error: {words}\n")
