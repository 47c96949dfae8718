"""Tokenizers of real vocabularies, each built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tuili.text.gguf_tokenizer import tokenizer_from_gguf
from tuili.text.tokenizer import Tokenizer
from tuili.weights.gguf import GgufFile


@pytest.fixture(scope="session")
def vocabulary(llama_cpp_models: Path) -> Callable[[str], Tokenizer]:
    """The tokenizer of one of llama.cpp's published vocabularies."""
    built: dict[str, Tokenizer] = {}

    def build(name: str) -> Tokenizer:
        if name not in built:
            metadata = GgufFile(llama_cpp_models / f"ggml-vocab-{name}.gguf").metadata
            built[name] = tokenizer_from_gguf(metadata)
        return built[name]

    return build


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    """The tokenizer of SmolLM2."""
    return tokenizer_from_gguf(GgufFile(smollm2_gguf).metadata)
