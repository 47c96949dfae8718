"""A job with a journal: every row is answered exactly once, however often the process dies on the way."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuili.errors import InvalidRequestError, ModelFileError
from tuili.runtime.jobs.job import Job
from tuili.runtime.jobs.journal import Journal, discard, has_journal, locked, require_same
from tuili.runtime.jobs.outputs import FAILED_NAME, AnswerFolder, answer_texts, publish_lines
from tuili.runtime.jobs.rows import Row
from tuili.runtime.jobs.task import Result
from tuili.store.durable import storage_errors


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where the answers of a job go: a file of lines, or a folder when the job names files."""

    path: Path
    is_folder: bool

    @property
    def job_folder(self) -> Path:
        """Where the journal is."""
        return self.path / ".job" if self.is_folder else self.path.with_name(f"{self.path.name}.job")


class DurableJob:
    """An opened job. `pending` gives what is left, `keep` takes answers, `publish` writes the output.

    Whatever the disk refuses becomes InsufficientStorageError; what was kept before stays kept.
    """

    def __init__(self, job: Job, target: Target, journal: Journal, *, retries_failed: bool) -> None:
        self.seed: int = journal.header["seed"]
        self._job = job
        self._target = target
        self._journal = journal
        self._answers = AnswerFolder(target.path) if target.is_folder else None
        self._settled = {
            row_id for row_id, entry in journal.entries.items() if not (retries_failed and entry.is_failure)
        }
        self.num_kept = len(self._settled)

    @property
    def num_failed(self) -> int:
        """Rows whose latest result is a failure."""
        return sum(entry.is_failure for entry in self._journal.entries.values())

    @property
    def num_answered(self) -> int:
        return len(self._journal.entries)

    def pending(self) -> Iterator[Row]:
        """Rows to answer, in the order of the input."""
        return (row for row in self._job.rows() if self._job.task.row_id(row) not in self._settled)

    def keep(self, row: Row, result: Result, is_failure: bool) -> None:
        with self._storage_errors():
            files = {} if self._answers is None else self._files(row, result)
            self._journal.append(self._job.task.row_id(row), result, is_failure=is_failure, file_names=[*files])
            if self._answers is not None:
                _write_files(self._answers, files)

    def sync(self) -> None:
        """Makes what was kept survive a power cut."""
        with self._storage_errors():
            self._journal.sync()

    def publish(self) -> None:
        """Writes the output in the order of the input. Call it when every row is kept."""
        with self._storage_errors():
            self._journal.sync()
            if self._answers is None:
                publish_lines(self._target.path, (line for line, _ in self._lines()))
                return
            for row in self._job.rows():
                _write_files(self._answers, self._files(row, self._result(row)))
            self._answers.write_failures(line for line, is_failure in self._lines() if is_failure)
            self._answers.sync()

    def _lines(self) -> Iterator[tuple[Mapping[str, Any], bool]]:
        for row in self._job.rows():
            is_failure = self._journal.entries[self._job.task.row_id(row)].is_failure
            yield self._job.task.line(row, self.seed, self._result(row)), is_failure

    def _result(self, row: Row) -> Result:
        return self._journal.read(self._job.task.row_id(row))

    def _files(self, row: Row, result: Result) -> dict[str, str]:
        """Texts by file name; none of a failure."""
        texts = answer_texts(result)
        return {} if texts is None else dict(zip(self._job.file_names(row, len(texts)), texts, strict=True))

    def _storage_errors(self) -> Any:
        kept = f"{self.num_answered} of {self._job.num_rows} rows are kept, the same command goes on from there"
        return storage_errors(repr(str(self._target.path)), f"and start again: {kept}")


def _write_files(folder: AnswerFolder, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        folder.write(name, text)


@contextmanager
def open_durable(
    job: Job, target: Target, seed: int | None, *, restart: bool = False, retries_failed: bool = False
) -> Iterator[DurableJob]:
    """Begins a job or goes on with it, holding its lock. Without a seed a new job draws one, an old one keeps its own.

    Raises ConflictError when another process works on it, InvalidRequestError when it was begun otherwise or when its
    output would replace something else, ModelFileError for a damaged journal, InsufficientStorageError.
    """
    folder = target.job_folder
    with ExitStack() as stack:
        with storage_errors(repr(str(target.path)), "and start again"):
            stack.enter_context(locked(folder))
            if restart:
                _drop(target)
            elif not has_journal(folder):
                _refuse_to_replace(job, target)
            journal = stack.enter_context(_opened_journal(job, target, seed))
        durable = DurableJob(job, target, journal, retries_failed=retries_failed)
        try:
            yield durable
        except BaseException:
            if not journal.entries:
                discard(folder)
            raise
        durable.sync()


def _opened_journal(job: Job, target: Target, seed: int | None) -> Journal:
    """The job's journal, which is begun where there is none, and anew where one of another job holds no answers."""
    folder = target.job_folder
    if has_journal(folder):
        journal = Journal(folder)
        expected = job.header(journal.header["seed"] if seed is None else seed)
        try:
            require_same(journal.header, expected, folder, len(journal.entries))
        except InvalidRequestError:
            journal.close()
            if journal.entries or journal.header.get("version") != expected["version"]:
                raise
            _refuse_to_replace(job, target)
        else:
            return journal
    Journal.create(folder, job.header(secrets.randbits(63) if seed is None else seed))
    return Journal(folder)


def _drop(target: Target) -> None:
    """Takes away what a job has answered: the files it wrote, and last the journal that names them."""
    if target.is_folder and has_journal(target.job_folder):
        AnswerFolder(target.path).remove(_own_files(target))
    discard(target.job_folder)


def _own_files(target: Target) -> list[str]:
    try:
        with Journal(target.job_folder) as journal:
            return list(journal.file_names())
    except (KeyError, ModelFileError) as error:
        reason = "another version of tuili began it" if isinstance(error, KeyError) else "its journal is damaged"
        raise InvalidRequestError(
            f"the job in {str(target.job_folder)!r} cannot be dropped: {reason}, so which files in "
            f"{str(target.path)!r} are its own is not known. Remove both yourself, or name another folder",
            param="restart",
        ) from error


def _refuse_to_replace(job: Job, target: Target) -> None:
    if target.is_folder:
        for name in _names(job):
            if (target.path / name).exists():
                raise InvalidRequestError(
                    f"the file {name!r} is there already, and no job of ours wrote it: name another folder, or replace "
                    "what is there with --restart",
                    param="output_dir",
                )
    elif target.path.exists():
        raise InvalidRequestError(
            f"{str(target.path)!r} is there already, and no job of ours wrote it: name another, or replace it "
            "with --restart",
            param="output",
        )


def _names(job: Job) -> Iterator[str]:
    """Every file the job may write or remove in its folder."""
    num_answers = job.settings.sampling.get("n") or 1
    yield FAILED_NAME
    for row in job.rows():
        yield from job.file_names(row, num_answers)
