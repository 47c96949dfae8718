"""LLM.beam_search: vLLM's result objects over the engine's search."""

from __future__ import annotations

import math

import pytest

from tuili import LLM, BeamSearchParams, SamplingParams
from tuili.errors import ContextLengthError, InvalidRequestError


def test_beams_come_in_order_with_their_prompt(llm: LLM) -> None:
    prompts = ["The capital of France is", {"prompt_token_ids": [504, 3575, 282]}, "Water boils at"]
    params = BeamSearchParams(beam_width=3, max_tokens=6)
    outputs = llm.beam_search(prompts, params)
    assert len(outputs) == 3
    tokenizer = llm.get_tokenizer()
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt["prompt_token_ids"]
        assert [s.score for s in output.sequences] == sorted((s.score for s in output.sequences), reverse=True)
        assert len({tuple(s.tokens) for s in output.sequences}) == 3
        for sequence in output.sequences:
            assert sequence.tokens[: len(ids)] == list(ids)
            logprobs = [
                entry[i].logprob for entry, i in zip(sequence.logprobs, sequence.tokens[len(ids) :], strict=True)
            ]
            assert sequence.cum_logprob == pytest.approx(math.fsum(logprobs))
            assert sequence.score == pytest.approx(sequence.cum_logprob / len(logprobs))
            assert not isinstance(prompt, str) or sequence.text.startswith(prompt)
            assert sequence.finish_reason == "length"
    assert "Paris" in outputs[0].sequences[0].text


def test_one_beam_is_greedy(llm: LLM) -> None:
    [output] = llm.beam_search("Once upon a time", BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True))
    [greedy] = llm.generate(
        "Once upon a time", SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False
    )
    assert output.sequences[0].tokens == greedy.prompt_token_ids + greedy.outputs[0].token_ids


def test_the_end_token_is_told_and_hidden(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    tokenizer = llm.get_tokenizer()
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    prompt = {"prompt_token_ids": [*ids, *tokenizer.encode("The capital of France is Paris.")]}
    for shows in (False, True):
        params = BeamSearchParams(beam_width=2, max_tokens=20, early_stopping=True, include_stop_str_in_output=shows)
        [output] = llm.beam_search([prompt], params)
        stopped = [s for s in output.sequences if s.finish_reason == "stop"]
        assert stopped
        for sequence in stopped:
            assert sequence.tokens[-1] == sequence.stop_reason == tokenizer.eos_token_id
            assert sequence.text.endswith(tokenizer.eos_token) == shows


def test_what_cannot_be_searched_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="prompt is empty"):
        llm.beam_search(["fine", ""], BeamSearchParams(beam_width=2, max_tokens=2))
    with pytest.raises(ContextLengthError):
        llm.beam_search({"prompt_token_ids": [5] * 100_000}, BeamSearchParams(beam_width=2, max_tokens=2))
    assert llm.beam_search("fine", BeamSearchParams(beam_width=2, max_tokens=2))[0].sequences
