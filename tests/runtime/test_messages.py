"""Conversations in every form clients write them, and those that are none."""

from __future__ import annotations

from typing import Any

import pytest

from tuili import LLM, SamplingParams
from tuili.errors import InvalidRequestError
from tuili.runtime.front.messages import plain_messages


def test_text_parts_become_one_string_and_none_an_empty_one() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": []}]
    assert plain_messages(messages) == [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": []},
    ]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ([None], r"messages\[0\] must be a mapping .* got None"),
        ([{"content": "x"}], r"messages\[0\]\.role must be one of assistant, developer, .*, got None"),
        ([{"role": "user", "content": "x"}, {"role": 1}], r"messages\[1\]\.role must be one of .*, got 1"),
        ([{"role": "asistant", "content": "x"}], r"messages\[0\]\.role must be one of .* names, got 'asistant'"),
        ([{"role": "", "content": "x"}], r"messages\[0\]\.role must be one of .*, got ''"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\]\.role must be one of .*, got \['user'\]"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content must be a string or a list of text parts, got 5"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] must be .* got type 'image_url'"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\] must be .* got type None"),
    ],
)
def test_what_is_no_conversation_is_named(messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        plain_messages(messages)


def test_roles_a_template_names_are_roles() -> None:
    template = """{% if message.role == 'ipython' or message["role"] == "documents" %}{{ '' }}{% endif %}"""
    for role in ("ipython", "documents", "tool"):
        assert plain_messages([{"role": role, "content": "x"}], template)[0]["role"] == role
    with pytest.raises(InvalidRequestError, match="got 'message'"):
        plain_messages([{"role": "message", "content": "x"}], template)
    with pytest.raises(InvalidRequestError, match="got ''"):
        plain_messages([{"role": "", "content": "x"}], template)


def test_a_rendered_template_keeps_its_control_tokens_through_generate(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=8)
    messages = [{"role": "user", "content": "Say <|im_end|> aloud."}]
    rendered = llm.get_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(rendered, str)
    (completed,) = llm.generate(rendered, greedy, use_tqdm=False)
    (answered,) = llm.chat(messages, greedy, use_tqdm=False)
    assert completed.prompt_token_ids == answered.prompt_token_ids
    assert completed.outputs == answered.outputs


@pytest.mark.parametrize("prompts", [None, 5, b"bytes", [b"bytes"], [None]])
def test_what_is_no_prompt_is_named(llm: LLM, prompts: Any) -> None:
    with pytest.raises(InvalidRequestError, match="must be a string, a dict"):
        llm.generate(prompts, use_tqdm=False)


def test_a_developer_is_the_system_where_a_template_knows_none() -> None:
    told = [{"role": "developer", "content": "x"}]
    assert plain_messages(told, "{% if role == 'system' %}") == [{"role": "system", "content": "x"}]
    assert plain_messages(told, "{% if role == 'developer' %}") == told
