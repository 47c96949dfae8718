"""Tables of sequence breakers: as they are defined, few, and made without a look at every token for each."""

from __future__ import annotations

from typing import Any

import pytest

from support.small_model import small_tokenizer
from tuili.runtime.front import sampling_text
from tuili.runtime.front.sampling_text import MAX_TAIL, Breakers, BreakerTables
from tuili.text.tokenizer import Tokenizer


def slow_breaker_ids(tokenizer: Tokenizer, breakers: tuple[str, ...]) -> Breakers:
    """The definition: every token against every beginning of every breaker."""
    found: dict[int, dict[tuple[int, ...], None]] = {}
    for breaker in breakers:
        whole = breaker.encode()
        for token_id in range(len(tokenizer)):
            piece = tokenizer.token_bytes(token_id)
            if whole in piece:
                found.setdefault(token_id, {})[()] = None
                continue
            for begun in range(1, len(whole)):
                if not piece.endswith(whole[:begun]):
                    continue
                rest = whole[begun:].decode(errors="replace")
                if "\ufffd" not in rest and (tail := tokenizer.encode(rest, add_special_tokens=False)[:MAX_TAIL]):
                    found.setdefault(token_id, {})[tuple(tail)] = None
    return {token_id: tuple(tails) for token_id, tails in found.items()}


@pytest.mark.parametrize(
    "breakers", [("\n", ":", '"', "*"), ("a", "e"), ("User:", "the", " the ", "ü推😀"), ("a" * 64,), ("ab" * 32, "b")]
)
def test_the_table_is_what_its_definition_says(llm: Any, breakers: tuple[str, ...]) -> None:
    for tokenizer in (small_tokenizer(), llm._pipeline.tokenizer):
        assert BreakerTables().find(tokenizer, breakers) == slow_breaker_ids(tokenizer, breakers)


def test_few_tables_are_kept_and_the_pieces_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []
    looked_at: list[int] = []
    make, token_bytes = sampling_text.breaker_ids, Tokenizer.token_bytes

    def counted(tokenizer: Tokenizer, index: Any, breakers: tuple[str, ...]) -> Breakers:
        made.append(breakers)
        return make(tokenizer, index, breakers)

    def counted_bytes(self: Tokenizer, token_id: int) -> bytes:
        looked_at.append(token_id)
        return token_bytes(self, token_id)

    monkeypatch.setattr(sampling_text, "breaker_ids", counted)
    monkeypatch.setattr(Tokenizer, "token_bytes", counted_bytes)
    tables, tokenizer = BreakerTables(), small_tokenizer()
    asked = [(letter,) for letter in "abcdefghi"]
    for breakers in [*asked, asked[-1], asked[1]]:
        tables.find(tokenizer, breakers)
    assert made == asked
    tables.find(tokenizer, asked[0])
    assert made == [*asked, asked[0]]
    assert sorted(looked_at) == list(range(len(tokenizer)))
