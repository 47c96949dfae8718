"""Conversations of the `ollama` package with SmolLM2."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import ollama
import pytest

from support.served import Listening

GREEDY = {"temperature": 0, "num_predict": 16}
SEEDED = {"temperature": 0.9, "seed": 7, "num_predict": 16}
ASKED = [{"role": "user", "content": "What is 2+2?"}]


@pytest.fixture
def client(smollm2_server: Listening) -> Iterator[ollama.Client]:
    client = ollama.Client(smollm2_server.url)
    with client:
        yield client


def test_the_list_and_what_is_shown_and_loaded(client: ollama.Client, name: str) -> None:
    (listed,) = client.list().models
    assert listed.model == name
    assert listed.details is not None
    assert (listed.details.format, listed.details.family) == ("gguf", "llama")
    assert (listed.details.parameter_size, listed.details.quantization_level) == ("134.52M", "Q4_1")
    shown = client.show(name)
    assert shown.details == listed.details
    assert shown.capabilities == ["completion"]
    assert "<|im_start|>" in (shown.template or "")
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 8192
    assert shown.modelinfo["tokenizer.ggml.tokens"] is None
    (loaded,) = client.ps().models
    assert (loaded.model, loaded.context_length) == (name, 512)


def test_a_chat_streamed_and_whole(client: ollama.Client, name: str) -> None:
    whole = client.chat(name, ASKED, options=GREEDY)
    assert whole.message.content is not None
    assert "4" in whole.message.content
    assert (whole.message.role, whole.done, whole.done_reason) == ("assistant", True, "stop")
    parts = list(client.chat(name, ASKED, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert len(parts) > 3
    assert parts[-1].eval_count == whole.eval_count
    assert parts[-1].prompt_eval_count == whole.prompt_eval_count


async def test_the_asynchronous_client(smollm2_server: Listening, client: ollama.Client, name: str) -> None:
    whole = client.generate(name, ASKED[0]["content"], options=SEEDED)
    async with ollama.AsyncClient(smollm2_server.url) as asynchronous:
        parts = await asynchronous.generate(name, ASKED[0]["content"], options=SEEDED, stream=True)
        assert "".join([part.response or "" async for part in parts]) == whole.response


def test_a_conversation_goes_on_from_its_context(client: ollama.Client, name: str) -> None:
    first = client.generate(name, "My name is Ada. Say hello.", options=GREEDY)
    again = client.generate(name, "What is my name?", context=first.context, options=GREEDY)
    messages = [
        {"role": "user", "content": "My name is Ada. Say hello."},
        {"role": "assistant", "content": first.response},
        {"role": "user", "content": "What is my name?"},
    ]
    assert again.response == client.chat(name, messages, options=GREEDY).message.content


def test_stops_and_limits(client: ollama.Client, name: str) -> None:
    stopped = client.chat(name, ASKED, options={**GREEDY, "stop": ["classic"]})
    assert stopped.done_reason == "stop"
    assert "classic" not in (stopped.message.content or "")
    cut = client.generate(name, "Count to a hundred.", options={**GREEDY, "num_predict": 3})
    assert (cut.done_reason, cut.eval_count) == ("length", 3)


def test_logprobs(client: ollama.Client, name: str) -> None:
    answer = client.chat(name, ASKED, options=GREEDY, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert answer.eval_count == len(answer.logprobs)
    for entry in answer.logprobs:
        assert entry.top_logprobs is not None
        assert (entry.top_logprobs[0].token, len(entry.top_logprobs)) == (entry.token, 2)


def test_raw_prompts_and_templates(client: ollama.Client, name: str) -> None:
    question = ASKED[0]["content"]
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # what the template begins with
    raw = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert client.generate(name, raw, raw=True, options=GREEDY).response == (
        client.generate(name, question, options=GREEDY).response
    )
    template = "{{ messages[-1].content }} The answer is"
    plain = client.generate(name, f"{question} The answer is", raw=True, options=GREEDY)
    assert client.generate(name, question, template=template, options=GREEDY).response == plain.response


@pytest.mark.parametrize("streams", [True, False])
def test_an_overlong_prompt_is_refused_with_numbers_or_cut_on_request(
    client: ollama.Client, name: str, smollm2_server: Listening, streams: bool
) -> None:
    words = "one two three four " * 200
    with pytest.raises(ollama.ResponseError, match="the context holds 512") as caught:
        list(client.generate(name, words, stream=streams))
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="limited to 20 by the request"):
        client.chat(name, ASKED, options={"num_ctx": 20})
    body = {"model": name, "prompt": words, "truncate": True, "stream": False, "options": GREEDY}
    cut = httpx.post(f"{smollm2_server.url}/api/generate", json=body, timeout=240).json()
    assert cut["prompt_eval_count"] + 16 <= 512
    assert cut["truncated_tokens"] > 300


def test_errors_have_their_status(client: ollama.Client, name: str) -> None:
    for status, call in (
        (404, lambda: client.chat("absent", ASKED)),
        (404, lambda: client.show("absent")),
        (404, lambda: client.delete("absent")),
        (400, lambda: client.chat(name, ASKED, tools=[{"type": "function", "function": {"name": "f"}}])),
        (400, lambda: client.chat(name, ASKED, format="json")),
        (400, lambda: client.embed(name, "x")),
        (400, lambda: client.create("new", from_=name)),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            call()
        assert caught.value.status_code == status, caught.value


def test_a_stream_that_is_left_ends_its_request(client: ollama.Client, name: str, smollm2_server: Listening) -> None:
    stream = client.generate(name, "Count to a thousand.", options={"num_predict": 400}, stream=True)
    next(stream)
    stream.close()
    smollm2_server.wait_idle()
    assert client.chat(name, ASKED, options=GREEDY).done
