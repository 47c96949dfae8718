"""Requests go where they are answered first: beside the same beginning, unless too much waits there."""

from __future__ import annotations

from support.answers import ask
from tuili.runtime.replicas.router import ANSWER_TOKENS, PIECE, Router

BOTH = (0, 1)
LONG = tuple(range(3, 3 + 4 * PIECE))


def router(max_pieces: int = 100) -> Router:
    return Router([max_pieces, max_pieces])


def test_requests_without_anything_in_common_go_in_turn() -> None:
    routes = router()
    tickets = [routes.enter(ask(str(i), [i] * 100), BOTH) for i in range(4)]
    assert [ticket.replica for ticket in tickets] == [0, 1, 0, 1]
    routes.leave(tickets[1])
    assert routes.enter(ask("x", [7]), BOTH).replica == 1


def test_a_prompt_goes_where_its_beginning_was_computed() -> None:
    routes = router()
    routes.leave(routes.enter(ask("a", [1] * 10), BOTH))
    busy = routes.enter(ask("b", [2] * 10), BOTH)
    first = routes.enter(ask("c", LONG), BOTH)
    assert (busy.replica, first.replica) == (0, 1)
    routes.leave(first)
    routes.leave(busy)
    again = routes.enter(ask("d", (*LONG, 5, 6)), BOTH)
    assert (again.replica, again.prompt_work) == (1, 2)


def test_too_much_work_there_outweighs_it() -> None:
    routes = router()
    first = routes.enter(ask("a", LONG), BOTH)
    routes.has_answered(first)
    replicas = [routes.enter(ask(str(i), LONG), BOTH).replica for i in range(12)]
    assert replicas[0] == first.replica
    assert replicas.count(1 - first.replica) >= 2  # whose cache has it too from then on


def test_a_prompt_that_is_computed_weighs_no_more() -> None:
    routes = router()
    ticket = routes.enter(ask("a", LONG, temperature=1.0, n=2), (1,))
    assert (ticket.prompt_work, ticket.answer_work) == (len(LONG), 2 * ANSWER_TOKENS)
    routes.has_answered(ticket)
    routes.has_answered(ticket)
    assert ticket.work == 2 * ANSWER_TOKENS
    assert routes.enter(ask("b", [1] * 2 * ANSWER_TOKENS), BOTH).replica == 0
    routes.leave(ticket)
    routes.leave(ticket)
    assert routes.enter(ask("c", [2]), BOTH).replica == 1


def test_salts_share_nothing_and_a_new_cache_is_empty() -> None:
    routes = router()
    routes.leave(routes.enter(ask("a", LONG), (1,)))
    assert routes.enter(ask("b", LONG, salt="other"), (1,)).prompt_work == len(LONG)
    assert routes.enter(ask("c", LONG), (1,)).prompt_work == 0
    routes.forget(1)
    assert routes.enter(ask("d", LONG), (1,)).prompt_work == len(LONG)


def test_what_a_cache_cannot_hold_is_forgotten_ends_of_prompts_first() -> None:
    routes = router(max_pieces=6)
    for i in (1, 2):
        routes.enter(ask(str(i), (*LONG[: 2 * PIECE], *[i] * 2 * PIECE)), (0,))
    assert routes.enter(ask("c", (*LONG[: 2 * PIECE], *[2] * 2 * PIECE)), (0,)).prompt_work == 0
    routes.enter(ask("d", [9] * 4 * PIECE), (0,))
    assert routes.enter(ask("e", LONG[: 2 * PIECE]), (0,)).prompt_work == 0
    assert routes.enter(ask("f", (*LONG[: 2 * PIECE], *[1] * 2 * PIECE)), (0,)).prompt_work == 2 * PIECE
