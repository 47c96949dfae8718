"""A job as it was asked for: its rows, what is made of them, and what tells it from every other job."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tuili.errors import InvalidRequestError
from tuili.runtime.jobs.openai_batch import OpenAiTask, is_batch_row
from tuili.runtime.jobs.outputs import FileNames
from tuili.runtime.jobs.rows import Row, RowSource
from tuili.runtime.jobs.settings import ModelSettings, PromptSettings
from tuili.runtime.jobs.task import PromptTask, Served, Task
from tuili.runtime.jobs.template import Template

_VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSettings(ModelSettings, PromptSettings):
    """Everything that decides what the answers are, but for the rows.

    model_bytes and model_digest tell another model under the same name.
    """

    model: str
    model_bytes: int
    model_digest: str
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def given(self) -> dict[str, Any]:
        """Under the names of the flags, without what was not given."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "sampling"}
        return {name: value for name, value in {**own, **self.sampling}.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Rows and a task for them. Made by `open_job`, which has checked every row."""

    source: RowSource
    task: Task
    names: FileNames | None
    settings: JobSettings
    num_rows: int
    input_identity: Mapping[str, Any]

    def header(self, seed: int) -> dict[str, Any]:
        """What the journal begins with, as it is when it has been JSON."""
        header: dict[str, Any] = {
            "version": _VERSION,
            "input": {"num_rows": self.num_rows, **self.input_identity},
            "settings": self.settings.given(),
            "seed": seed,
        }
        return dict(json.loads(json.dumps(header)))

    def rows(self) -> Iterator[Row]:
        """All rows again. Raises InvalidRequestError when the input is another by now."""
        yield from self.source.rows()
        if self.source.identity() != self.input_identity:
            raise InvalidRequestError(
                f"{self.source.name} has changed while the job ran: bring back what it was to go on", param="input"
            )

    def file_names(self, row: Row, num_answers: int) -> list[str]:
        """What a row's answers are called. Only for jobs with a pattern of names."""
        assert self.names is not None
        return self.names.of({"i": row.index, "id": self.task.row_id(row), **row.values}, num_answers)


def open_job(source: RowSource, settings: JobSettings) -> Job:
    """Reads and checks every row, so that nothing is refused after the work has begun.

    Raises InvalidRequestError naming file, line, what was found and what is allowed.
    """
    task, names = _task(source, settings)
    job = Job(source=source, task=task, names=names, settings=settings, num_rows=0, input_identity={})
    places: dict[str, str] = {}
    file_places: dict[str, str] = {}
    for row in source.rows():
        with _placed(row):
            _check_row(job, row, places, file_places)
    if not places:
        raise InvalidRequestError(f"{source.name} holds no rows", param="input")
    return Job(
        source=source,
        task=task,
        names=names,
        settings=settings,
        num_rows=len(places),
        input_identity=source.identity(),
    )


def _task(source: RowSource, settings: JobSettings) -> tuple[Task, FileNames | None]:
    with closing(source.rows()) as rows:
        first = next(rows, None)
    if first is not None and is_batch_row(first):
        _refuse_beside_batch(source, settings)
        return OpenAiTask(model=settings.model, sampling=settings.sampling), None
    task = PromptTask(
        prompt=None if settings.prompt is None else Template.parse(settings.prompt, "prompt"),
        system=None if settings.system is None else Template.parse(settings.system, "system"),
        raw=settings.raw,
        sampling=settings.sampling,
        template_args={} if settings.think is None else {"enable_thinking": settings.think},
        id_column=settings.id_column,
    )
    return task, None if settings.name is None else FileNames(Template.parse(settings.name, "name"))


def _refuse_beside_batch(source: RowSource, settings: JobSettings) -> None:
    for name in ("prompt", "system", "raw", "think", "id_column", "name"):
        if getattr(settings, name) not in (None, False):
            flag = "output_dir" if name == "name" else name
            raise InvalidRequestError(
                f"{source.name} is a batch file, whose bodies say what is asked: {flag} has no place beside it",
                param=flag,
            )


def _check_row(job: Job, row: Row, places: dict[str, str], file_places: dict[str, str]) -> None:
    row_id = job.task.row_id(row)
    if (other := places.setdefault(row_id, row.place)) is not row.place:
        raise InvalidRequestError(f"id {row_id!r:.80} is taken by {other}; every row needs an id of its own")
    request = job.task.request(row, 0, Served())
    for name in job.file_names(row, request.sampling.n) if job.names is not None else ():
        if (other := file_places.setdefault(name, row.place)) is not row.place:
            raise InvalidRequestError(f"the file name {name!r} is taken by {other}: use {{i}} or {{id}}", param="name")


@contextmanager
def _placed(row: Row) -> Iterator[None]:
    """Puts the row's place in front of what is wrong with it."""
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{row.place}: {error}", param=error.param) from error
