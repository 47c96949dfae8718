"""One SmolLM2 for all tests of the Python API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tuili import LLM


@pytest.fixture(scope="package")
def llm(smollm2_gguf: Path) -> Iterator[LLM]:
    with LLM(str(smollm2_gguf), max_model_len=1024, max_num_seqs=8, kv_cache_memory_bytes=256 << 20) as model:
        yield model
