"""A server over the real SmolLM2, for clients that people use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.served import Listening, SmallPool, listening
from tuili.runtime.api.arguments import LLMArguments
from tuili.runtime.loading.loading import open_model

SIZES = {"max_model_len": 1024, "max_num_seqs": 8, "kv_cache_memory_bytes": 256 << 20}


@pytest.fixture(scope="package")
def server(smollm2_gguf: Path) -> Iterator[Listening]:
    """Model names: the pool's default, and whatever the file is called."""
    pipeline = open_model(str(smollm2_gguf), LLMArguments.parse(SIZES).load_options())
    with pipeline, listening(pool=SmallPool(pipeline, path=smollm2_gguf)) as found:
        yield found
