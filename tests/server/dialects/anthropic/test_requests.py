"""Bodies to requests: one text a turn, thoughts apart, what changes with every request left out, refusals by name."""

from __future__ import annotations

from typing import Any

import pytest

from support.small_model import small_front
from tuili.errors import InvalidRequestError
from tuili.server.dialects.anthropic.bodies import MessagesBody, PromptBody
from tuili.server.dialects.anthropic.conversation import conversation
from tuili.server.dialects.anthropic.requests import check, message_request, prompt_request, without_effect
from tuili.types import GenerateRequest

USER = {"role": "user", "content": "hi"}


def body(*messages: dict[str, Any], **fields: Any) -> MessagesBody:
    return MessagesBody.model_validate({"model": "m", "max_tokens": 9, "messages": list(messages) or [USER], **fields})


def request(*messages: dict[str, Any], **fields: Any) -> GenerateRequest:
    return message_request(body(*messages, **fields), small_front())


def text(value: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **fields}


def test_system_text_comes_first() -> None:
    assert request(system="be").messages == ({"role": "system", "content": "be"}, USER)
    blocks = [text("be", cache_control={"type": "ephemeral"}), text("kind")]
    assert request(system=blocks).messages == ({"role": "system", "content": "be\nkind"}, USER)
    assert request(system="").messages == request(system=[]).messages == (USER,)


@pytest.mark.parametrize(
    "system",
    [
        [text("x-anthropic-billing-header: cc_version=2; cch=%s;"), text("be")],
        "x-anthropic-billing-header: cc_version=2; cch=%s;\nbe",
        "be\nx-anthropic-billing-header: cch=%s",
    ],
)
def test_the_line_that_changes_with_every_request_is_left_out(system: Any) -> None:
    def told(note: str) -> Any:
        return system % note if isinstance(system, str) else [text(system[0]["text"] % note), *system[1:]]

    first, second = request(system=told("1a")), request(system=told("2b"))
    assert first.messages == second.messages
    assert first.messages is not None
    assert first.messages[0]["content"].strip() == "be"


def test_turns_of_one_role_become_one() -> None:
    blocks = {"role": "user", "content": [text("a"), text("b")]}
    assert request(blocks, USER).messages == ({"role": "user", "content": "a\nb\nhi"},)


def test_thoughts_of_earlier_turns_are_apart() -> None:
    turn = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"},
            {"type": "redacted_thinking", "data": "????"},
            text("yes"),
        ],
    }
    messages = request(USER, turn, USER).messages
    assert messages == (USER, {"role": "assistant", "content": "yes", "thinking": "hm"}, USER)


def test_an_answer_that_was_begun_goes_on() -> None:
    begun = request(USER, {"role": "assistant", "content": "The answer is ("})
    assert begun.continue_final_message
    assert str(small_front().token_request(begun)[0].text).endswith("assistant The answer is (")
    assert not request().continue_final_message


def test_sampling_and_limits() -> None:
    asked = request(temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["x"]).sampling
    assert (asked.temperature, asked.top_p, asked.top_k, asked.stop) == (0.5, 0.9, 5, ("x",))
    assert (asked.max_tokens, request().sampling.temperature) == (9, 1.0)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3.0}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
    ],
)
def test_values_out_of_range_are_refused_by_their_own_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request(**fields)
    assert (caught.value.param, str(caught.value).startswith(named)) == (named, True)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"name": "f"}]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check(body(**fields))
    assert caught.value.param == named


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    check(body(tools=[], tool_choice={"type": "auto"}, output_config={"effort": "low"}, mcp_servers=[], container=None))


@pytest.mark.parametrize("kind", ["image", "document", "tool_use", "tool_result", "search_result"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_other_blocks_than_text_are_refused_where_they_are(kind: str, role: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"messages\[1\].content\[1\] is a block of type '{kind}'"):
        conversation(body(USER, {"role": role, "content": [text("a"), {"type": kind}]}))
    with pytest.raises(InvalidRequestError, match=r"system\[0\] is a block"):
        conversation(body(system=[{"type": kind}]))
    with pytest.raises(InvalidRequestError, match=r"messages\[0\].content\[0\].text must be a string"):
        conversation(body({"role": role, "content": [{"type": "text"}]}))


def test_thinking_is_what_templates_call_it() -> None:
    assert request(thinking={"type": "disabled"}).template_args == {"enable_thinking": False}
    enabled = body(thinking={"type": "enabled", "budget_tokens": 2048})
    assert message_request(enabled, small_front()).template_args == {"enable_thinking": True}
    assert without_effect(enabled, "") == ("thinking.budget_tokens",)
    adaptive = request(thinking={"type": "adaptive"}, output_config={"effort": "high"})
    assert adaptive.template_args == {"reasoning_effort": "high"}
    assert without_effect(body(), "") == ()
    assert without_effect(body(), "a-1, b-2,") == ("anthropic-beta=a-1", "anthropic-beta=b-2")


def test_counting_takes_the_same_prompt() -> None:
    front = small_front()
    counted = prompt_request(PromptBody.model_validate({"model": "m", "messages": [USER], "system": "be"}))
    assert front.token_request(counted)[0] == front.token_request(request(system="be"))[0]
