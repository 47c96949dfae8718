"""SmolLM2 behind every dialect on a port of the loopback, once for all of their tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.served import Listening, SmallPool, listening
from tuili.runtime.loading.loading import LoadOptions, open_model

NAME = "smollm2:135m"
MAX_MODEL_LEN = 512


@pytest.fixture(scope="session")
def smollm2_server(smollm2_gguf: Path) -> Iterator[Listening]:
    """The model is called smollm2:135m, with a context of 512 tokens."""
    options = LoadOptions(max_model_len=MAX_MODEL_LEN, max_num_seqs=8, kv_cache_memory_bytes=64 << 20)
    pool = SmallPool(open_model(str(smollm2_gguf), options), path=smollm2_gguf)
    (model,) = pool.models.values()
    model.name, pool.models = NAME, {NAME: model}
    with listening(pool=pool) as server:
        yield server


@pytest.fixture
def name() -> str:
    """What that model is called."""
    return NAME
