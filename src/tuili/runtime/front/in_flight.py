"""Many requests at once over one engine loop: a bounded number in flight, their events interleaved."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from queue import SimpleQueue
from typing import Protocol

from tuili.engine.loop import RequestLoop
from tuili.engine.sequence import Sink
from tuili.errors import InvalidRequestError
from tuili.runtime.front.answer import Answer, abort_stopped
from tuili.runtime.front.front import Front
from tuili.types import Event, Failed, GenerateRequest, TokenDelta

WAITING_SHARE = 4  # answers in flight per running one, so that the engine never starves


class Served(Protocol):
    """What a flight needs of a loaded model."""

    @property
    def loop(self) -> RequestLoop: ...
    @property
    def front(self) -> Front: ...
    @property
    def max_num_seqs(self) -> int: ...


class Inbox:
    """Carries deltas from the engine's thread to one reader, all of a step with one wake-up."""

    def __init__(self) -> None:
        self._steps: SimpleQueue[list[tuple[int, TokenDelta]]] = SimpleQueue()
        self._arrived: list[tuple[int, TokenDelta]] = []

    def sink(self, index: int) -> Sink:
        """A sink for the deltas of request `index`."""
        return lambda delta: self._arrived.append((index, delta))

    def flush(self) -> None:
        """Called in the engine's thread after each step."""
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            self._steps.put(arrived)

    def get(self) -> list[tuple[int, TokenDelta]]:
        """(index of the request, delta) of the next step that brought any; waits for it."""
        return self._steps.get()


class InFlight:
    """Takes requests from a stream as earlier ones finish. Iterate `events` to the end or close it.

    A request that is refused raises when its turn comes; with goes_on it ends in a Failed event of its own.
    """

    def __init__(self, model: Served, requests: Iterable[GenerateRequest], *, goes_on: bool = False) -> None:
        self._model = model
        self._pending = enumerate(requests)
        self._goes_on = goes_on
        self._limit = WAITING_SHARE * model.max_num_seqs
        self._num_in_flight = 0  # answers: a request counts n
        self._inbox = Inbox()
        self._answers: dict[int, Answer] = {}
        self._sinks: dict[int, Sink] = {}

    def events(self) -> Generator[tuple[int, Event], None, None]:
        """(index of the request, event) until all are done; closing aborts what is running."""
        loop = self._model.loop
        loop.add_listener(self._inbox.flush)
        try:
            yield from self._admit()
            while self._answers:
                for index, delta in self._inbox.get():
                    if (answer := self._answers.get(index)) is None:
                        continue  # it came late, for an answer that a stop string has already ended
                    for event in answer.push(delta):
                        yield index, event
                    abort_stopped(loop, answer)
                    if answer.is_done:
                        self._leave(index)
                yield from self._admit()
        finally:
            for index in list(self._answers):
                self._leave(index)
            loop.remove_listener(self._inbox.flush)

    def _admit(self) -> Iterator[tuple[int, Event]]:
        while self._num_in_flight < self._limit:
            if (pending := next(self._pending, None)) is None:
                return
            yield pending[0], self._submit(*pending)

    def _submit(self, index: int, request: GenerateRequest) -> Event:
        """The request's first event; with goes_on its only one if it is refused."""
        sink = self._inbox.sink(index)
        try:
            prompt, token_request = self._model.front.token_request(request)
            self._model.loop.submit(token_request, sink)
        except InvalidRequestError as error:
            if not self._goes_on:
                raise
            return Failed(error)
        self._answers[index] = self._model.front.new_answer(request, prompt, token_request)
        self._sinks[index] = sink
        self._num_in_flight += request.sampling.n
        return prompt

    def _leave(self, index: int) -> None:
        """Forgets a request and ends whatever of it still runs, be it answers beside one that failed."""
        answer, sink = self._answers.pop(index), self._sinks.pop(index)
        self._num_in_flight -= answer.request.sampling.n
        if answer.num_running:
            self._model.loop.abort(answer.request.request_id, sink=sink)
