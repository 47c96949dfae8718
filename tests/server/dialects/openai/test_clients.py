"""Whole conversations by clients from PyPI and npm, over a real model."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import openai
import pytest

from support.served import Listening
from tuili.types import GenerateRequest, SamplingParams

ASK: Any = [{"role": "user", "content": "Name the capital of France."}]
GREEDY: Any = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def client(server: Listening) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=240)


@pytest.fixture(scope="module")
def name(client: openai.OpenAI) -> str:
    """The model, as the server lists it."""
    return next(iter(client.models.list())).id


def _offline(server: Listening, **sampling: Any) -> list[str]:
    """What the library answers to ASK."""
    params = SamplingParams(**sampling)
    request = GenerateRequest(request_id="offline", sampling=params, messages=tuple(ASK))
    texts = [""] * params.n
    for event in next(iter(server.pool.models.values())).pipeline.stream(request):
        if hasattr(event, "text") and hasattr(event, "index"):
            texts[event.index] += event.text
    return texts


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.8, "seed": 12, "n": 2}])
def test_openai_streamed_blocking_and_offline_are_one(
    server: Listening, client: openai.OpenAI, name: str, sampling: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"model": name, "messages": ASK, "max_tokens": 24, **sampling}
    blocking = client.chat.completions.create(**asked)
    said = [choice.message.content for choice in blocking.choices]
    streamed = [""] * len(said)
    usage = None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == said == _offline(server, max_tokens=24, **sampling)
    assert blocking.usage is not None
    assert usage is not None
    assert usage.completion_tokens == blocking.usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None


def test_openai_holds_a_conversation(client: openai.OpenAI, name: str) -> None:
    talk = [{"role": "system", "content": "You answer in one short sentence. " * 12}, *ASK]
    cached = []
    for question in ("And of Italy?", "And of Spain?"):
        answer = client.chat.completions.create(model=name, messages=talk, **GREEDY)
        message = answer.choices[0].message
        assert message.content
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        talk += [{"role": "assistant", "content": message.content}, {"role": "user", "content": question}]
    assert cached[1] > 0


def test_openai_helpers_read_the_stream(client: openai.OpenAI, name: str) -> None:
    with client.chat.completions.stream(model=name, messages=ASK, logprobs=True, top_logprobs=2, **GREEDY) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    logprobs = final.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content or []
    data = b"".join(bytes(entry.bytes or []) for entry in content)
    assert data.decode().startswith(final.choices[0].message.content or "?")
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in content)


def test_openai_completions_with_everything(client: openai.OpenAI, name: str) -> None:
    answer = client.completions.create(
        model=name, prompt=["One, two,", "Red, green,"], n=1, echo=True, logprobs=2, max_tokens=4, temperature=0
    )
    assert [choice.text[:9] for choice in answer.choices] == ["One, two,", "Red, gree"]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or []) == choice.text
    stopped = client.completions.create(
        model=name, prompt="One, two, three,", stop=["five"], max_tokens=30, temperature=0
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].stop_reason == "five"  # type: ignore[attr-defined]
    streamed = client.completions.create(model=name, prompt=[[504, 28], [504]], max_tokens=3, stream=True, seed=3)
    assert {choice.index for chunk in streamed for choice in chunk.choices} == {0, 1}


def test_control_tokens_count_in_prompts_and_never_in_messages(client: openai.OpenAI, name: str) -> None:
    written = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"

    def num_prompt(**extra: Any) -> int:
        answer = client.completions.create(model=name, prompt=written, max_tokens=1, extra_body=extra)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    assert num_prompt() + 15 < num_prompt(parse_special=False)
    said: Any = [{"role": "user", "content": written}]
    chat = client.chat.completions.create(model=name, messages=said, max_tokens=1)
    assert chat.usage is not None
    assert chat.usage.prompt_tokens > num_prompt(parse_special=False)


def test_openai_hears_what_is_wrong(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "word " * 2000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as long_stream:
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "word " * 2000}], stream=True)
    assert str(long.value.body["message"]) == str(long_stream.value.body["message"])  # type: ignore[index]
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=ASK)
    assert unknown.value.code == "model_not_found"
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=name, messages=ASK, tools=tools)
    assert refused.value.param == "tools"
    assert client.chat.completions.create(model=name, messages=ASK, max_tokens=1, tools=[]).choices


def test_openai_leaves_a_stream(server: Listening, client: openai.OpenAI, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "max_tokens": 900, "extra_body": {"ignore_eos": True}, "stream": True}
    for stream in (
        client.chat.completions.create(messages=ASK, **asked),
        client.completions.create(prompt="1", **asked),
    ):
        with stream:
            next(iter(stream))
    server.wait_idle()


def test_openai_raw_answers_and_extra_fields(client: openai.OpenAI, name: str) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "wish": 1, "return_token_ids": True}
    raw = client.chat.completions.with_raw_response.create(
        model=name, messages=ASK, max_tokens=3, temperature=0, extra_body=extra
    )
    assert raw.headers["x-ignored-params"] == "wish"
    told = raw.parse()
    assert len(told.choices[0].token_ids) == 3  # type: ignore[attr-defined]
    assert told.timings["predicted_n"] == 3  # type: ignore[attr-defined]


async def test_openai_async_many_at_once_and_cancelled(server: Listening, name: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(model=name, messages=ASK, **GREEDY) for _ in range(6))
        )
        assert len({answer.choices[0].message.content for answer in answers}) == 1
        stream = await client.chat.completions.create(
            model=name, messages=ASK, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.close()
    await asyncio.to_thread(server.wait_idle)


def _run(code: str, server: Listening, name: str, **environment: str) -> str:
    """Runs a client's program in a process of its own, where its warnings and imports are its own."""
    env = {**os.environ, "URL": f"{server.url}/v1", "MODEL": name, "OPENAI_API_KEY": "none", **environment}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_langchain(server: Listening, client: openai.OpenAI, name: str) -> None:
    said = client.chat.completions.create(model=name, messages=ASK, **GREEDY).choices[0].message.content
    told = _run(
        """
        import os
        import openai
        from langchain_openai import ChatOpenAI, OpenAI
        chat = ChatOpenAI(base_url=os.environ["URL"], model=os.environ["MODEL"], temperature=0, max_tokens=24)
        ask = "Name the capital of France."
        whole = chat.invoke(ask)
        streamed = None
        for chunk in chat.stream(ask, stream_usage=True):
            streamed = chunk if streamed is None else streamed + chunk
        assert streamed.content == whole.content, (streamed.content, whole.content)
        assert streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"] > 0
        assert [m.content for m in chat.batch([ask, ask])] == [whole.content] * 2
        plain = OpenAI(base_url=os.environ["URL"], model=os.environ["MODEL"], max_tokens=30, temperature=0)
        assert "five" not in plain.invoke("One, two, three,", stop=["five"])
        talk = [("system", "Be brief."), ("human", ask), ("ai", whole.content), ("human", "And of Italy?")]
        assert chat.invoke(talk).content
        for wrong, asked in (({"model": "nobody"}, ask), ({}, "word " * 2000)):
            try:
                chat.invoke(asked, **wrong)
                raise AssertionError(wrong)
            except openai.NotFoundError as error:
                assert error.code == "model_not_found"
            except openai.BadRequestError as error:
                assert error.code == "context_length_exceeded"
        left = chat.stream("Count to a thousand.", max_tokens=900, extra_body={"ignore_eos": True})
        next(left)
        left.close()
        print(whole.content, end="")
        """,
        server,
        name,
    )
    assert told == said
    server.wait_idle()


def test_litellm(server: Listening, client: openai.OpenAI, name: str) -> None:
    said = client.chat.completions.create(model=name, messages=ASK, **GREEDY).choices[0].message.content
    told = _run(
        """
        import os
        import litellm
        asked = {"model": "hosted_vllm/" + os.environ["MODEL"], "api_base": os.environ["URL"], "temperature": 0}
        talk = [{"role": "user", "content": "Name the capital of France."}]
        whole = litellm.completion(messages=talk, max_tokens=24, **asked)
        pieces = litellm.completion(messages=talk, max_tokens=24, stream=True, **asked)
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert streamed == whole.choices[0].message.content
        stopped = litellm.completion(messages=talk, max_tokens=24, stop=["France", "Paris"], **asked).choices[0]
        assert (stopped.finish_reason, "Paris" in stopped.message.content) == ("stop", False)
        endless = {"max_tokens": 900, "stream": True, "extra_body": {"ignore_eos": True}}
        left = litellm.completion(messages=talk, **endless, **asked)
        next(iter(left))  # and leaves it as the program ends
        try:
            litellm.completion(messages=talk, **{**asked, "model": "hosted_vllm/nobody"})
            raise AssertionError("nobody answered")
        except litellm.NotFoundError:
            pass
        try:
            litellm.completion(messages=[{"role": "user", "content": "word " * 2000}], **asked)
        except litellm.ContextWindowExceededError:
            print("said:" + streamed, end="")
        """,
        server,
        name,
        LITELLM_LOCAL_MODEL_COST_MAP="True",
    )
    assert told.partition("said:")[2] == said
    server.wait_idle()


def test_llm(server: Listening, client: openai.OpenAI, name: str, tmp_path: Path) -> None:
    said = client.chat.completions.create(model=name, messages=ASK, **GREEDY).choices[0].message.content or ""
    model = f"- model_id: served\n  model_name: {name}\n  api_base: {server.url}/v1\n"
    wrong = f"- model_id: unknown\n  model_name: nobody\n  api_base: {server.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(model + wrong)
    told = _run(
        """
        import llm
        import openai
        model, ask = llm.get_model("served"), "Name the capital of France."
        greedy = {"temperature": 0, "max_tokens": 24, "key": "none"}
        talk = model.conversation()
        streamed = list(talk.prompt(ask, **greedy))
        assert len(streamed) > 3
        assert model.prompt(ask, stream=False, **greedy).text() == "".join(streamed)
        assert talk.prompt("And of Italy?", **greedy).text()
        assert "Paris" not in model.prompt(ask, stop="Paris", **greedy).text()
        left = iter(model.prompt("Count to a thousand.", temperature=0, max_tokens=900, key="none"))
        next(left)
        left.close()
        for wrong, asked in ((model, "word " * 2000), (llm.get_model("unknown"), ask)):
            try:
                wrong.prompt(asked, **greedy).text()
                raise AssertionError(asked[:20])
            except (openai.BadRequestError, openai.NotFoundError, llm.ModelError) as error:
                assert "context holds" in str(error) or "nobody" in str(error), error
        print("".join(streamed), end="")
        """,
        server,
        name,
        LLM_USER_PATH=str(tmp_path),
    )
    assert told.strip() == said.strip()
    server.wait_idle()


def test_openai_and_ai_from_npm(server: Listening, name: str, node_clients: Path) -> None:
    """Blocking and streamed, by both; what is wrong comes as the client's own error."""
    program = Path(__file__).with_name("clients.mjs").read_text(encoding="utf-8")
    (script := node_clients / "openai_clients.mjs").write_text(program, encoding="utf-8")
    env = {**os.environ, "URL": f"{server.url}/v1", "MODEL": name}
    result = subprocess.run(["node", str(script)], env=env, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines() == ["ok"]
    server.wait_idle()
