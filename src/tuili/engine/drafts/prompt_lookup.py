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
from tuili.engine.drafts.speculative_width import Chance
from tuili.engine.sequence import Sequence

TABLE_SIZE = 1 << 14  # 64 KiB; places that collide are told apart when they are compared
MAX_CANDIDATES = 8  # places compared in one look-up
MIN_CHANCE = 0.05  # of a draft's token to be taken; what is less likely is not proposed, nor what follows it


class Draft(NamedTuple):
    """Tokens that may come next, and how likely each is right when all before it are."""

    token_ids: ListLike[int]
    chances: ListLike[float]


NO_DRAFT = Draft((), ())


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
        """The longest match of the text's end; `continued` is a place to try before the latest ones."""
        self._catch_up()
        tokens, last = self._token_ids, len(self._token_ids) - 1
        places = [] if continued is None else [continued]
        place = self._last[self._hash(last)]
        while place >= 0 and len(places) < MAX_CANDIDATES:
            places.append(place)
            place = self._before[place]
        best_place, best_length = -1, self._min_length - 1
        for place in places:
            # What differs at the length to be beaten cannot beat it.
            if place >= best_length and tokens[place - best_length] == tokens[last - best_length]:
                length = self._match_length(place)
                if length > best_length:
                    best_place, best_length = place, length
        return Match(best_place, best_length) if best_place >= 0 else None

    def _catch_up(self) -> None:
        """Enters all places but the last, which would only find itself."""
        for place in range(len(self._before), len(self._token_ids) - 1):
            slot = self._hash(place)
            self._before.append(self._last[slot])
            self._last[slot] = place

    def _hash(self, place: int) -> int:
        """Of the run of min_length tokens that ends at `place`."""
        return hash(tuple(self._token_ids[max(place - self._min_length + 1, 0) : place + 1])) % TABLE_SIZE

    def _match_length(self, place: int) -> int:
        tokens, last = self._token_ids, len(self._token_ids) - 1
        length, limit = 0, min(self._max_length, place + 1)
        while length < limit and tokens[place - length] == tokens[last - length]:
            length += 1
        return length


class Acceptance:
    """How often a drafted token was right, by the length of the match it rests on (in powers of two)."""

    PRIOR = (0.0, 0.15, 0.3, 0.55, 0.8, 0.9, 0.95, 0.95)

    def __init__(self) -> None:
        self._chances = [Chance(prior) for prior in self.PRIOR]

    def chance(self, length: int) -> float:
        """That the token after a match of `length` tokens is right."""
        return self._chances[length.bit_length()].value

    def learn(self, length: int, was_right: bool) -> None:
        self._chances[length.bit_length()].learn(was_right)


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
        self._num_tokens = 0  # when it was made

    @property
    def drafted(self) -> ListLike[int]:
        """The last draft's tokens."""
        return self._draft if self._match else ()

    def draft(self, limit: int) -> Draft:
        """At most `limit` tokens that followed the longest match, as long as they are not too unlikely."""
        self._match = match = self._index.find(self._learn() if self._match else None)
        self._num_tokens = len(self._token_ids)
        if match is None:
            return NO_DRAFT
        chances, together = [], 1.0
        for length in range(match.length, match.length + limit):
            chances.append(self._acceptance.chance(min(length, self._max_length)))
            together *= chances[-1]
            if together < MIN_CHANCE:
                break
        self._draft = self._copy(match.place + 1, len(chances))
        return Draft(self._draft, chances[: len(self._draft)])

    def _learn(self) -> int | None:
        """Compares the last draft, computed or not, with what came. The place where it goes on if all was right."""
        assert self._match is not None
        place, length = self._match
        came = self._token_ids[self._num_tokens :]
        for drafted, token_id in zip(self._draft, came, strict=False):
            self._acceptance.learn(min(length, self._max_length), drafted == token_id)
            if drafted != token_id:
                return None
            place, length = place + 1, length + 1
        return place if len(came) == place - self._match.place else None

    def _copy(self, start: int, count: int) -> list[int]:
        """`count` tokens from `start` on, over and over if they reach the text's end; nothing from a stop token on."""
        copied = self._token_ids[start : start + count]
        period = len(self._token_ids) - start
        for i in range(len(copied), count):
            copied.append(copied[i - period])
        if self._stop_ids.isdisjoint(copied):
            return copied
        return copied[: next(i for i, token_id in enumerate(copied) if token_id in self._stop_ids)]


class PromptLookup:
    """The Drafter that looks up each sequence's own prompt and output."""

    probe_gain = 1.3  # little to copy is not worth a trial

    def __init__(self, config: SpeculativeConfig) -> None:
        self._config = config
        self._lookups: WeakKeyDictionary[Sequence, Lookup] = WeakKeyDictionary()

    def propose(self, sequence: Sequence, limit: int) -> Draft:
        """At most `limit` tokens, or none."""
        lookup = self._lookups.get(sequence)
        if lookup is None:
            lookup = self._lookups[sequence] = Lookup(sequence, self._config)
        return lookup.draft(limit)

    def chances(self, sequence: Sequence, limit: int) -> ListLike[float]:
        """Of the tokens that propose() found."""
        return self.propose(sequence, limit).chances if limit else ()

    def draft(self, wanted: ListLike[tuple[Sequence, int]]) -> list[ListLike[int]]:
        """The first tokens, as many as wanted, of what was found for each sequence."""
        return [self._lookups[sequence].drafted[:width] if width else () for sequence, width in wanted]

    def seconds(self, num_sequences: int) -> float:
        """Copying takes no time."""
        return 0.0

    def release(self, sequence: Sequence) -> None:
        """Indexes go with their sequences."""

    def forget(self) -> None:
        """Nothing is shared between sequences."""

    def check(self, running: ListLike[Sequence]) -> None:
        """Nothing is kept for others."""
