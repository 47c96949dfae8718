"""Works through rows: requests go to the model a bounded number at a time, results are kept as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from tuili.errors import EngineUnavailableError, InvalidRequestError, TuiliError
from tuili.runtime.api.outputs import RequestOutput, empty_output
from tuili.runtime.jobs.rows import Row
from tuili.runtime.jobs.task import Result, Served, Task
from tuili.runtime.loading.pipeline import Pipeline
from tuili.types import Done, Event, Failed, GenerateRequest, TextDelta

SHOW_INTERVAL_S = 0.2

Keep = Callable[[Row, Result, bool], None]  # row, its result, whether that is a failure


@dataclass(slots=True)
class JobProgress:
    """How far a job is. Tokens and seconds are those of this run; num_kept rows had been answered before it."""

    num_rows: int
    num_kept: int = 0
    num_done: int = 0
    num_failed: int = 0
    num_output_tokens: int = 0
    num_finished_tokens: int = 0  # of those: of answers that are complete
    answer_s: float = 0.0  # from the first token to the last, summed over the rows answered
    slowest_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Begins to count seconds, once the model is there."""
        self.started_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    @property
    def left_s(self) -> float | None:
        """Seconds to go if the rest is as long and comes as fast; None before there is anything to tell by."""
        num_answers = self.num_done - self.num_failed
        if not num_answers or not self.num_output_tokens:
            return None
        expected = (self.num_rows - self.num_kept - self.num_failed) * self.num_finished_tokens / num_answers
        return max(expected / self.num_output_tokens - 1, 0.0) * self.elapsed_s


@dataclass(frozen=True, slots=True)
class FinishedRow:
    """A row that is done, for whoever shows it. decode_s counts from its first token to its last."""

    row_id: str
    num_tokens: int
    decode_s: float
    error: str | None = None


Show = Callable[[JobProgress, FinishedRow | None], None]


@dataclass(slots=True)
class _Live:
    row: Row
    request: GenerateRequest
    output: RequestOutput


class RowRunner:
    """Answers rows with one model. `keep` is called once for each row, in the order they finish."""

    def __init__(self, task: Task, seed: int, model: Pipeline, keep: Keep, progress: JobProgress, show: Show) -> None:
        self._task = task
        self._seed = seed
        self._model = model
        self._keep = keep
        self._progress = progress
        self._show = show
        self._live: dict[int, _Live] = {}
        self._shown_s = 0.0

    def run(self, rows: Iterable[Row]) -> None:
        """Returns when every row is kept. Raises EngineUnavailableError when the engine is gone."""
        with closing(self._model.run(self._requests(rows), goes_on=True)) as events:
            for index, event in events:
                self._take(index, event)

    def _requests(self, rows: Iterable[Row]) -> Iterator[GenerateRequest]:
        served = Served(has_chat_template=self._model.has_chat_template, default_sampling=self._model.default_sampling)
        index = 0
        for row in rows:
            try:
                request = self._task.request(row, self._seed, served)
            except InvalidRequestError as error:  # what only the model's own defaults make wrong
                self._fail(row, error)
                continue
            self._live[index] = _Live(row, request, empty_output(request.request_id, request.sampling.n))
            index += 1
            yield request

    def _take(self, index: int, event: Event) -> None:
        live = self._live[index]
        if isinstance(event, Failed):
            if isinstance(event.error, EngineUnavailableError):
                raise event.error
            del self._live[index]
            self._fail(live.row, event.error)
            return
        live.output.fold(event)
        if isinstance(event, Done):
            del self._live[index]
            result = self._task.result(live.row, live.request, live.output)
            self._keep(live.row, result, False)
            self._progress.num_finished_tokens += event.usage.num_output_tokens
            self._progress.answer_s += event.timings.decode_s
            self._progress.slowest_s = max(self._progress.slowest_s, event.timings.decode_s)
            self._count(FinishedRow(live.request.request_id, event.usage.num_output_tokens, event.timings.decode_s))
        elif isinstance(event, TextDelta):
            self._progress.num_output_tokens += len(event.token_ids)
            if time.monotonic() - self._shown_s >= SHOW_INTERVAL_S:
                self._tell(None)

    def _fail(self, row: Row, error: TuiliError) -> None:
        self._keep(row, self._task.failure(error), True)
        self._progress.num_failed += 1
        self._count(FinishedRow(self._task.row_id(row), 0, 0.0, str(error)))

    def _count(self, finished: FinishedRow) -> None:
        self._progress.num_done += 1
        self._tell(finished)

    def _tell(self, finished: FinishedRow | None) -> None:
        self._show(self._progress, finished)
        self._shown_s = time.monotonic()
