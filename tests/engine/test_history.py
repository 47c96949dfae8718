"""What penalties count: over the whole text as vLLM does, over its last tokens as llama.cpp does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tuili.engine.sampling.history import SeenTokens, TokenHistory

TOKENS = st.lists(st.integers(0, 6), max_size=40)


def counts(seen: SeenTokens) -> dict[int, int]:
    assert len(set(seen.ids.tolist())) == len(seen.ids)
    return dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True))


def plainly(prompt: list[int], output: list[int], last_n: int) -> dict[int, int]:
    if last_n < 0:
        return {i: output.count(i) for i in prompt + output}
    window = (prompt + output)[max(len(prompt + output) - last_n, 0) :]
    return {i: window.count(i) for i in window}


@settings(max_examples=200, deadline=None)
@given(TOKENS.filter(bool), TOKENS, st.integers(-1, 50).filter(bool))
def test_counts_equal_the_plain_statement(prompt: list[int], output: list[int], last_n: int) -> None:
    """Token by token, along a draft, and in a copy that goes another way."""
    history = TokenHistory(prompt, last_n)
    for i, seen in enumerate(history.seen_along(output)):
        assert counts(seen) == plainly(prompt, output[:i], last_n)
    for i, token_id in enumerate(output):
        assert counts(history.seen) == plainly(prompt, output[:i], last_n)
        coming = counts(history.awaiting)
        assert coming.pop(-1) == 0
        assert coming | {token_id: coming.get(token_id, 0) + 1} == plainly(prompt, output[: i + 1], last_n)
        history.copy().add(6 - token_id)
        history.add(token_id)
    assert counts(history.seen) == plainly(prompt, output, last_n)
