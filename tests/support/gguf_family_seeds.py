"""Small GGUF models of every family, as a converter writes them, taken apart for mutation."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from support import family_models, gguf_families, tiny_models
from support.gguf_models import GgufModel, byte_level
from support.gguf_parsing import parse

# Every family that GGUF knows: OPT is none of llama.cpp's architectures, its files are mutated as folders.
FAMILIES = (
    *("gpt2", "bloom", "falcon-40b", "falcon-7b", "stablelm-12b", "olmo2", "gemma2", "phi3-window-partial", "smollm3"),
    *("phi3-longrope", "ministral3", "cohere-normed-heads", "cohere2", "granite-biases"),
)


@cache
def family_seeds() -> dict[str, GgufModel]:
    """One model of each, with a tokenizer."""
    tokenizer, vocab_size = byte_level("gpt-2")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        for name in FAMILIES:
            model_type, config = family_models.MODELS[name]
            gguf_families.write(tiny_models.build(model_type, **config | {"vocab_size": vocab_size}), path)
            model = parse(path.read_bytes())
            found[name] = replace(model, pairs=(*model.pairs, *tokenizer))
    return found
