"""AsyncLLM: many streams over one engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tuili import LLM, AsyncLLM, BeamSearchParams, SamplingParams
from tuili.errors import ContextLengthError, InvalidRequestError
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


async def _drain(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass


async def test_many_streams_at_once_equal_the_blocking_answers(async_llm: AsyncLLM, llm: LLM) -> None:
    texts = await asyncio.gather(*(_last_text(async_llm, prompt) for prompt in PROMPTS))
    assert texts == [o.outputs[0].text for o in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


async def test_abort_ends_a_running_request(async_llm: AsyncLLM) -> None:
    endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    reasons = []
    async for output in async_llm.generate(PROMPTS[0], endless, request_id="endless"):
        if len(output.outputs[0].token_ids) >= 3:
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


async def test_a_request_that_does_not_fit_is_refused_before_any_event(async_llm: AsyncLLM) -> None:
    with pytest.raises(ContextLengthError, match=r"600.*512"):
        await anext(async_llm.stream([5] * 600, GREEDY))


async def test_a_refused_request_leaves_the_one_whose_id_it_took_alone(async_llm: AsyncLLM) -> None:
    first = async_llm.generate(PROMPTS[0], GREEDY, request_id="same")
    seen = [await anext(first)]
    with pytest.raises(InvalidRequestError, match="'same' is already in use"):
        await _drain(async_llm.generate(PROMPTS[1], SamplingParams(n=2), request_id="same"))
    seen += [output async for output in first]
    assert seen[-1].outputs[0].finish_reason == "length"
    assert len(seen[-1].outputs[0].token_ids) == 10


async def test_beams_are_those_of_the_blocking_search(async_llm: AsyncLLM, llm: LLM) -> None:
    """Several prompts at once, beside an answer."""
    params = BeamSearchParams(beam_width=3, max_tokens=5)
    found, text = await asyncio.gather(async_llm.beam_search(PROMPTS[:4], params), _last_text(async_llm, PROMPTS[5]))
    assert found == llm.beam_search(PROMPTS[:4], params)
    assert await async_llm.beam_search(PROMPTS[0], params) == found[:1]
    assert text == llm.generate(PROMPTS[5], GREEDY, use_tqdm=False)[0].outputs[0].text


async def test_a_cancelled_search_ends(async_llm: AsyncLLM) -> None:
    params = BeamSearchParams(beam_width=4, max_tokens=400, ignore_eos=True)
    search = asyncio.create_task(async_llm.beam_search(PROMPTS, params))
    await anext(async_llm.generate(PROMPTS[0], GREEDY))  # both are under way
    search.cancel()
    with pytest.raises(asyncio.CancelledError):
        await search
    assert await _last_text(async_llm, PROMPTS[1])
    assert async_llm._pipeline.loop.stats().num_running == 0


async def test_a_search_that_is_refused_ends_the_others(async_llm: AsyncLLM) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=300, ignore_eos=True)
    with pytest.raises(ContextLengthError):
        await async_llm.beam_search([PROMPTS[0], [5] * 600], params)
    with pytest.raises(InvalidRequestError, match="prompt is empty"):
        await async_llm.beam_search(["", PROMPTS[0]], params)
    assert await _last_text(async_llm, PROMPTS[1])
    assert async_llm._pipeline.loop.stats().num_running == 0


async def test_many_requests_leave_one_listener(async_llm: AsyncLLM) -> None:
    for prompt in PROMPTS:
        await _last_text(async_llm, prompt)
    assert len(async_llm._pipeline.loop._listeners) == 1


async def test_without_seeds_answers_repeat_from_one_start_to_the_next(smollm2_gguf: Path) -> None:
    texts = []
    for _ in range(2):
        model = await AsyncLLM.load(str(smollm2_gguf), max_model_len=64, kv_cache_memory_bytes=8 << 20, seed=5)
        params = SamplingParams(temperature=1.0, max_tokens=8)
        texts.append([output async for output in model.generate(PROMPTS[0], params)][-1].outputs[0].text)
        model.shutdown()
    assert texts[0] == texts[1]
