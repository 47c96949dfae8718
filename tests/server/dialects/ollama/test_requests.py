"""Bodies to requests: what is refused, what a prompt becomes, how a context goes on, what truncate cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.small_model import small_front
from tuili.errors import ChatTemplateError, ContextLengthError, InvalidRequestError
from tuili.runtime.front.front import Front
from tuili.runtime.loading.loading import open_front
from tuili.server.dialects.ollama.bodies import ChatBody, GenerateBody
from tuili.server.dialects.ollama.requests import Interpreted, chat_request, check, generate_request, is_empty
from tuili.weights.checkpoint import open_checkpoint


def generate(front: Front, **fields: Any) -> Interpreted:
    return generate_request(GenerateBody.model_validate({"model": "m", **fields}), front)


def chat(front: Front, *contents: str, **fields: Any) -> Interpreted:
    """Turns of user and assistant; "system:" begins a system message."""
    messages, roles = [], ["user", "assistant"] * len(contents)
    for content in contents:
        is_system = content.startswith("system:")
        messages.append({"role": "system" if is_system else roles.pop(0), "content": content.removeprefix("system:")})
    return chat_request(ChatBody.model_validate({"model": "m", "messages": messages, **fields}), front)


def text(front: Front, asked: Interpreted) -> str:
    return str(front.token_request(asked.request)[0].text)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Front:
    checkpoint = open_checkpoint(smollm2_gguf)
    return open_front("smollm2", checkpoint, checkpoint, None)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (GenerateBody(model="m", prompt="x", suffix="y"), "suffix"),
        (GenerateBody(model="m", prompt="x", images=["aGk="]), "images"),
        (GenerateBody(model="m", prompt="x", format="json"), "format"),
        (GenerateBody(model="m", prompt="x", format={"type": "object"}), "format"),
        (GenerateBody(model="m", prompt="x", template="{{ if .System }}{{ .System }}{{ end }}"), "template"),
        (GenerateBody(model="m", prompt="x", template="{{- range $i, $_ := .Messages }}"), "template"),
        (GenerateBody(model="m", prompt="x", raw=True, system="s"), "raw"),
        (GenerateBody(model="m", prompt="x", raw=True, context=[1]), "raw"),
        (ChatBody(model="m", messages=[], tools=[{"type": "function"}]), "tools"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(body: GenerateBody | ChatBody, named: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check(body)
    assert caught.value.param == named


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    check(GenerateBody(model="m", prompt="x", suffix="", images=[], format="", template="", context=[], raw=False))
    check(GenerateBody(model="m", prompt="x", template="{% for m in messages %}{{ m.content }}{% endfor %}"))
    check(ChatBody(model="m", messages=[], tools=[], format=None))


def test_without_a_prompt_only_the_model_is_meant() -> None:
    assert is_empty(GenerateBody(model="m"))
    assert is_empty(GenerateBody(model="m", prompt=""))
    assert is_empty(ChatBody(model="m", messages=[]))
    assert not is_empty(ChatBody(model="m", messages=[{"role": "user"}]))


def test_a_prompt_is_a_users_message() -> None:
    front = small_front()
    assert text(front, generate(front, prompt="hi")) == "user hi "
    assert text(front, generate(front, prompt="hi", system="be")) == "system be user hi "
    assert text(front, generate(front, prompt="hi", template="{{ messages[-1].content }}")) == "hi"


def test_a_model_without_a_template_completes() -> None:
    front = small_front(template=None)
    assert text(front, generate(front, prompt="hi")) == "hi"
    with pytest.raises(ChatTemplateError, match="system needs"):
        generate(front, prompt="hi", system="be")


def test_raw_prompts_have_their_special_tokens(smollm2: Front) -> None:
    asked = generate(smollm2, prompt="<|im_start|>user\nhi<|im_end|>", raw=True)
    ids = smollm2.token_request(asked.request)[0].token_ids
    assert ids[0] == smollm2.tokenizer.token_id("<|im_start|>")
    assert ids[-1] == smollm2.tokenizer.token_id("<|im_end|>")
    assert not asked.request.split_reasoning


@pytest.mark.parametrize("ends", [True, False])
def test_a_context_goes_on_as_the_whole_conversation_would(smollm2: Front, ends: bool) -> None:
    first = smollm2.token_request(chat(smollm2, "What is the capital of France?").request)[0].token_ids
    answer = smollm2.tokenizer.encode("It is Paris.", add_special_tokens=False)
    end = [smollm2.tokenizer.token_id("<|im_end|>")] if ends else []
    asked = generate(smollm2, prompt="And of <|im_end|> Spain?", context=[*first, *answer, *end])
    whole = chat(smollm2, "What is the capital of France?", "It is Paris.", "And of <|im_end|> Spain?")
    assert smollm2.token_request(asked.request)[0].token_ids == smollm2.token_request(whole.request)[0].token_ids
    assert asked.without_effect == ()
    again = generate(smollm2, prompt="x", system="other", context=[*first])
    assert again.without_effect == ("system",)


def test_a_context_of_foreign_tokens_is_refused(smollm2: Front) -> None:
    for token_id in (-1, 10**9, 2**70):
        with pytest.raises(InvalidRequestError, match="token_ids must be integers"):
            smollm2.token_request(generate(smollm2, prompt="x", context=[1, token_id]).request)


def test_thinking_is_what_templates_call_it() -> None:
    front = small_front(template="{{ enable_thinking }} {{ reasoning_effort }}")
    assert text(front, chat(front, "x", think=False)) == "False "
    assert text(front, chat(front, "x", think="high")) == "True high"
    with pytest.raises(InvalidRequestError, match="think must be"):
        chat(front, "x", think="hard")


def test_messages_take_the_form_of_templates() -> None:
    messages = [
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "4", "tool_name": "f", "images": None},
    ]
    template = "{% for m in messages %}{{ m.tool_calls }}{{ m.thinking }}{{ m.name }};{% endfor %}"
    front = small_front(template=template)
    asked = chat_request(ChatBody(model="m", messages=messages), front)
    assert text(front, asked) == "[{'function': {'name': 'f'}}]hm;f;"
    with pytest.raises(InvalidRequestError, match=r"messages\[0\].tool_calls"):
        chat_request(ChatBody(model="m", messages=messages), small_front())
    with pytest.raises(InvalidRequestError, match=r"messages\[0\].images"):
        chat_request(ChatBody(model="m", messages=[{"role": "user", "content": "x", "images": ["a"]}]), front)


def test_num_ctx_bounds_prompt_and_answer() -> None:
    front = small_front(max_model_len=128)
    _, request = front.token_request(chat(front, "a" * 20, options={"num_ctx": 40}).request)
    assert len(request.prompt_token_ids) == 26
    assert request.sampling.max_tokens == 8  # of the model's defaults
    _, request = front.token_request(chat(front, "a" * 20, options={"num_ctx": 40, "num_predict": -1}).request)
    assert request.sampling.max_tokens == 14
    with pytest.raises(ContextLengthError, match="prompt has 26 tokens; the context is limited to 26"):
        front.token_request(chat(front, "a" * 20, options={"num_ctx": 26}).request)
    assert chat(front, "a", options={"num_ctx": 129}).without_effect == ("options.num_ctx",)
    assert chat(front, "a", options={"num_ctx": 128}).without_effect == ()


def test_truncate_drops_the_oldest_turns() -> None:
    front = small_front(max_model_len=128)
    turns = ["system:rules", *(f"{letter * 10}" for letter in "abcdefgh"), "last"]
    options = {"num_ctx": 80, "num_predict": 10}
    whole = front.token_request(chat(front, *turns).request)[0]
    with pytest.raises(ContextLengthError):
        front.token_request(chat(front, *turns, options=options).request)
    asked = chat(front, *turns, options=options, truncate=True)
    cut = front.token_request(asked.request)[0]
    assert str(cut.text).startswith("system rules user")
    assert str(cut.text).endswith("user last ")
    assert len(cut.token_ids) <= 70
    assert asked.num_truncated == len(whole.token_ids) - len(cut.token_ids) > 0
    kept = len(asked.request.messages or ()) - 1
    one_turn_more = chat(front, "system:rules", *turns[-kept - 2 :])
    assert len(front.token_request(one_turn_more.request)[0].token_ids) > 70
    assert chat(front, "short", truncate=True).num_truncated == 0
    too_long = chat(front, "system:s", "a" * 100, options=options, truncate=True)
    with pytest.raises(ContextLengthError):
        front.token_request(too_long.request)


def test_truncate_cuts_a_prompt_behind_its_first_tokens() -> None:
    front = small_front(template=None, max_model_len=64)
    asked = generate(front, prompt="abcdefgh" * 10, truncate=True, options={"num_keep": 3, "num_predict": 4})
    ids = front.token_request(asked.request)[0].token_ids
    prompt = front.tokenizer.encode("abcdefgh" * 10)
    assert (len(ids), asked.num_truncated) == (60, 20)
    assert ids == (*prompt[:3], *prompt[-57:])


def test_a_shift_is_named_as_without_effect() -> None:
    front = small_front()
    assert chat(front, "x", shift=True, options={"num_gpu": 1}).without_effect == ("options.num_gpu", "shift")
    assert chat(front, "x", shift=False).without_effect == ()
