"""Many requests at once over one engine loop: a bounded number in flight, their events interleaved."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from queue import SimpleQueue
from typing import Protocol

from tuili.engine.loop import EngineLoop
from tuili.engine.sequence import Sink
from tuili.runtime.answer import Answer
from tuili.text.tokenizer import Tokenizer
from tuili.types import Event, PromptTokens, TokenDelta, TokenRequest

WAITING_SHARE = 4  # requests in flight per running one, so that the engine never starves


class Served(Protocol):
    """What a flight needs of a loaded model."""

    @property
    def loop(self) -> EngineLoop: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
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
    """Submits requests as earlier ones finish. Iterate `events` to the end or close it."""

    def __init__(self, model: Served, requests: Iterable[tuple[PromptTokens, TokenRequest]]) -> None:
        self._model = model
        self._pending = enumerate(requests)
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
        room = WAITING_SHARE * self._model.max_num_seqs - len(self._answers)
        for index, (prompt, request) in itertools.islice(self._pending, room):
            self._submit(index, request)
            yield index, prompt

    def _submit(self, index: int, request: TokenRequest) -> None:
        sink = self._inbox.sink(index)
        self._model.loop.submit(request, sink)
        self._answers[index] = Answer(self._model.tokenizer, request)
        self._sinks[index] = sink

    def _leave(self, index: int) -> None:
        """Forgets a request and ends whatever of it still runs, be it answers beside one that failed."""
        answer, sink = self._answers.pop(index), self._sinks.pop(index)
        if answer.num_running:
            self._model.loop.abort(answer.request.request_id, sink=sink)


def abort_stopped(loop: EngineLoop, answer: Answer) -> None:
    """Tells the engine about answers that ended in text while it still runs them."""
    for index in answer.stopped:
        loop.abort(answer.request.request_id, index)
    answer.stopped.clear()
