"""`--speculative-config`: what it takes, and that wrong values are refused before a model is fetched."""

from __future__ import annotations

import pytest

from support.fake_pipeline import FakePipeline
from tuili.cli.speculative_option import parse_speculative
from tuili.config import SpeculativeConfig

from .conftest import Cli


def test_what_it_says() -> None:
    assert parse_speculative(None) == SpeculativeConfig()
    assert parse_speculative("none") is None
    assert parse_speculative('{"num_speculative_tokens": 3}') == SpeculativeConfig(num_speculative_tokens=3)


@pytest.mark.parametrize("text", ["ngram", "[1]", '{"draft": 1}', '{"num_speculative_tokens": 99}'])
def test_a_wrong_value_is_refused(cli: Cli, pipeline: FakePipeline, text: str) -> None:
    outcome = cli("run", "m.gguf", "hi", "--speculative-config", text)
    assert outcome.code == 2
    assert outcome.err.startswith("error: speculative_config")
    assert not pipeline.requests


def test_a_right_value_runs(cli: Cli, pipeline: FakePipeline) -> None:
    assert cli("run", "m.gguf", "hi", "--speculative-config", "none").code == 0
    assert len(pipeline.requests) == 1
