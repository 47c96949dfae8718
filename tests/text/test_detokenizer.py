"""Text in pieces equals the text at once, whatever the pieces, and no piece holds half a character."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuili.text.detokenizer import Detokenizer
from tuili.text.tokenizer import Tokenizer

NAMES = ["llama-spm", "gpt-2", "bert-bge"]


def _pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [detokenizer.push(token_id) for token_id in ids] + [detokenizer.flush()]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_ids(name: str, vocabulary: Callable[[str], Tokenizer], data: st.DataObject) -> None:
    """Random ids: mostly broken UTF-8, special tokens and padding included."""
    tokenizer = vocabulary(name)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 3) | st.integers(0, 258), max_size=30))
    skip = data.draw(st.booleans())
    pieces = _pieces(Detokenizer(tokenizer, (), skip), ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip)


@given(st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_after_a_prompt(vocabulary: Callable[[str], Tokenizer], prompt: str, answer: str) -> None:
    for name in NAMES[:2]:
        tokenizer = vocabulary(name)
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        ids = tokenizer.encode(answer, add_special_tokens=False)
        pieces = _pieces(Detokenizer(tokenizer, prompt_ids), ids)
        assert "".join(pieces) == tokenizer.decode(prompt_ids + ids)[len(tokenizer.decode(prompt_ids)) :]
        assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in answer


def test_a_character_begun_in_the_prompt_is_finished_in_the_answer(vocabulary: Callable[[str], Tokenizer]) -> None:
    tokenizer = vocabulary("gpt-2")
    ids = tokenizer.encode("🙂", add_special_tokens=False)
    assert len(ids) > 1
    detokenizer = Detokenizer(tokenizer, ids[:1])
    assert _pieces(detokenizer, ids[1:]) == [""] * (len(ids) - 2) + ["🙂", ""]


def test_an_unfinished_character_is_replaced_at_the_end(vocabulary: Callable[[str], Tokenizer]) -> None:
    tokenizer = vocabulary("gpt-2")
    ids = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.push(token_id) for token_id in ids) == "a"
    assert detokenizer.flush() == "\ufffd"


def test_special_tokens_are_skipped_or_shown(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("<|im_start|>hi<|im_end|>", parse_special=True)
    assert "".join(_pieces(Detokenizer(smollm2), ids)) == "hi"
    assert "".join(_pieces(Detokenizer(smollm2, skip_special_tokens=False), ids)) == "<|im_start|>hi<|im_end|>"
