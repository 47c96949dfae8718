"""AsyncLLM: many streams over one engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tuili import LLM, AsyncLLM, SamplingParams
from tuili.types import Done, TextDelta

GREEDY = SamplingParams(temperature=0, max_tokens=10)
PROMPTS = [f"The number {i} is" for i in range(6)]


@pytest.fixture
async def async_llm(smollm2_gguf: Path) -> AsyncIterator[AsyncLLM]:
    model = await AsyncLLM.load(str(smollm2_gguf), max_model_len=512, kv_cache_memory_bytes=64 << 20)
    yield model
    model.shutdown()


async def _last_text(model: AsyncLLM, prompt: str) -> str:
    text = ""
    async for output in model.generate(prompt, GREEDY):
        assert output.outputs[0].text.startswith(text)
        text = output.outputs[0].text
    assert output.finished
    return text


async def test_many_streams_at_once_equal_the_blocking_answers(async_llm: AsyncLLM, llm: LLM) -> None:
    texts = await asyncio.gather(*(_last_text(async_llm, prompt) for prompt in PROMPTS))
    assert texts == [o.outputs[0].text for o in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


async def test_abort_ends_a_running_request(async_llm: AsyncLLM) -> None:
    endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    reasons = []
    async for output in async_llm.generate(PROMPTS[0], endless, request_id="endless"):
        if len(output.outputs[0].token_ids) == 3:
            await async_llm.abort("endless")
        reasons.append(output.outputs[0].finish_reason)
    assert reasons[-1] == "abort"


async def test_leaving_a_stream_aborts_it_and_others_go_on(async_llm: AsyncLLM) -> None:
    endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    stream = async_llm.stream(PROMPTS[0], endless)
    async for event in stream:
        if isinstance(event, TextDelta):
            break
    await stream.aclose()  # type: ignore[attr-defined]
    events = [event async for event in async_llm.stream(PROMPTS[1], GREEDY)]
    assert isinstance(events[-1], Done)
