"""The Python API on the real SmolLM2: vLLM's calls and results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from tuili import LLM, SamplingParams
from tuili.errors import ContextLengthError, InvalidRequestError, ModelNotFoundError
from tuili.runtime.api.outputs import RequestOutput
from tuili.types import Done, Finished, PromptTokens, TextDelta

GREEDY = SamplingParams(temperature=0, max_tokens=12)
PROMPTS = ["The capital of France is", "Water boils at", "1, 2, 3, 4,"]


def _texts(outputs: Sequence[RequestOutput]) -> list[str]:
    return [o.outputs[0].text for o in outputs]


def test_generate_answers_in_the_order_of_the_prompts(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [o.prompt for o in outputs] == PROMPTS
    assert " Paris" in outputs[0].outputs[0].text
    assert all(o.finished and o.outputs[0].finish_reason == "length" for o in outputs)
    assert all(len(o.outputs[0].token_ids) == 12 for o in outputs)
    tokenizer = llm.get_tokenizer()
    assert [tokenizer.decode(o.outputs[0].token_ids) for o in outputs] == _texts(outputs)
    assert all(o.metrics is not None and o.metrics.first_token_latency > 0 for o in outputs)


def test_a_prompt_may_be_text_ids_or_a_dict(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    forms = [PROMPTS[0], {"prompt": PROMPTS[0]}, {"prompt_token_ids": ids}, ids]
    outputs = llm.generate(forms, GREEDY, use_tqdm=False)
    assert len(set(_texts(outputs))) == 1
    assert all(o.prompt_token_ids == ids for o in outputs)
    assert _texts(llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)) == _texts(outputs[:1])


def test_chat_renders_the_models_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    (one,) = llm.chat(messages, GREEDY, use_tqdm=False)
    tokenizer = llm.get_tokenizer()
    assert one.prompt_token_ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert one.prompt == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert one.prompt.endswith("<|im_start|>assistant\n")
    both = llm.chat([messages, messages], GREEDY, use_tqdm=False)
    assert _texts(both) == _texts([one, one])


def test_stream_gives_the_same_text_in_pieces_and_one_terminal_event(llm: LLM) -> None:
    events = list(llm.stream(PROMPTS[0], GREEDY))
    assert isinstance(events[0], PromptTokens)
    assert [type(e) for e in events[-2:]] == [Finished, Done]
    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    assert text == _texts(llm.generate(PROMPTS[0], GREEDY, use_tqdm=False))[0]


def test_closing_a_stream_frees_the_engine(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[0], SamplingParams(max_tokens=500, ignore_eos=True))
    next(stream)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == 3


def test_seeded_sampling_repeats_itself_alone_and_in_a_batch(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=11, max_tokens=16)
    alone = llm.generate(PROMPTS[0], params, use_tqdm=False)
    batch = llm.generate(PROMPTS, params, use_tqdm=False)
    assert _texts(alone) == _texts(batch[:1])
    other = llm.generate(PROMPTS[0], SamplingParams(temperature=1.0, top_p=0.9, seed=12, max_tokens=16), use_tqdm=False)
    assert _texts(other) != _texts(alone)


def test_n_answers_differ_and_are_those_of_n_requests(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=10)
    (output,) = llm.generate(PROMPTS[1], params, use_tqdm=False)
    assert [o.index for o in output.outputs] == [0, 1, 2]
    assert len({o.text for o in output.outputs}) == 3
    (first,) = llm.generate(PROMPTS[1], SamplingParams(temperature=1.0, seed=3, max_tokens=10), use_tqdm=False)
    assert first.outputs[0].text == output.outputs[0].text


def test_stops_end_the_answer(llm: LLM) -> None:
    (full,) = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)
    text = full.outputs[0].text
    stop = text[6:9]
    params = SamplingParams(temperature=0, max_tokens=12, stop=[stop])
    (cut,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    assert cut.outputs[0].text == text[: text.index(stop)]
    assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", stop)
    token = full.outputs[0].token_ids[3]
    (ended,) = llm.generate(
        PROMPTS[0], SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[token]), use_tqdm=False
    )
    assert ended.outputs[0].stop_reason == token
    assert ended.outputs[0].token_ids[-1] == token


def test_logprobs_of_output_and_prompt(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, prompt_logprobs=2)
    (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    completion = output.outputs[0]
    assert completion.logprobs is not None
    for entry, token in zip(completion.logprobs, completion.token_ids, strict=True):
        assert entry[token].rank == 1
        assert len(entry) == 3
        assert sum(math.exp(v.logprob) for v in entry.values()) <= 1.0 + 1e-6
    chosen = sum(e[t].logprob for e, t in zip(completion.logprobs, completion.token_ids, strict=True))
    assert completion.cumulative_logprob == pytest.approx(chosen)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for prompt_entry, token in zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True):
        assert prompt_entry is not None
        assert token in prompt_entry


def test_a_repeated_prompt_is_read_from_the_cache_and_answers_alike(llm: LLM) -> None:
    prompt = "A long story. " * 40
    (first,) = llm.generate(prompt, GREEDY, use_tqdm=False)
    (again,) = llm.generate(prompt, GREEDY, use_tqdm=False)
    assert again.num_cached_tokens >= 64
    assert again.outputs == first.outputs


def test_what_does_not_fit_is_refused_with_the_numbers(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match=r"1100.*1024"):
        llm.generate({"prompt_token_ids": [5] * 1100}, GREEDY, use_tqdm=False)
    assert llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"prompt_token_ids": [49152]}, r"\[0, 49152\), got 49152"),
        ({"prompt_token_ids": []}, "give at least one token"),
        ({"text": "x"}, r"got \['text'\]"),
        ({"prompt": None}, "exactly one of"),
    ],
)
def test_a_bad_prompt_is_named(llm: LLM, prompt: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        llm.generate(prompt, GREEDY, use_tqdm=False)


def test_one_parameter_set_each_or_one_for_all(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS[:2], [GREEDY, SamplingParams(temperature=0, max_tokens=3)], use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [12, 3]
    with pytest.raises(InvalidRequestError, match="one for each of 3 prompts, got 2"):
        llm.generate(PROMPTS, [GREEDY, GREEDY], use_tqdm=False)


def test_the_sampling_in_effect_can_be_told(llm: LLM) -> None:
    """An answer's own parameters, its seed among them, bring it again; every value's source is known."""
    [output] = llm.generate(PROMPTS[0], SamplingParams(temperature=1.3, top_k=-1, n=2), use_tqdm=False)
    params = output.sampling_params
    assert params is not None
    assert params.seed is not None
    assert (params.temperature, params.top_k, params.n) == (1.3, 0, 2)
    [again] = llm.generate(PROMPTS[0], params, use_tqdm=False)
    assert [o.token_ids for o in again.outputs] == [o.token_ids for o in output.outputs]
    found = {name: (value, source) for name, value, source in llm.effective_sampling(params)}
    assert found["temperature"] == (1.3, "request")
    assert found["seed"] == (params.seed, "request")
    assert found["min_p"] == (0.0, "library")
    with LLM(llm._pipeline.name, max_model_len=64, override_generation_config={"top_p": 0.7}) as changed:
        told = {name: (value, source) for name, value, source in changed.effective_sampling()}
        [output] = changed.generate(PROMPTS[0], use_tqdm=False)
    assert told["top_p"] == (0.7, "override_generation_config")
    assert output.sampling_params is not None
    assert output.sampling_params.top_p == 0.7


def test_the_progress_bar_tells_tokens_per_second(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS[0], GREEDY)
    assert "toks/s" in capsys.readouterr().err


def test_an_unknown_model_is_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUILI_HOME", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="smollm"):
        LLM("smollm")
    with pytest.raises(ModelNotFoundError, match=r"missing\.gguf"):
        LLM(str(tmp_path / "missing.gguf"))


def test_a_model_too_long_for_its_positions_is_refused(smollm2_gguf: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"max_model_len must be in \[1, 8192\]"):
        LLM(str(smollm2_gguf), max_model_len=10_000)


def test_thinking_is_told_apart_where_it_is_asked_for(llm: LLM) -> None:
    """The template opens the thinking, so that no mark of it is in the output."""
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}<think>\n"
    params = SamplingParams(temperature=0, max_tokens=12, logit_bias={0: -100})
    messages = [{"role": "user", "content": "What is <think> for?"}]
    plain = llm.chat(messages, params, chat_template=template, use_tqdm=False)[0].outputs[0]
    split = llm.chat(messages, params, chat_template=template, use_tqdm=False, split_reasoning=True)[0].outputs[0]
    assert (split.reasoning, split.text) == (plain.text, "")
    assert plain.reasoning == ""
    assert split.token_ids == plain.token_ids
