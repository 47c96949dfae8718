"""Drafts by looking up where the end of the text occurred before, in prompt and output, and copying on.

The index is that of a dictionary compressor: a hash table of the last place of every short run of
tokens, and for each place the one before it with the same hash (LZ77; RFC 1951, section 4).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as ListLike
from typing import NamedTuple
from weakref import WeakKeyDictionary

from tuili.config import SpeculativeConfig
from tuili.engine.sequence import Sequence
from tuili.engine.speculative_width import NO_DRAFT, Draft

TABLE_SIZE = 1 << 14  # 64 KiB; places that collide are told apart when they are compared
MAX_CANDIDATES = 8  # places compared in one look-up


class Match(NamedTuple):
    """The token at `place` ends a run of `length` tokens that equals the end of the text."""

    place: int
    length: int


class RunIndex:
    """Finds earlier places of the last tokens of one growing text. Adding a token takes constant time."""

    def __init__(self, token_ids: ListLike[int], min_length: int, max_length: int) -> None:
        self._token_ids = token_ids
        self._min_length = min_length
        self._max_length = max_length
        self._last = array("i", [-1]) * TABLE_SIZE
        self._before = array("i")  # for each place the last one before it with the same hash

    def find(self, continued: int | None) -> Match | None:
        """The longest match of the text's end, of equals the latest; `continued` is a place to try first."""
        self._catch_up()
        best_place, best_length = -1, self._min_length - 1
        candidate = self._last[self._hash(len(self._token_ids) - 1)]
        places = [] if continued is None else [continued]
        while candidate >= 0 and len(places) <= MAX_CANDIDATES:
            places.append(candidate)
            candidate = self._before[candidate]
        for place in places:
            length = self._match_length(place)
            if length > best_length:
                best_place, best_length = place, length
                if length == self._max_length:
                    break
        return Match(best_place, best_length) if best_place >= 0 else None

    def _catch_up(self) -> None:
        """Enters all places but the last, which would only find itself."""
        for place in range(len(self._before), len(self._token_ids) - 1):
            slot = self._hash(place)
            self._before.append(self._last[slot])
            self._last[slot] = place

    def _hash(self, place: int) -> int:
        """Of the run of min_length tokens that ends at `place`."""
        run = self._token_ids[max(place - self._min_length + 1, 0) : place + 1]
        return hash(tuple(run)) % TABLE_SIZE

    def _match_length(self, place: int) -> int:
        tokens, last = self._token_ids, len(self._token_ids) - 1
        length, limit = 0, min(self._max_length, place + 1)
        while length < limit and tokens[place - length] == tokens[last - length]:
            length += 1
        return length


class Acceptance:
    """How often a drafted token was right, by the length of the match it rests on (in powers of two)."""

    PRIOR = (0.0, 0.25, 0.4, 0.6, 0.8, 0.9, 0.95, 0.95)
    PRIOR_WEIGHT = 4.0
    MEMORY = 0.95  # weight of the past at each new token

    def __init__(self) -> None:
        self._hits = [chance * self.PRIOR_WEIGHT for chance in self.PRIOR]
        self._weights = [self.PRIOR_WEIGHT] * len(self.PRIOR)

    def chance(self, length: int) -> float:
        """That the token after a match of `length` tokens is right."""
        i = length.bit_length()
        return self._hits[i] / self._weights[i]

    def learn(self, length: int, was_right: bool) -> None:
        i = length.bit_length()
        self._hits[i] = self.MEMORY * self._hits[i] + was_right
        self._weights[i] = self.MEMORY * self._weights[i] + 1


class Lookup:
    """One sequence's index, its last draft, and how its drafts have fared."""

    def __init__(self, sequence: Sequence, config: SpeculativeConfig) -> None:
        self._token_ids = sequence.token_ids
        self._stop_ids = sequence.stop_ids
        self._max_length = config.prompt_lookup_max
        self._index = RunIndex(sequence.token_ids, config.prompt_lookup_min, config.prompt_lookup_max)
        self._acceptance = Acceptance()
        self._match: Match | None = None
        self._draft: list[int] = []
        self._num_tokens = len(sequence.token_ids)

    def draft(self, limit: int) -> Draft:
        """At most `limit` tokens that followed the longest match."""
        self._match = self._index.find(self._learn())
        self._num_tokens = len(self._token_ids)
        self._draft = [] if self._match is None else self._copy(self._match, limit)
        if self._match is None:
            return NO_DRAFT
        lengths = range(self._match.length, self._match.length + len(self._draft))
        return Draft(self._draft, [self._acceptance.chance(min(n, self._max_length)) for n in lengths])

    def _learn(self) -> int | None:
        """Compares the last draft, computed or not, with what came. The place where it goes on if all was right."""
        if self._match is None:
            return None
        place, length = self._match
        came = self._token_ids[self._num_tokens :]
        for drafted, token_id in zip(self._draft, came, strict=False):
            self._acceptance.learn(min(length, self._max_length), drafted == token_id)
            if drafted != token_id:
                return None
            place, length = place + 1, length + 1
        return place if len(came) == place - self._match.place else None

    def _copy(self, match: Match, limit: int) -> list[int]:
        """What followed the match, over and over if that reaches the text's end; nothing from a stop token on."""
        copied = list(self._token_ids[match.place + 1 : match.place + 1 + limit])
        period = len(self._token_ids) - 1 - match.place
        for i in range(len(copied), limit):
            copied.append(copied[i - period])
        stop = next((i for i, token_id in enumerate(copied) if token_id in self._stop_ids), limit)
        return copied[:stop]


class PromptLookup:
    """The Drafter that looks up each sequence's own prompt and output."""

    def __init__(self, config: SpeculativeConfig) -> None:
        self._config = config
        self._lookups: WeakKeyDictionary[Sequence, Lookup] = WeakKeyDictionary()

    def propose(self, sequence: Sequence, limit: int) -> Draft:
        """At most `limit` tokens, or none."""
        lookup = self._lookups.get(sequence)
        if lookup is None:
            lookup = self._lookups[sequence] = Lookup(sequence, self._config)
        return lookup.draft(limit)
