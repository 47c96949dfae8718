"""An int8 KV cache from end to end: nearly the same words in half the memory, and the same bits in any company."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tuili import LLM, SamplingParams

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Water boils at 100 degrees Celsius. " * 12 + "Ice melts at",
]
GREEDY = SamplingParams(temperature=0, max_tokens=24, logprobs=1)


@pytest.fixture(scope="module")
def int8(smollm2_gguf: Path) -> Iterator[LLM]:
    with LLM(
        str(smollm2_gguf), kv_cache_dtype="int8", max_model_len=1024, max_num_seqs=8, kv_cache_memory_bytes=64 << 20
    ) as model:
        yield model


def test_greedy_text_stays_close(llm: LLM, int8: LLM) -> None:
    num_same = num_tokens = 0
    for wide, narrow in zip(*(m.generate(PROMPTS, GREEDY, use_tqdm=False) for m in (llm, int8)), strict=True):
        ours, theirs = wide.outputs[0].token_ids, narrow.outputs[0].token_ids
        num_tokens += len(ours)
        num_same += next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if len(set(pair)) > 1), len(ours))
    assert num_same > 0.5 * num_tokens


def test_bits_are_the_same_alone_and_in_company(int8: LLM) -> None:
    together = int8.generate(PROMPTS, GREEDY, use_tqdm=False)
    int8.reset_prefix_cache()
    for prompt, output in zip(PROMPTS, together, strict=True):
        (alone,) = int8.generate([prompt], GREEDY, use_tqdm=False)
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids
        assert alone.outputs[0].cumulative_logprob == output.outputs[0].cumulative_logprob


def test_it_takes_half_the_memory(llm: LLM, int8: LLM) -> None:
    wide, narrow = (m._pipeline.backend.cache_groups(64)[0].block_bytes for m in (llm, int8))
    assert 0.5 < narrow / wide < 0.6
