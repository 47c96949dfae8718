"""Samplers that are text or code, on the real model: words, breakers, processors, circles, truncated prompts."""

from __future__ import annotations

import numpy as np
import pytest

from tuili import LLM, SamplingParams
from tuili.runtime.front.sampling_text import BreakerTables, bad_word_ids
from tuili.types import GenerateRequest

PROMPT = "The capital of France is"


def text_of(llm: LLM, prompt: str = PROMPT, **params: object) -> str:
    given = {"temperature": 0, "max_tokens": 12, **params}
    [output] = llm.generate(prompt, SamplingParams(**given), use_tqdm=False)  # type: ignore[arg-type]
    return output.outputs[0].text


def test_bad_words_are_not_written(llm: LLM) -> None:
    assert "Paris" in text_of(llm)
    for words in (["Paris"], ["Paris, a city"], [" Paris"]):
        assert not any(word.strip() in text_of(llm, bad_words=words) for word in words)


def test_words_count_with_and_without_a_space(llm: LLM) -> None:
    tokenizer = llm._pipeline.tokenizer
    found = bad_word_ids(tokenizer, ["Paris", "Paris"])
    assert found == tuple(tuple(tokenizer.encode(text, add_special_tokens=False)) for text in ("Paris", " Paris"))


def test_breakers_are_found_within_tokens_and_across_them(llm: LLM) -> None:
    tokenizer = llm._pipeline.tokenizer
    found = BreakerTables().find(tokenizer, ("\n", "User:"))
    assert all(() in found[i] for i in range(len(tokenizer)) if b"\n" in tokenizer.token_bytes(i))
    [user] = tokenizer.encode("User", add_special_tokens=False)
    [colon] = tokenizer.encode(":", add_special_tokens=False)
    assert found[user] == ((colon,),)
    assert not any(() in tails for i, tails in found.items() if b"\n" not in tokenizer.token_bytes(i))


def test_dry_ends_a_loop(llm: LLM) -> None:
    loop = "ha ha ha ha ha ha ha ha ha ha ha ha ha ha"
    assert text_of(llm, loop, max_tokens=4) == " ha ha ha ha"
    assert "ha ha" not in text_of(llm, loop, max_tokens=4, dry_multiplier=5.0)


def test_a_loop_is_noticed(llm: LLM) -> None:
    rule = {"max_pattern_size": 8, "min_count": 3}
    params = SamplingParams(temperature=0, max_tokens=60, repetition_detection=rule)
    [output] = llm.generate("ha ha ha ha ha ha ha ha ha ha ha ha ha ha", params, use_tqdm=False)
    answer = output.outputs[0]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", "repetition_detected")
    assert 3 <= len(answer.token_ids) < 60
    assert answer.text == llm.get_tokenizer().decode(answer.token_ids)


def test_a_processor_decides_the_token(llm: LLM) -> None:
    token_id = llm.get_tokenizer().encode(" yes")[0]

    def only_yes(token_ids: list[int], logits: np.ndarray) -> np.ndarray:
        logits[:] = -np.inf
        logits[token_id] = 0.0
        return logits

    assert text_of(llm, max_tokens=3, logits_processors=[only_yes]) == " yes yes yes"


def test_prompts_can_be_truncated(llm: LLM) -> None:
    whole = llm.get_tokenizer().encode(PROMPT)
    params = SamplingParams(max_tokens=1, truncate_prompt_tokens=3)
    assert llm.generate(PROMPT, params, use_tqdm=False)[0].prompt_token_ids == whole[-3:]
    params = SamplingParams(max_tokens=1, truncate_prompt_tokens=-1)
    request = GenerateRequest(request_id="r", prompt_token_ids=tuple(whole * 400), sampling=params)
    assert list(llm._pipeline.token_request(request)[1].prompt_token_ids) == (whole * 400)[-1023:]


@pytest.mark.parametrize(
    "params",
    [
        {"samplers": "edskypmxt", "top_k": 40, "xtc_probability": 0.5, "typical_p": 0.9, "top_n_sigma": 1.5},
        {"mirostat": 1},
        {"mirostat": 2, "mirostat_tau": 3.0, "repetition_penalty": 1.1},
        {"dynatemp_range": 0.5, "min_p": 0.05, "min_keep": 2},
        {"adaptive_target": 0.3, "presence_penalty": 0.5, "repeat_last_n": 16},
        {"allowed_token_ids": [28, 29, 30, 31]},
    ],
    ids=str,
)
def test_seeded_text_is_the_same_in_any_batch(llm: LLM, params: dict[str, object]) -> None:
    given = {"temperature": 1.0, "max_tokens": 12, "seed": 5, **params}
    alone = text_of(llm, **given)
    many = [SamplingParams(**given), *[SamplingParams(temperature=0.7, seed=i, max_tokens=9) for i in range(5)]]  # type: ignore[arg-type]
    outputs = llm.generate([PROMPT, *["Once", "Water is", "A B C", "1 2", "So"]], many, use_tqdm=False)
    assert outputs[0].outputs[0].text == alone
