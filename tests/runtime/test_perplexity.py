"""Perplexity agrees with llama.cpp's on the same file and text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuili.errors import InvalidRequestError
from tuili.runtime.api.perplexity import perplexity
from tuili.runtime.loading.loading import LoadOptions, open_model

# llama-perplexity -f wikitext2/test.txt -c 512 on the same files, after so many chunks.
SMOLLM2_12_CHUNKS, GEMMA3_4_CHUNKS = 23.1463, 12.3069


@pytest.mark.timeout(600)
def test_smollm2_is_within_half_a_percent_of_llama_cpp(smollm2_gguf: Path, wikitext: str) -> None:
    with open_model(str(smollm2_gguf), LoadOptions(max_model_len=1024)) as model:
        score = perplexity(model, wikitext, num_chunks=12)
    assert score.num_scored == 12 * 255
    assert score.value == pytest.approx(SMOLLM2_12_CHUNKS, rel=0.005)


def test_gemma3_is_within_half_a_percent_of_llama_cpp(gemma3_gguf: Path, wikitext: str) -> None:
    with open_model(str(gemma3_gguf), LoadOptions(max_model_len=1024)) as model:
        score = perplexity(model, wikitext, num_chunks=4)
    assert score.value == pytest.approx(GEMMA3_4_CHUNKS, rel=0.005)


def test_a_text_without_a_whole_chunk_is_refused(smollm2_gguf: Path) -> None:
    options = LoadOptions(max_model_len=1024, backend="reference")
    with open_model(str(smollm2_gguf), options) as model:  # noqa: SIM117
        with pytest.raises(InvalidRequestError, match="one chunk needs 512"):
            perplexity(model, "too short")
