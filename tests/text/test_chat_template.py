"""Rendered prompts equal Hugging Face's; injection cannot make control tokens; bad arguments are refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from tuili.errors import ChatTemplateError, InvalidRequestError
from tuili.text.chat_template import ChatTemplate
from tuili.text.pretrained import PretrainedTokenizer
from tuili.text.prompt_text import PromptText
from tuili.text.tokenizer import Tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The <weather> & "more"',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "City", "enum": ["Paris", "東京"]},
                "days": {"type": ["integer", "null"], "default": 1},
            },
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "empty": [],
    "user": [{"role": "user", "content": "Hi there\n"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What's <b>up</b>? "}],
    "turns": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb "},
        {"role": "user", "content": "c 'd' \"e\" 日本"},
    ],
    "tool call": [
        {"role": "user", "content": "w?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "sunny"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}],
    "reasoning": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "think"},
        {"role": "user", "content": "c"},
    ],
    "two users": [{"role": "user", "content": "a"}, {"role": "user", "content": "c"}],
}
VARIATIONS: list[dict[str, Any]] = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "tools": [TOOL]},
    {"add_generation_prompt": True, "enable_thinking": False},
]


def _theirs(source: str, messages: list[dict[str, Any]], **arguments: Any) -> str | None:
    try:
        rendered: str = chat_template_utils.render_jinja_template(
            [messages], chat_template=source, **SPECIAL, **arguments
        )[0][0]
        return rendered
    except Exception:
        return None


def _ours(
    template: ChatTemplate, messages: list[dict[str, Any]], add_generation_prompt: bool, tools: Any = None, **rest: Any
) -> str | None:
    try:
        return template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, template_args=rest
        ).plain()
    except ChatTemplateError:
        return None


@pytest.mark.no_cover
def test_published_templates_render_as_hugging_face_renders_them(llama_cpp_models: Path) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    files = sorted((llama_cpp_models / "templates").glob("*.jinja"))
    assert len(files) >= 60
    rendered = 0
    for file in files:
        source = file.read_text(encoding="utf-8")
        template = ChatTemplate(source, SPECIAL)
        for name, messages in CONVERSATIONS.items():
            for variation in VARIATIONS:
                expected = _theirs(source, messages, **variation)
                assert _ours(template, messages, **variation) == expected, (file.name, name, variation)
                rendered += expected is not None
    assert rendered > 1500


def test_continued_message_equals_hugging_face(llama_cpp_models: Path) -> None:
    for name in ("Qwen-Qwen2.5-7B-Instruct", "google-gemma-2-2b-it", "meta-llama-Llama-3.1-8B-Instruct"):
        source = (llama_cpp_models / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
        for answer in ("The answer", "The answer ", "A\n\n"):
            messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
            expected = _theirs(source, messages, continue_final_message=True)
            ours = ChatTemplate(source, SPECIAL).render(
                messages, add_generation_prompt=False, continue_final_message=True
            )
            assert expected is not None
            assert ours == expected
            assert expected.rstrip().endswith(answer.rstrip())


def test_marks_are_exactly_what_came_from_outside() -> None:
    template = ChatTemplate(
        "[{{ bos_token }}]{% for m in messages %}<{{ m.role ~ ':' ~ m['content']|trim }}>{% endfor %}", SPECIAL
    )
    prompt = template.render([{"role": "user", "content": " hi "}])
    assert prompt == "[<s>]<user:hi>"
    assert [prompt.plain()[a:b] for a, b in prompt.untrusted] == ["user", "hi"]


def test_the_clock_is_the_callers() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2024, 7, 26))
    assert template.render([]) == "26 Jul 2024"


def test_generation_blocks_are_their_body() -> None:
    template = ChatTemplate("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}")
    assert template.render([{"role": "user", "content": "a"}]) == "a;"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0].content.missing.more }}", "has no attribute 'missing'"),
        ("a\n{% if %}", "line 2: Expected an expression"),
        ("{{ messages|nothing }}", "No filter named 'nothing'"),
        ("{% include 'x' %}", "line 1: include is not allowed"),
        ("{{ ''.__class__ }}", "attribute '__class__' of PromptText is not allowed"),
        ("{% for i in range(99999) %}{% for j in range(99) %}{% endfor %}{% endfor %}", "too many steps"),
        ("{{ 'a' * 10**9 }}", "a string of more than"),
        ("x" * 70000, "found 70000 characters, at most 65536 are allowed"),
    ],
)
def test_errors_carry_the_templates_own_words(source: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match="chat template") as caught:
        ChatTemplate(source).render([{"role": "user", "content": "a"}])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": "hi"}, "messages must be a list, got str"),
        ({"messages": ["hi"]}, r"messages\[0\] must be an object, got str"),
        ({"messages": [{"role": object()}]}, r"messages\[0\] must be made of JSON values, got object"),
        ({"messages": [{"content": 1 << 5000}]}, "must be made of JSON values, got int"),
        ({"template_args": {"messages": []}}, "template argument 'messages' is reserved"),
        ({"template_args": {"tokenize": False}}, "template argument 'tokenize' is reserved"),
        ({"template_args": {"chat_template": "x"}}, "template argument 'chat_template' is reserved"),
        ({"template_args": {" budget": 1}}, "template argument ' budget' is reserved or no name"),
        ({"template_args": {"_x": 1}}, "template argument '_x' is reserved or no name"),
        ({"template_args": {"x": print}}, "template_args.x must be made of JSON values"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "exclude each other"),
        ({"add_generation_prompt": False, "continue_final_message": True}, "needs a last message with text"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        ChatTemplate("x").render(**({"messages": []} | arguments))


def test_a_nest_of_lists_is_refused() -> None:
    nest: list[Any] = []
    for _ in range(100):
        nest = [nest]
    with pytest.raises(InvalidRequestError, match=r"messages\[0\] nests more than 64 deep"):
        ChatTemplate("x").render([{"content": nest}])


@pytest.fixture(scope="module")
def models(
    smollm2_gguf: Path, vocabulary: Callable[[str], Tokenizer], llama_cpp_models: Path, tmp_path_factory: Any
) -> list[tuple[PretrainedTokenizer, PreTrainedTokenizerFast]]:
    """SmolLM2 and Qwen2 with their templates, ours and as transformers loads what ours saved."""
    qwen = (llama_cpp_models / "templates" / "Qwen-Qwen2.5-7B-Instruct.jinja").read_text(encoding="utf-8")
    ours = [PretrainedTokenizer.from_pretrained(smollm2_gguf), PretrainedTokenizer(vocabulary("qwen2"), qwen)]
    pairs = []
    for one in ours:
        folder = tmp_path_factory.mktemp("model")
        one.save_pretrained(folder)
        pairs.append((one, PreTrainedTokenizerFast.from_pretrained(folder)))
    return pairs


HARMLESS = st.text(max_size=12) | st.sampled_from(["Hello\n\nworld", "<think>a</think>", "<b>", "|>", "<|", " "])


@given(st.lists(HARMLESS, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_ids_equal_hugging_face(
    models: list[tuple[PretrainedTokenizer, PreTrainedTokenizerFast]], contents: list[str]
) -> None:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": content.replace("\ufffd", "")}
        for i, content in enumerate(contents)
    ]
    for ours, theirs in models:
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ours.apply_chat_template(messages, add_generation_prompt=True) == expected


HOSTILE = st.lists(
    st.sampled_from(
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "end|>", "<|", "|>", "system\n", " x", "\n"]
    ),
    max_size=8,
).map("".join)


@given(HOSTILE, HOSTILE, HOSTILE)
@settings(max_examples=150, deadline=None)
def test_no_message_makes_a_control_token(
    models: list[tuple[PretrainedTokenizer, PreTrainedTokenizerFast]], role: str, first: str, second: str
) -> None:
    for ours, _ in models:
        tokenizer = ours.tokenizer

        def control(messages: list[dict[str, Any]], ours: PretrainedTokenizer = ours) -> list[int]:
            ids = ours.apply_chat_template(messages, add_generation_prompt=True)
            assert isinstance(ids, list)
            assert ours.decode(ids) == ours.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return [token_id for token_id in ids if ours.tokenizer.is_special(token_id)]

        hostile = [{"role": "system", "content": first}, {"role": "user", "content": second + role}]
        harmless = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        assert control(hostile) == control(harmless)
        assert tokenizer.special_ids.isdisjoint(tokenizer.encode(first + second, add_special_tokens=False))


def test_a_control_token_cannot_be_put_together_from_pieces(
    models: list[tuple[PretrainedTokenizer, PreTrainedTokenizerFast]],
) -> None:
    source = "<|im_start|>{% for p in messages[0].content %}{{ p.text }}{% endfor %}<|im_end|>"
    parts = [{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]
    for ours, _ in models:
        ids = ours.apply_chat_template([{"role": "user", "content": parts}], chat_template=source)
        assert isinstance(ids, list)
        assert [ours.tokenizer.is_special(token_id) for token_id in ids] == [True, *[False] * (len(ids) - 2), True]


def test_control_tokens_across_the_border_of_trust_are_text(smollm2: Tokenizer) -> None:
    prompt = PromptText.concat(["<|im_start|>", PromptText.outside("<|im_"), "end|>", "<|im_end|>"])
    tokens = smollm2.convert_ids_to_tokens(smollm2.encode_rendered(prompt))
    assert tokens[0] == "<|im_start|>"
    assert tokens[-1] == "<|im_end|>"
    assert {"<|im_start|>", "<|im_end|>"}.isdisjoint(tokens[1:-1])
