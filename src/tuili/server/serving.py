"""What every dialect asks: one way from a parsed request to its events, with admission, loading and limits inside.

Knows models and requests; no wire format, no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace

from tuili.errors import DeadlineError, EngineUnavailableError, InvalidRequestError, TuiliError
from tuili.runtime.front.front import Front
from tuili.runtime.openai.fields import MAX_PROMPTS
from tuili.runtime.pool.model_pool import ModelPool
from tuili.runtime.pool.served_model import ServedModel
from tuili.server.admission import Admission, Seats, Ticket
from tuili.server.answering import Answering, Part
from tuili.server.caller import Caller
from tuili.server.http_settings import HttpSettings
from tuili.server.pacer import Pacer
from tuili.types import GenerateRequest

_QUICK_CHARS = 4096  # longer texts are tokenized beside the event loop
_DRAIN_RETRY_S = 5.0

Requests = Sequence[GenerateRequest]
MakeRequests = Callable[[ServedModel], Requests | Awaitable[Requests]]  # awaited where making them takes long


class Serving:
    """The server's state. One event loop."""

    def __init__(self, settings: HttpSettings, pool: ModelPool) -> None:
        self.settings = settings
        self.pool = pool
        self.pacer = Pacer()
        self.admission = Admission(
            max_queued_requests=settings.max_queued_requests, max_queued_tokens=settings.max_queued_tokens
        )
        self.is_draining = False
        self._running: dict[int, Answering] = {}
        self._seats: dict[int, Seats] = {}  # by id of the loaded model, for as long as requests use it
        self._num_accepted = 0  # these, those whose model is loading, and those not yet parsed
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._cut_by_drain: list[Callable[[TuiliError], None]] = []
        self.starting: asyncio.Task[None] | None = None  # loads what is to be there from the start

    @property
    def is_started(self) -> bool:
        """Whether that is done, and went well."""
        task = self.starting
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    @property
    def start_failure(self) -> BaseException | None:
        """What went wrong with that."""
        task = self.starting
        return task.exception() if task is not None and task.done() and not task.cancelled() else None

    def start(self) -> None:
        """Begins to load; whoever runs the server looks at `starting` for what went wrong."""
        self.starting = asyncio.create_task(self.pool.start())

    async def aclose(self) -> None:
        """Ends what runs and closes the pool."""
        if self.starting is not None:
            self.starting.cancel()
            await asyncio.wait([self.starting])
        self.cut(self._ending())
        await self.pool.aclose()

    async def answer(
        self,
        caller: Caller,
        model: str,
        make: MakeRequests,
        *,
        keep_alive_s: float | None = None,
    ) -> Answering:
        """Accepts a request: loads its model, has `make` parse it against that, and queues it.

        Raises what is wrong with it, QueueFullError, EngineUnavailableError, DeadlineError or what loading raises.
        Whoever reads the Answering closes it; the end of the HTTP request does, too.
        """
        caller.asked_model = model
        deadline_s = self._deadline()
        exits = AsyncExitStack()
        try:
            ticket = exits.enter_context(self.accepted())
            async with _until(deadline_s):
                served = await exits.enter_async_context(self.pool.use(model, keep_alive_s=keep_alive_s))
                parts = await self._parts(caller, served, make)
            ticket.take(sum(len(part.prompt.token_ids) for part in parts))
        except BaseException:
            await exits.aclose()
            raise
        caller.answering = answering = Answering(
            caller=caller,
            model=served,
            parts=parts,
            ticket=ticket,
            seats=self._seats_of(served, exits),
            pacer=self.pacer,
            exits=exits,
            deadline_s=deadline_s,
        )
        self._register(answering, exits)
        answering.begin()
        await asyncio.sleep(0)  # a loop writes at the end of its turn: the engine begins while headers are made
        return answering

    @asynccontextmanager
    async def use(self, name: str, *, keep_alive_s: float | None = None) -> AsyncIterator[ServedModel]:
        """A loaded model for what generates nothing. Raises as `answer` does; the deadline bounds the loading."""
        deadline_s = self._deadline()
        async with AsyncExitStack() as exits:
            exits.enter_context(self.accepted())
            async with _until(deadline_s):
                served = await exits.enter_async_context(self.pool.use(name, keep_alive_s=keep_alive_s))
            yield served

    @contextmanager
    def accepted(self) -> Iterator[Ticket]:
        """Work that waits for something, with its place in the queue: counted by `idle` until it ends.

        Raises EngineUnavailableError while draining, QueueFullError.
        """
        self.check_open()
        ticket = self.admission.enter()
        self._num_accepted += 1
        self._is_idle.clear()
        try:
            yield ticket
        finally:
            ticket.leave()
            self._num_accepted -= 1
            if not self._num_accepted:
                self._is_idle.set()

    def check_open(self) -> None:
        """Raises EngineUnavailableError while draining."""
        if self.is_draining:
            raise self._ending()

    @contextmanager
    def cut_by_drain(self, cut: Callable[[TuiliError], None]) -> Iterator[None]:
        """Work that a later server goes on with: no drain waits for it, it is cut as one begins.

        Raises EngineUnavailableError while draining.
        """
        self.check_open()
        self._cut_by_drain.append(cut)
        try:
            yield
        finally:
            self._cut_by_drain.remove(cut)

    def has_room(self, num_ahead: int = 0) -> bool:
        """Whether `check_room` raises nothing."""
        return not self.is_draining and self.admission.has_room(num_ahead)

    def check_room(self, num_ahead: int = 0) -> None:
        """Raises what `answer` would raise whatever it were asked, once num_ahead others who were let in have asked:
        EngineUnavailableError, QueueFullError.
        """
        self.check_open()
        self.admission.check_room(num_ahead)

    def running(self) -> tuple[Answering, ...]:
        """Everything accepted and not yet ended."""
        return tuple(self._running.values())

    def drain(self) -> None:
        """Refuses what comes from now on; what runs goes on, except what asked to be cut."""
        self.is_draining = True
        for cut in tuple(self._cut_by_drain):
            cut(self._ending())

    async def idle(self) -> None:
        """Returns when nothing runs or waits for its model."""
        await self._is_idle.wait()

    def cut(self, error: TuiliError) -> None:
        """Ends everything that runs, with that error."""
        for answering in self.running():
            answering.cut(error)

    def _ending(self) -> EngineUnavailableError:
        return EngineUnavailableError("the server is shutting down", retry_after_s=_DRAIN_RETRY_S)

    def _deadline(self) -> float | None:
        limit_s = self.settings.request_timeout_s
        return None if limit_s is None else asyncio.get_running_loop().time() + limit_s

    async def _parts(self, caller: Caller, served: ServedModel, make: MakeRequests) -> list[Part]:
        made = make(served)
        requests = [
            replace(
                request,
                request_id=f"{caller.request_id}-{index}",
                cache_salt="/".join(filter(None, (caller.cache_salt, request.cache_salt))),
            )
            for index, request in enumerate(await made if isinstance(made, Awaitable) else made)
        ]
        if not 1 <= len(requests) <= MAX_PROMPTS:
            raise InvalidRequestError(
                f"a request may bring 1 to {MAX_PROMPTS} prompts, got {len(requests)}", param="prompt"
            )
        if sum(map(_num_chars, requests)) <= _QUICK_CHARS:
            parts = [_part(served.front, request) for request in requests]
        else:
            parts = await asyncio.to_thread(lambda: [_part(served.front, request) for request in requests])
        for part in parts:
            served.client.check_request(part.token_request)
        caller.notes |= {"model": served.name, "prompt_tokens": sum(len(part.prompt.token_ids) for part in parts)}
        return parts

    def _seats_of(self, served: ServedModel, exits: AsyncExitStack) -> Seats:
        key = id(served)  # not reused while `served` is in use, and forgotten with its last user
        seats = self._seats.setdefault(key, Seats(served.max_num_seqs))
        seats.num_users += 1

        def leave() -> None:
            seats.num_users -= 1
            if not seats.num_users:
                del self._seats[key]

        exits.callback(leave)
        return seats

    def _register(self, answering: Answering, exits: AsyncExitStack) -> None:
        key = id(answering)
        self._running[key] = answering

        def leave() -> None:
            del self._running[key]
            self.admission.note_finished()

        exits.callback(leave)
        answering.caller.exits.push_async_callback(answering.aclose)


@asynccontextmanager
async def _until(deadline_s: float | None) -> AsyncIterator[None]:
    """Raises DeadlineError when what is inside has not ended by then, on the loop's clock."""
    try:
        async with asyncio.timeout_at(deadline_s) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise DeadlineError("the answer was not complete within the time allowed") from None
        raise


def _part(front: Front, request: GenerateRequest) -> Part:
    prompt, token_request = front.token_request(request)
    return Part(request, prompt, token_request)


def _num_chars(request: GenerateRequest) -> int:
    """How much text there is to work on, roughly; a template of the caller's own counts as much.

    Sequence breakers do, too: they are looked for in the whole vocabulary.
    """
    sampling = request.sampling
    if request.chat_template is not None or request.tools is not None or sampling.dry_multiplier:
        return _QUICK_CHARS + 1
    num_beside = sum(map(len, sampling.bad_words or ()))
    if request.messages is None:
        return num_beside + len(request.prompt or request.prompt_token_ids or ())
    contents = (message.get("content") for message in request.messages)
    return num_beside + sum(len(c) if isinstance(c, str) else len(str(c)) for c in contents if c is not None)
