"""Texts nobody would write, through every vocabulary at hand: the library's ids, the text back, in linear time."""

from __future__ import annotations

import math
import random
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tuili.errors import InvalidRequestError
from tuili.text.gguf_tokenizer import tokenizer_from_gguf
from tuili.text.tokenizer import Tokenizer
from tuili.weights.gguf import GgufFile

pytestmark = pytest.mark.no_cover  # the same lines thousands of times: to count them doubles the time

VOCABULARIES = [
    "aquila", "baichuan", "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2",
    "gpt-neox", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip
NUM_TEXTS = 60
# First and last character of ranges: every plane with characters, marks, jamo, controls, joiners, directions, flags.
RANGES = (
    (0x00, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x2FFFF),
    (0x30000, 0x3FFFF), (0xE0000, 0xEFFFF), (0xF0000, 0xFFFFF), (0x100000, 0x10FFFF), (0x300, 0x36F), (0x1100, 0x11FF),
    (0x200B, 0x200F), (0x202A, 0x202E), (0xFE00, 0xFE0F), (0x1F1E6, 0x1F1FF), (0x00, 0x1F),
)  # fmt: skip
PIECES = (
    "hello", " ", "  ", "\n", "\r\n", "\t", "\xa0", "\u3000", "'s", "'LL", "123", "１２３", "½", "ﬀ", "é", "e\u0301",
    "한", "\u200d", "\ufeff", "<|im_end|>", "<s>", "</s>", "<0x41>", "▁", "Ġ", "##", "[CLS]", "<unk>",
    "👨‍👩‍👧", "🏳️‍🌈",
    "ß", "İ", "ǆ", "\0", "a" * 50, "ab" * 20,
)  # fmt: skip


def odd_text(chooser: random.Random) -> str:
    parts = []
    for _ in range(chooser.randrange(1, 9)):
        low, high = chooser.choice(RANGES)
        drawn = "".join(chr(chooser.randint(low, high)) for _ in range(chooser.randrange(1, 6)))
        parts.append(chooser.choice((drawn, chooser.choice(PIECES))))
    text = "".join(parts)
    return unicodedata.normalize(chooser.choice(("NFC", "NFD")), text) if chooser.random() < 0.2 else text


@pytest.fixture(scope="module")
def tokenizer(
    vocabulary: Callable[[str], Tokenizer], smollm2: Tokenizer, gemma3_gguf: Path
) -> Callable[[str], Tokenizer]:
    """Of a published vocabulary, or of a real model."""
    models = {"smollm2": smollm2, "gemma3": tokenizer_from_gguf(GgufFile(gemma3_gguf).metadata)}
    return lambda name: models[name] if name in models else vocabulary(name)


@pytest.mark.parametrize("name", [*VOCABULARIES, "smollm2", "gemma3"])
def test_odd_texts_have_the_librarys_ids_and_come_back(name: str, tokenizer: Callable[[str], Tokenizer]) -> None:
    """Without control tokens, whatever is written in them; back as far as the vocabulary has all bytes."""
    ours = tokenizer(name)
    theirs = tokenizers.Tokenizer.from_str(ours.to_json())
    theirs.encode_special_tokens = True
    chooser = random.Random(name)
    forbidden = ours.special_ids - {ours.names.unk_token_id}
    for _ in range(NUM_TEXTS):
        text = odd_text(chooser)
        ids = ours.encode(text, add_special_tokens=False)
        assert forbidden.isdisjoint(ids), text
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        decoded = ours.decode(ids)
        has_all_bytes = not any(char < " " or char == "▁" for char in text)  # some vocabularies lack control bytes
        if name != "bert-bge" and has_all_bytes:
            assert decoded in (text, unicodedata.normalize("NFC", text)), text


@pytest.mark.parametrize("name", ["smollm2", "gemma3", "llama-spm", "bert-bge"])
@pytest.mark.parametrize("unit", ["a", "ab ", "\n", " ", "1", "東", "🙂", "e\u0301", "-", "<|im_end|>", "\0"])
def test_long_repeats_take_linear_time(name: str, unit: str, tokenizer: Callable[[str], Tokenizer]) -> None:
    """Eight times the text in well under the 64 times that quadratic work takes."""
    ours = tokenizer(name)
    ours.encode("warm " * 100)
    costs = []
    for length, num_times in ((6_000, 1), (48_000, 3)):
        text = (unit * length)[:length]
        cost = math.inf
        for _ in range(num_times):  # the least of a few: a machine may be slow for a while
            started = time.thread_time()
            ids = ours.encode(text)
            cost = min(cost, max(time.thread_time() - started, 0.002))
            if costs and cost < 32 * costs[0]:
                break
        costs.append(cost)
        assert len(ids) <= 4 * length + 2
    assert costs[1] < 32 * costs[0]


@given(text=st.text(max_size=20), at=st.integers(0, 20), surrogate=st.integers(0xD800, 0xDFFF))
@settings(max_examples=80, deadline=None)
def test_lone_surrogates_are_refused_wherever_they_stand(
    smollm2: Tokenizer, text: str, at: int, surrogate: int
) -> None:
    text = text[:at] + chr(surrogate) + text[at:]
    position = min(at, len(text) - 1)
    for encode in (smollm2.encode, smollm2.encode_rendered, lambda t: smollm2.encode(t, parse_special=True)):
        with pytest.raises(InvalidRequestError, match=f"found a lone surrogate .* at {position}"):
            encode(text)


@given(st.lists(st.integers(0, 2**33), max_size=12))
@settings(max_examples=150, deadline=None)
def test_any_ids_have_a_text(smollm2: Tokenizer, ids: list[int]) -> None:
    for skip in (False, True):
        text = smollm2.decode(ids, skip_special_tokens=skip)
        assert text == b"".join(smollm2.token_bytes(i) for i in ids if not (skip and smollm2.is_special(i))).decode(
            errors="replace"
        )
