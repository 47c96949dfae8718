"""Several supervised engines of one model as one: requests go where they are answered first, and on when one is lost.

Knows engines as clients see them; no processes and no devices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import fields
from typing import Any

import msgspec

from tuili.engine.client import Stream
from tuili.engine.stats import EngineHealth, EngineStats
from tuili.engine.wire import EngineFacts
from tuili.errors import EngineUnavailableError
from tuili.runtime.replicas.router import PIECE, Router, Ticket
from tuili.runtime.supervision.flight import Flight
from tuili.runtime.supervision.supervised_engine import SupervisedEngine
from tuili.types import TokenDelta, TokenRequest

_NOT_ADDED = ("num_blocks", "num_free_blocks", "max_step_tokens", "prefill")
_ADDED = [field.name for field in fields(EngineStats) if field.name not in _NOT_ADDED]


class ReplicatedEngine:
    """ServedEngine over replicas that are alike. Belongs to their event loop."""

    def __init__(self, replicas: ListLike[SupervisedEngine]) -> None:
        self.on_given_up: Callable[[], None] | None = None
        self.replicas = tuple(replicas)
        self._router = Router([_num_tokens(replica.facts) // PIECE for replica in replicas])
        self._num_restarts = [replica.health.num_restarts for replica in replicas]
        self._passages: dict[_Passage, None] = {}
        for replica in replicas:
            replica.on_given_up = self._note_given_up

    def generate(self, request: TokenRequest) -> Stream:
        """As EngineClient.generate. What a replica leaves undone when it is given up, another goes on with."""
        self.check_request(request)
        passage = _Passage(request, self)
        self._passages[passage] = None
        passage.on_leave = lambda: self._leave(passage)
        return passage

    def _leave(self, passage: _Passage) -> None:
        del self._passages[passage]
        passage.part()

    def enter(self, request: TokenRequest) -> tuple[Ticket, Stream]:
        """Asks the replica that answers first. Raises as generate; the ticket goes back with `leave`."""
        ticket = self._router.enter(request, self._candidates())
        try:
            return ticket, self.replicas[ticket.replica].generate(request)
        except BaseException:
            self._router.leave(ticket)
            raise

    def leave(self, ticket: Ticket, steps: Stream) -> None:
        steps.leave()
        self._router.leave(ticket)

    def take(self, ticket: Ticket, deltas: list[TokenDelta]) -> list[TokenDelta]:
        """Those that count: an engine's end is none for an answer that another can go on with."""
        self._router.has_answered(ticket)
        if all(replica.is_given_up for replica in self.replicas):
            return deltas
        return [delta for delta in deltas if not isinstance(delta.error, EngineUnavailableError)]

    def _candidates(self) -> list[int]:
        """Those that answer, else those that are about to, else those that are tried again, else any, which refuses.

        Forgets what restarted ones had cached.
        """
        health = [replica.health for replica in self.replicas]
        for i, state in enumerate(health):
            if state.num_restarts != self._num_restarts[i]:
                self._num_restarts[i] = state.num_restarts
                self._router.forget(i)
        ready = [i for i, state in enumerate(health) if state.is_ready]
        hopeful = [i for i, replica in enumerate(self.replicas) if not replica.is_given_up]
        return ready or hopeful or [i for i, state in enumerate(health) if state.state == "restarting"] or [0]

    def check_request(self, request: TokenRequest) -> None:
        self.replicas[self._candidates()[0]].check_request(request)

    def abort(self, request_id: str, index: int | None = None) -> None:
        for passage in self._passages:
            if passage.request.request_id == request_id:
                passage.abort(index)
        for replica in self.replicas:
            replica.abort(request_id, index)

    def stats(self) -> EngineStats:
        """Of all together."""
        found = [replica.stats() for replica in self.replicas]
        added: dict[str, Any] = {name: sum(getattr(stats, name) for stats in found) for name in _ADDED}
        for name in ("num_blocks", "num_free_blocks"):
            added[name] = tuple(map(sum, zip(*(getattr(stats, name) for stats in found), strict=True)))
        prefill = {request_id: count for stats in found for request_id, count in stats.prefill.items()}
        limits = [stats.max_step_tokens for stats in found if stats.max_step_tokens is not None]
        return EngineStats(prefill=prefill, max_step_tokens=min(limits, default=None), **added)

    @property
    def health(self) -> EngineHealth:
        """Ready as long as one is; ages are of the freshest that is."""
        found = [replica.health for replica in self.replicas]
        ready = [state for state in found if state.is_ready]
        best = min(ready or found, key=lambda state: state.heartbeat_age_s)
        return EngineHealth(
            is_ready=best.is_ready,
            state=best.state,
            heartbeat_age_s=best.heartbeat_age_s,
            last_progress_age_s=best.last_progress_age_s,
            num_restarts=sum(state.num_restarts for state in found),
        )

    @property
    def facts(self) -> EngineFacts:
        """Of all together; the process is the first one's."""
        found = [replica.facts for replica in self.replicas]
        added = {name: sum(getattr(facts, name) for facts in found) for name in ("cache_bytes", "weight_bytes")}
        num_blocks = tuple(map(sum, zip(*(facts.num_blocks for facts in found), strict=True)))
        max_model_len = min(facts.max_model_len for facts in found)
        return msgspec.structs.replace(found[0], num_blocks=num_blocks, max_model_len=max_model_len, **added)

    @property
    def is_given_up(self) -> bool:
        """Whether all are."""
        return all(replica.is_given_up for replica in self.replicas)

    @property
    def is_outdated(self) -> bool:
        return self.is_given_up and any(replica.is_outdated for replica in self.replicas)

    @property
    def own_bytes(self) -> int:
        return sum(replica.own_bytes for replica in self.replicas)

    async def resize_cache(self, num_bytes: int, *, may_forget: bool = False) -> int:
        """Each gets the same share."""
        share = num_bytes // len(self.replicas)
        resizing = (replica.resize_cache(share, may_forget=may_forget) for replica in self.replicas)
        return sum(await asyncio.gather(*resizing))

    def close(self) -> None:
        for replica in self.replicas:
            replica.close()

    async def aclose(self, grace_s: float = 5.0) -> None:
        await asyncio.gather(*(replica.aclose(grace_s) for replica in self.replicas))

    def _note_given_up(self) -> None:
        if self.is_given_up and self.on_given_up is not None:
            self.on_given_up()


class _Passage(Flight):
    """A request on its way through replicas, at one of them at a time."""

    def __init__(self, request: TokenRequest, engine: ReplicatedEngine) -> None:
        super().__init__(request, lambda *_: None)
        self._engine = engine
        self._place: tuple[Ticket, Stream] | None = None
        self._enter(request)

    async def __anext__(self) -> list[TokenDelta]:
        try:
            while not (self.is_read or self._is_left):
                if self._deltas:
                    return await super().__anext__()
                await self._step()
        except BaseException:
            self.leave()
            raise
        self.leave()
        raise StopAsyncIteration

    async def _step(self) -> None:
        """What comes next of the replica that has it; a lost one's rest is another's then."""
        ticket, steps = self._place or self._enter(self.rest())
        deltas = await anext(steps)
        kept = self._engine.take(ticket, deltas)
        self.put(kept)
        if len(kept) < len(deltas):
            self.part()
            self.pause()

    def _enter(self, request: TokenRequest) -> tuple[Ticket, Stream]:
        self._place = place = self._engine.enter(request)
        self.submitted(place[0].replica)
        return place

    def part(self) -> None:
        """Gives its place back."""
        place, self._place = self._place, None
        if place is not None:
            self._engine.leave(*place)


def _num_tokens(facts: EngineFacts) -> int:
    """That the cache holds, of the group that holds most."""
    return max(facts.num_blocks) * facts.block_size
