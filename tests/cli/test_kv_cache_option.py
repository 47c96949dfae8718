"""`--kv-cache-dtype`: what it says reaches the loader, and wrong values are refused."""

from __future__ import annotations

import pytest

from support.fake_pipeline import FakePipeline
from tuili.runtime.loading.loading import LoadOptions

from .conftest import Cli


@pytest.mark.parametrize(("arguments", "expected"), [([], "auto"), (["--kv-cache-dtype", "int8"], "int8")])
def test_it_reaches_the_loader(
    cli: Cli, pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    asked: list[LoadOptions] = []

    def open_model(_: object, options: LoadOptions) -> FakePipeline:
        asked.append(options)
        return pipeline

    monkeypatch.setattr("tuili.runtime.loading.loading.open_model", open_model)
    assert cli("run", "m.gguf", "hi", *arguments).code == 0
    assert [options.kv_cache_dtype for options in asked] == [expected]


def test_a_wrong_value_is_refused(cli: Cli, pipeline: FakePipeline) -> None:
    outcome = cli("run", "m.gguf", "hi", "--kv-cache-dtype", "int3")
    assert outcome.code == 2
    assert "int3" in outcome.err
    assert not pipeline.requests
