"""Sampling parameters that are text, as the token ids the engine works with."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

from tuili.text.piece_index import PieceIndex
from tuili.text.tokenizer import Tokenizer

MAX_TAIL = 20  # tokens of a sequence breaker after the one that begins it
_MAX_TABLES = 8  # one is of some megabytes where a breaker is a frequent letter

Breakers = Mapping[int, tuple[tuple[int, ...], ...]]


def bad_word_ids(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Every word as it is written at the start of a text and after a space."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word, f" {word.lstrip()}"):
            if ids := tokenizer.encode(text, add_special_tokens=False):
                found[tuple(ids)] = None
    return tuple(found)


def breaker_ids(tokenizer: Tokenizer, index: PieceIndex, breakers: Sequence[str]) -> Breakers:
    """For each token that contains a sequence breaker, or ends in its beginning, what must follow: nothing or the rest.

    `index` is of the tokenizer's pieces.
    """
    found: dict[int, dict[tuple[int, ...], None]] = {}
    for breaker in breakers:
        whole = breaker.encode()
        containing = set(index.containing(whole))
        for token_id in containing:
            found.setdefault(token_id, {})[()] = None
        for begun in range(1, len(whole)):
            ending = [token_id for token_id in index.ending(whole[:begun]) if token_id not in containing]
            if ending and (tail := _tail(tokenizer, whole[begun:])):
                for token_id in ending:
                    found.setdefault(token_id, {})[tail] = None
    return {token_id: tuple(tails) for token_id, tails in found.items()}


class BreakerTables:
    """A tokenizer's tables of sequence breakers; the last few that were asked for are kept. For any thread."""

    def __init__(self) -> None:
        self._index: PieceIndex | None = None
        self._tables: OrderedDict[tuple[str, ...], Breakers] = OrderedDict()
        self._lock = Lock()

    def find(self, tokenizer: Tokenizer, breakers: tuple[str, ...]) -> Breakers:
        """The table; of always the same tokenizer, whose pieces are looked at once."""
        with self._lock:
            if breakers not in self._tables:
                if self._index is None:
                    self._index = PieceIndex([tokenizer.token_bytes(token_id) for token_id in range(len(tokenizer))])
                self._tables[breakers] = breaker_ids(tokenizer, self._index, breakers)
                if len(self._tables) > _MAX_TABLES:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(breakers)
            return self._tables[breakers]


def _tail(tokenizer: Tokenizer, rest: bytes) -> tuple[int, ...]:
    """The rest of a breaker as tokens; none where it begins within a character."""
    try:
        text = rest.decode()
    except UnicodeDecodeError:
        return ()
    return tuple(tokenizer.encode(text, add_special_tokens=False)[:MAX_TAIL])
