"""What `tuili run` does: find the model and the prompt, load, then answer once or chat."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuili.cli.answer import print_answer, timing_lines
from tuili.cli.conversation import Conversation
from tuili.cli.loading_settings import LoadingSettings
from tuili.cli.model_argument import split_arguments
from tuili.cli.refusals import refuse_format, refuse_pictures
from tuili.cli.sampling_options import sampling_line, sampling_params
from tuili.cli.terminal import note
from tuili.config import store_dir
from tuili.errors import InvalidRequestError, ModelNotFoundError
from tuili.store.store import Store
from tuili.types import GenerateRequest

if TYPE_CHECKING:
    from tuili.runtime.pipeline import Pipeline

_MAX_NUM_SEQS = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings(LoadingSettings):
    """The flags of `run` other than model and sampling."""

    system: str | None = None
    raw: bool = False
    think: bool | None = None
    verbose: bool = False
    markdown: bool = False
    format: str | None = None


def run(arguments: Sequence[str], forced_model: str | None, settings: RunSettings, sampling: Mapping[str, Any]) -> None:
    """Everything `tuili run` does; wrong flags are refused before a model is fetched or loaded."""
    store = Store(store_dir())
    choice = split_arguments(arguments, forced_model, store)
    prompt = joined_prompt(choice.prompt, piped_text())
    _check(prompt, settings, sampling)
    fetch_if_missing(store, choice.model)
    with settings.opened(choice.model, _MAX_NUM_SEQS) as pipeline:
        if prompt is None:
            _chat(pipeline, settings, sampling)
        else:
            _answer_once(pipeline, prompt, settings, sampling)


def piped_text() -> str | None:
    """What is piped in; None at a terminal. Raises InvalidRequestError when it is not UTF-8."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input must be UTF-8 text: byte {error.start} is not") from error


def joined_prompt(given: str | None, piped: str | None) -> str | None:
    """The prompt, then an empty line, then what is piped in; either alone; None asks for a chat.

    Raises InvalidRequestError when there is nothing to answer and nobody to chat with.
    """
    if given is not None and not given.strip():
        raise InvalidRequestError("prompt is empty", param="prompt")
    if piped is None or (not piped.strip() and given is not None):
        return given
    if not piped.strip():
        raise InvalidRequestError("no prompt: give one, pipe text in, or chat from a terminal", param="prompt")
    return piped if given is None else f"{given}\n\n{piped}"


def fetch_if_missing(store: Store, model: str) -> None:
    """Pulls a model that is neither stored nor a path. Raises what resolve and pull raise."""
    try:
        store.resolve(model)
    except ModelNotFoundError:
        from tuili.store.names import is_path_like, parse_model_name

        if is_path_like(model) or not (store.knows(model) or parse_model_name(model).organization):
            raise
        from tuili.cli.pull_display import pull_visibly

        pull_visibly(store, model)


def check_raw(system: str | None, think: bool | None) -> None:
    """Raises InvalidRequestError for what only a template could put into a prompt."""
    if system is not None:
        raise InvalidRequestError("system has no place in a raw prompt: put it into the prompt", param="system")
    if think is not None:
        raise InvalidRequestError("think has no place in a raw prompt: it asks the model's template", param="think")


def _check(prompt: str | None, settings: RunSettings, sampling: Mapping[str, Any]) -> None:
    sampling_params({}, sampling)
    if settings.format is not None:
        refuse_format()
    if prompt is not None:
        refuse_pictures(prompt)
    settings.check(_MAX_NUM_SEQS)
    if settings.raw and prompt is None:
        raise InvalidRequestError("raw needs a prompt: a chat is made of a template", param="raw")
    if settings.raw:
        check_raw(settings.system, settings.think)


def _conversation(settings: RunSettings, sampling: Mapping[str, Any]) -> Conversation:
    template_args = {} if settings.think is None else {"enable_thinking": settings.think}
    return Conversation(system=settings.system, sampling=dict(sampling), template_args=template_args)


def _answer_once(pipeline: Pipeline, prompt: str, settings: RunSettings, sampling: Mapping[str, Any]) -> None:
    conversation = _conversation(settings, sampling)
    is_raw = settings.raw or not pipeline.has_chat_template
    if is_raw and not settings.raw:
        if settings.system is not None:
            raise InvalidRequestError("system needs a chat template, and this model has none", param="system")
        note(f"{pipeline.name} has no chat template: completing the prompt as it is")
    conversation.messages.append({"role": "user", "content": prompt})
    request = GenerateRequest(
        request_id="run-1",
        sampling=sampling_params(pipeline.default_sampling, sampling),
        prompt=prompt if is_raw else None,
        messages=None if is_raw else conversation.prompt_messages(),
        template_args=conversation.template_args,
    )
    answer = print_answer(pipeline.stream(request), sys.stdout, is_markdown=settings.markdown)
    if settings.verbose:
        lines = [*timing_lines(answer, pipeline.load_s), sampling_line(pipeline.default_sampling, sampling)]
        sys.stderr.write("".join(f"{line}\n" for line in lines))


def _chat(pipeline: Pipeline, settings: RunSettings, sampling: Mapping[str, Any]) -> None:
    from tuili.cli.chat import Chat, run_chat
    from tuili.cli.chat_commands import run_chat_command
    from tuili.cli.line_reader import line_history

    if not pipeline.has_chat_template:
        raise InvalidRequestError(
            f"{pipeline.name} has no chat template, so there is no chat with it: give a prompt to complete",
            param="prompt",
        )
    chat = Chat(
        pipeline,
        _conversation(settings, sampling),
        sys.stdout,
        is_verbose=settings.verbose,
        is_markdown=settings.markdown,
    )
    with line_history(store_dir() / "chat_history"):
        run_chat(chat, run_chat_command)
