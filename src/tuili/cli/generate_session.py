"""What `tuili generate` does: check the rows, find the job's journal, load the model if rows are left, answer them."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuili.checks import check_optional_text, shown
from tuili.cli.generate_display import showing, summary
from tuili.cli.loading_settings import LoadingSettings
from tuili.cli.run_session import check_raw, fetch_if_missing
from tuili.cli.sampling_options import sampling_params, sampling_told
from tuili.cli.terminal import note
from tuili.config import store_dir
from tuili.errors import InvalidRequestError
from tuili.runtime.jobs.durable_job import DurableJob, Target, open_durable
from tuili.runtime.jobs.job import Job, JobSettings, open_job
from tuili.runtime.jobs.model_identity import model_digest
from tuili.runtime.jobs.outputs import OrderedStream
from tuili.runtime.jobs.rows import CountedRows, FileRows, Row, RowSource, format_of
from tuili.runtime.jobs.runner import JobProgress, Keep, RowRunner
from tuili.runtime.jobs.settings import ModelSettings, PromptSettings
from tuili.runtime.jobs.task import Result
from tuili.store.store import Store

if TYPE_CHECKING:
    from tuili.runtime.loading.pipeline import Pipeline

SOME_FAILED = 3
_STDIN = "-"
_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{\s*[\"}]")
_MAX_LOOK_BYTES = 1 << 16
_MAX_COUNT = 10_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateSettings(LoadingSettings, PromptSettings):
    """The flags of `generate` other than model and sampling."""

    input: str | None = None
    count: int | None = None
    format: str | None = None
    output: Path | None = None
    output_dir: Path | None = None
    restart: bool = False
    retry_failed: bool = False
    quiet: bool = False
    verbose: bool = False
    max_num_seqs: int = 32

    def target(self) -> Target | None:
        """Where answers go; None is standard output."""
        if self.output_dir is not None:
            return Target(path=self.output_dir, is_folder=True)
        return None if self.output is None else Target(path=self.output, is_folder=False)


def generate(model: str, settings: GenerateSettings, sampling: Mapping[str, Any]) -> int:
    """Everything `tuili generate` does; gives the exit code. Rows and flags are checked before a model is fetched."""
    _check_texts(_job_settings(model, settings, sampling))
    _check(settings, sampling)
    sampling = dict(sampling)
    seed = sampling.pop("seed", None)
    with _source(settings) as source:
        job = open_job(source, _job_settings(model, settings, sampling))
        store = Store(store_dir())
        fetch_if_missing(store, model)
        files = store.resolve(model)
        known = replace(job.settings, model_bytes=files.num_bytes, model_digest=model_digest(files))
        job = replace(job, settings=known)
        if (target := settings.target()) is None:
            return _stream(job, settings, seed)
        with ExitStack() as stack:
            # Before anything is dropped: what is wrong with the model shows when it is loaded.
            pipeline = stack.enter_context(_opened(job, settings)) if settings.restart else None
            durable = stack.enter_context(
                open_durable(job, target, seed, restart=settings.restart, retries_failed=settings.retry_failed)
            )
            return _finish(job, durable, target, settings, pipeline)


def _check(settings: GenerateSettings, sampling: Mapping[str, Any]) -> None:
    sampling_params({}, sampling)
    settings.check(settings.max_num_seqs)
    if (settings.input is None) == (settings.count is None):
        raise InvalidRequestError("give either --input FILE or --count N", param="input")
    if settings.output is not None and settings.output_dir is not None:
        raise InvalidRequestError("give either --output or --output-dir", param="output")
    if settings.output is not None:
        _check_output(settings.output, settings.input)
    if (settings.output_dir is None) != (settings.name is None):
        raise InvalidRequestError("--output-dir and --name 'seed_{i}.txt' go together", param="name")
    if settings.target() is None and (settings.restart or settings.retry_failed):
        raise InvalidRequestError("--restart and --retry-failed need --output or --output-dir", param="restart")
    if settings.raw:
        check_raw(settings.system, settings.think)


def _check_texts(settings: JobSettings) -> None:
    """Bytes of the command line that are no text: neither a tokenizer nor a journal could take them."""
    for name, value in settings.given().items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text:
                check_optional_text(name, text)


def _check_output(output: Path, rows: str | None) -> None:
    if not output.is_file() and (output.exists() or not output.name):
        raise InvalidRequestError(f"output must be a file, and {str(output)!r} is none", param="output")
    is_file = rows not in (None, _STDIN) and output.exists() and Path(str(rows)).exists()
    if is_file and output.samefile(str(rows)):
        raise InvalidRequestError("output must not be the input", param="output")


@contextmanager
def _source(settings: GenerateSettings) -> Iterator[RowSource]:
    """The rows. What comes through a pipe is kept in a file meanwhile, as rows are read more than once."""
    if settings.count is not None:
        if not 1 <= settings.count <= _MAX_COUNT:
            raise InvalidRequestError(f"count must be in [1, {_MAX_COUNT}], got {shown(settings.count)}", param="count")
        if settings.format is not None or settings.id_column is not None:
            raise InvalidRequestError("--count has no columns: format and id_column need --input", param="count")
        yield CountedRows(settings.count)
        return
    assert settings.input is not None
    path = Path(settings.input)
    if settings.input != _STDIN and (path.is_file() or path.is_dir() or not path.exists()):
        yield FileRows(path, settings.format)
        return
    name = "standard input" if settings.input == _STDIN else settings.input
    with ExitStack() as stack:
        pipe = sys.stdin.buffer if settings.input == _STDIN else stack.enter_context(path.open("rb"))
        kept = stack.enter_context(tempfile.NamedTemporaryFile())
        shutil.copyfileobj(pipe, kept)
        kept.flush()
        yield FileRows(Path(kept.name), settings.format or _piped_format(path, Path(kept.name), name), name)


def _piped_format(path: Path, kept: Path, name: str) -> str:
    """What a pipe's name says it holds, else text: objects that were taken for prompts would be answered all the same.

    Raises InvalidRequestError for what begins like an object.
    """
    if (by_ending := format_of(path)) is not None:
        return by_ending
    with kept.open("rb") as file:
        if _OBJECT.match(file.read(_MAX_LOOK_BYTES)):
            raise InvalidRequestError(
                f"{name} begins with a JSON object: say --format jsonl, or --format txt to ask its lines as they are",
                param="format",
            )
    return "txt"


def _job_settings(model: str, settings: GenerateSettings, sampling: Mapping[str, Any]) -> JobSettings:
    given = {f.name: getattr(settings, f.name) for kind in (ModelSettings, PromptSettings) for f in fields(kind)}
    return JobSettings(model=model, model_bytes=0, model_digest="", sampling=sampling, **given)


def _stream(job: Job, settings: GenerateSettings, seed: int | None) -> int:
    """Answers to standard output, without a journal."""
    from secrets import randbits

    job_seed = randbits(63) if seed is None else seed
    stream = OrderedStream(sys.stdout)

    def keep(row: Row, result: Result, _: bool) -> None:
        stream.write(row.index, job.task.line(row, job_seed, result))

    progress = JobProgress(job.num_rows)
    is_quiet = settings.quiet or sys.stdout.isatty()  # a bar would run through the answers
    with _opened(job, settings) as pipeline:
        _run(job, job.rows(), job_seed, pipeline, settings, keep, progress, is_quiet=is_quiet)
    note(f"{summary(progress)}; --seed {job_seed} repeats them")
    return SOME_FAILED if progress.num_failed else 0


def _finish(
    job: Job, durable: DurableJob, target: Target, settings: GenerateSettings, pipeline: Pipeline | None
) -> int:
    """Answers what is left, with a model that is loaded for that unless it is already, and writes the output."""
    progress = JobProgress(job.num_rows, num_kept=durable.num_kept)
    if durable.num_kept:
        note(f"{durable.num_kept} of {job.num_rows} rows are answered already (in {target.job_folder})")
    if durable.num_kept < job.num_rows:
        try:
            with nullcontext(pipeline) if pipeline else _opened(job, settings) as model:
                rows, is_quiet = durable.pending(), settings.quiet
                _run(job, rows, durable.seed, model, settings, durable.keep, progress, is_quiet=is_quiet)
        except KeyboardInterrupt:
            durable.sync()
            note(
                f"stopped: {durable.num_answered} of {job.num_rows} rows are kept; the same command goes on from there"
            )
            raise
        note(f"{summary(progress)}; seed {durable.seed}")
    durable.publish()
    note(f"{job.num_rows} rows are in {target.path}" + _failures(durable.num_failed))
    return SOME_FAILED if durable.num_failed else 0


def _failures(num_failed: int) -> str:
    return f", {num_failed} of them failed: --retry-failed tries them again" if num_failed else ""


@contextmanager
def _opened(job: Job, settings: GenerateSettings) -> Iterator[Pipeline]:
    """The job's model, loaded, and with what the job needs of it."""
    with settings.opened(job.settings.model, settings.max_num_seqs) as pipeline:
        if not pipeline.has_chat_template and not settings.raw:
            if settings.system is not None:
                raise InvalidRequestError("system needs a chat template, and this model has none", param="system")
            note(f"{pipeline.name} has no chat template: completing prompts as they are")
        if settings.verbose:
            note(f"sampling: {sampling_told(pipeline.default_sampling, job.settings.sampling)}")
        yield pipeline


def _run(
    job: Job,
    rows: Iterator[Row],
    seed: int,
    pipeline: Pipeline,
    settings: GenerateSettings,
    keep: Keep,
    progress: JobProgress,
    *,
    is_quiet: bool,
) -> None:
    progress.start()
    with showing(progress, is_quiet=is_quiet, is_verbose=settings.verbose) as show:
        RowRunner(job.task, seed, pipeline, keep, progress, show).run(rows)
