"""One HTTP request's answers under way: waits for places in the engine, reads deltas, makes events; ends what it began.

Knows requests, engine clients and events; no wire format.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Literal

from tuili.engine.client import Stream
from tuili.engine.stats import Prefill
from tuili.errors import DeadlineError, TuiliError
from tuili.runtime.front.answer import Answer, abort_stopped
from tuili.runtime.pool.served_model import ServedModel
from tuili.server.admission import Seats, Ticket
from tuili.server.caller import Caller
from tuili.server.dialect import Progress
from tuili.server.pacer import Pacer
from tuili.types import Event, Failed, GenerateRequest, PromptTokens, TextDelta, TokenRequest

Phase = Literal["queue", "prefill", "decode", "done"]
Events = list[tuple[int, Event]]  # (index of the request, event)


@dataclass(slots=True)
class Part:
    """One of the requests: an HTTP request may bring many prompts."""

    request: GenerateRequest
    prompt: PromptTokens
    token_request: TokenRequest
    phase: Phase = "queue"
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    first_token_s: float | None = None
    answer: Answer | None = None  # once the engine has been asked
    deltas: Stream | None = None  # likewise
    is_seated: bool = False  # holds places in the engine

    @property
    def num_sequences(self) -> int:
        beams = self.token_request.beam_search
        return self.token_request.sampling.n if beams is None else beams.beam_width


class Answering:
    """Iterate for events, and close what iterates; ends after each request's Done or Failed. Must be closed."""

    def __init__(
        self,
        *,
        caller: Caller,
        model: ServedModel,
        parts: Sequence[Part],
        ticket: Ticket,
        seats: Seats,
        pacer: Pacer,
        exits: AsyncExitStack,
        deadline_s: float | None,
    ) -> None:
        self.caller = caller
        self.model = model
        self.parts = parts
        self.arrived_s = time.monotonic()
        self.ended_s: float | None = None
        self._ticket = ticket
        self._seats = seats
        self._pacer = pacer
        self._exits = exits
        self._deadline_s = deadline_s
        self._reader: asyncio.Task[object] | None = None
        self._cut_by: TuiliError | None = None

    @property
    def requests(self) -> list[GenerateRequest]:
        return [part.request for part in self.parts]

    @property
    def prompts(self) -> list[PromptTokens]:
        return [part.prompt for part in self.parts]

    def begin(self) -> None:
        """Asks the engine for what has its places at once; the rest waits for them as it is read."""
        for part in self.parts:
            if not self._seats.take_now(part.num_sequences):
                return
            self._ask(part)

    def __aiter__(self) -> AsyncGenerator[Events, None]:
        return self._part_events(0) if len(self.parts) == 1 else self._merged()

    def progress(self) -> Progress:
        """How much of the prompts has been computed, as far as it is known."""
        total = sum(len(part.prompt.token_ids) for part in self.parts)
        known = [self.prefill(part) for part in self.parts]
        return Progress(
            num_computed=sum(prefill.num_computed for prefill in known),
            num_prompt=total,
            num_cached=sum(prefill.num_cached for prefill in known),
            elapsed_s=max(prefill.elapsed_s for prefill in known),
        )

    def prefill(self, part: Part) -> Prefill:
        """How much of a part's prompt has been computed."""
        if part.phase == "prefill":
            return self.model.client.stats().prefill.get(part.token_request.request_id, Prefill())
        return Prefill() if part.phase == "queue" else Prefill(len(part.prompt.token_ids), part.num_cached_tokens)

    def cut(self, error: TuiliError) -> None:
        """Ends whoever reads, with that error. No-op when nobody does, or it was cut before."""
        if self._cut_by is None:
            self._cut_by = error
            if self._reader is not None:
                self._reader.cancel()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Reads inside may be cut, and are when the deadline comes: then the error is raised here."""
        if self._cut_by is not None:
            raise self._cut_by
        task = self._reader = asyncio.current_task()
        assert task is not None
        timer = None
        if self._deadline_s is not None:
            error = DeadlineError("the answer was not complete within the time allowed")
            timer = asyncio.get_running_loop().call_at(self._deadline_s, self.cut, error)
        try:
            yield
        except asyncio.CancelledError:
            if self._cut_by is None or task.uncancel() > 0:
                raise
            raise self._cut_by from None
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()

    async def aclose(self) -> None:
        """Aborts what still runs and gives back all it holds. Doing it twice does no harm."""
        self._ticket.leave()
        self.ended_s = self.ended_s or time.monotonic()
        for part in self.parts:
            self._leave(part)
        self.caller.notes |= {
            "cached_tokens": sum(part.num_cached_tokens for part in self.parts),
            "output_tokens": sum(part.num_output_tokens for part in self.parts),
        }
        await self._exits.aclose()

    async def _part_events(self, index: int) -> AsyncGenerator[Events, None]:
        """The events of one part; what goes wrong becomes its Failed."""
        part = self.parts[index]
        try:
            if part.deltas is None:
                await self._seats.take(self.caller.key_id, part.num_sequences, part.request.priority)
                self._ask(part)
            async with aclosing(self._computed(part)) as computed:
                async for events in computed:
                    yield [(index, event) for event in events]
                    await self._pacer.wait()
        except TuiliError as error:
            yield [(index, Failed(error))]
        finally:
            self._leave(part)

    def _ask(self, part: Part) -> None:
        """The engine gets a part, which has its places."""
        part.is_seated = True
        self._ticket.seat(len(part.prompt.token_ids))
        self._pacer.num_streams += 1
        part.phase = "prefill"
        part.deltas = self.model.client.generate(part.token_request)
        part.answer = self.model.front.new_answer(part.request, part.prompt, part.token_request)  # as the engine begins
        part.answer.arrived(self.arrived_s)

    def _leave(self, part: Part) -> None:
        """Ends what still runs of a part and gives its places back. Doing it twice does no harm."""
        part.phase = "done"
        if not part.is_seated:
            return
        part.is_seated = False
        self._pacer.num_streams -= 1
        if part.deltas is not None:
            part.deltas.leave()
        self._seats.give_back(part.num_sequences)
        answer = part.answer  # None: asking the engine failed
        if num_open := part.num_sequences - (0 if answer is None else len(answer.finish_reasons)):
            is_broken = answer is None or answer.is_done
            self.model.front.meter.add_unfinished("error" if is_broken else "abort", num_open)

    async def _computed(self, part: Part) -> AsyncGenerator[list[Event], None]:
        client, answer, deltas = self.model.client, part.answer, part.deltas
        assert answer is not None
        assert deltas is not None
        events: list[Event] = [part.prompt]
        async for arrived in deltas:
            for delta in arrived:
                part.num_cached_tokens = max(part.num_cached_tokens, delta.num_cached_tokens)
                events += answer.push(delta)
            self._note(part, events)
            abort_stopped(client, answer)
            yield events
            if answer.is_done:
                return
            events = []

    def _note(self, part: Part, events: Sequence[Event]) -> None:
        count = sum(len(event.token_ids) for event in events if type(event) is TextDelta)
        if count and part.first_token_s is None:
            part.phase, part.first_token_s = "decode", time.monotonic()
        part.num_output_tokens += count

    async def _merged(self) -> AsyncGenerator[Events, None]:
        """The events of several parts as they come."""
        arrived: Events = []
        failures: list[Exception] = []
        has_arrived = asyncio.Event()

        async def pump(index: int) -> None:
            try:
                async with aclosing(self._part_events(index)) as events:
                    async for some in events:
                        arrived.extend(some)
                        has_arrived.set()
            except Exception as failure:
                failures.append(failure)
            finally:
                has_arrived.set()

        tasks = [asyncio.create_task(pump(index)) for index in range(len(self.parts))]
        try:
            while arrived or failures or not all(task.done() for task in tasks):
                await has_arrived.wait()
                has_arrived.clear()
                if failures:
                    raise failures[0]
                if arrived:
                    taken, arrived[:] = list(arrived), []
                    yield taken
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
