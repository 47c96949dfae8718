"""Which of several engines gets a request: the one that will have answered it first, as far as can be told from here.

Each has work ahead of it, counted in tokens: prompts it has yet to compute and answers it is at. To that comes what it
would have to compute of this prompt, which is less where it has computed the same beginning before. Pure state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as ListLike
from dataclasses import dataclass

from tuili.types import TokenRequest

PIECE = 64  # tokens of a prompt that are remembered together
ANSWER_TOKENS = 64  # of computing prompts, that an answer under way weighs as much as


@dataclass(slots=True, eq=False)
class Ticket:
    """A request's place at a replica, until it leaves."""

    replica: int
    prompt_work: int  # tokens
    answer_work: int

    @property
    def work(self) -> int:
        return self.prompt_work + self.answer_work


class Router:
    """Knows what it has sent where, and nothing else of the engines."""

    def __init__(self, max_pieces: ListLike[int]) -> None:
        """Of each replica, how many pieces of prompts its cache holds."""
        self._max_pieces = max_pieces
        self._pieces: list[OrderedDict[int, None]] = [OrderedDict() for _ in max_pieces]  # the latest last
        self._work = [0] * len(max_pieces)

    def enter(self, request: TokenRequest, candidates: ListLike[int]) -> Ticket:
        """A place at the best of the candidates; of equally good ones, the first."""
        pieces = _chain(request)
        offers = [Ticket(replica, self._left(request, pieces, replica), _answers(request)) for replica in candidates]
        best = min(offers, key=lambda offer: self._work[offer.replica] + offer.work)
        self._work[best.replica] += best.work
        self._remember(best.replica, pieces)
        return best

    def has_answered(self, ticket: Ticket) -> None:
        """The first token has come: the prompt is computed."""
        self._work[ticket.replica] -= ticket.prompt_work
        ticket.prompt_work = 0

    def leave(self, ticket: Ticket) -> None:
        """The request has ended there."""
        self._work[ticket.replica] -= ticket.work
        ticket.prompt_work = ticket.answer_work = 0

    def forget(self, replica: int) -> None:
        """It has another cache now, an empty one."""
        self._pieces[replica].clear()

    def _left(self, request: TokenRequest, pieces: ListLike[int], replica: int) -> int:
        """Tokens of the prompt that the replica has not computed before."""
        known = self._pieces[replica]
        num_known = next((i for i, piece in enumerate(pieces) if piece not in known), len(pieces))
        return len(request.prompt_token_ids) - num_known * PIECE

    def _remember(self, replica: int, pieces: ListLike[int]) -> None:
        known = self._pieces[replica]
        for piece in reversed(pieces):  # beginnings, which more prompts share, are forgotten last
            known[piece] = None
            known.move_to_end(piece)
        while len(known) > self._max_pieces[replica]:
            known.popitem(last=False)


def _answers(request: TokenRequest) -> int:
    return ANSWER_TOKENS * len(request.indexes)


def _chain(request: TokenRequest) -> list[int]:
    """One number for each whole piece of the prompt, of it and all before it."""
    found: list[int] = []
    last, tokens = hash(request.cache_salt), request.prompt_token_ids
    for start in range(0, len(tokens) - PIECE + 1, PIECE):
        last = hash((last, tuple(tokens[start : start + PIECE])))
        found.append(last)
    return found
