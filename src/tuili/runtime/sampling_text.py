"""Sampling parameters that are text, as the token ids the engine works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuili.text.tokenizer import Tokenizer

MAX_TAIL = 20  # tokens of a sequence breaker after the one that begins it

Breakers = Mapping[int, tuple[tuple[int, ...], ...]]


def bad_word_ids(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Every word as it is written at the start of a text and after a space."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word, f" {word.lstrip()}"):
            if ids := tokenizer.encode(text, add_special_tokens=False):
                found[tuple(ids)] = None
    return tuple(found)


def breaker_ids(tokenizer: Tokenizer, breakers: Sequence[str]) -> Breakers:
    """For each token that contains a sequence breaker, or ends in its beginning, what must follow: nothing or the rest.

    Looks at the whole vocabulary.
    """
    found: dict[int, dict[tuple[int, ...], None]] = {}
    pieces = [tokenizer.token_bytes(token_id) for token_id in range(len(tokenizer))]
    for breaker in breakers:
        whole = breaker.encode()
        tails = {begun: _tail(tokenizer, whole[begun:]) for begun in range(1, len(whole))}
        first = whole[:1]
        for token_id, piece in enumerate(pieces):
            if first not in piece:
                continue
            if whole in piece:
                found.setdefault(token_id, {})[()] = None
            else:
                for begun, tail in tails.items():
                    if tail and piece.endswith(whole[:begun]):
                        found.setdefault(token_id, {})[tail] = None
    return {token_id: tuple(tails) for token_id, tails in found.items()}


def _tail(tokenizer: Tokenizer, rest: bytes) -> tuple[int, ...]:
    """The rest of a breaker as tokens; none where it begins within a character."""
    try:
        text = rest.decode()
    except UnicodeDecodeError:
        return ()
    return tuple(tokenizer.encode(text, add_special_tokens=False)[:MAX_TAIL])
