"""What `tuili run` does: find the model and the prompt, load, then answer once or chat."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tuili.checks import shown
from tuili.cli.answer import print_answer, timing_lines
from tuili.cli.chat.conversation import Conversation
from tuili.cli.loading_settings import LoadingSettings
from tuili.cli.model_argument import ModelAndPrompt, split_arguments
from tuili.cli.refusals import refuse_format, refuse_pictures
from tuili.cli.remote.running_server import likely_servers, named_server
from tuili.cli.sampling_options import sampling_line, sampling_params
from tuili.cli.terminal import note
from tuili.config import store_dir
from tuili.errors import AuthenticationError, InvalidRequestError, ModelNotFoundError
from tuili.store.names import is_path_like
from tuili.store.store import Store
from tuili.types import GenerateRequest

if TYPE_CHECKING:
    from tuili.cli.chat_model import ChatModel
    from tuili.cli.remote.remote_model import RemoteModel
    from tuili.cli.remote.server_client import ServerClient

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
    url: str | None = None
    local: bool = False

    @property
    def must_load(self) -> bool:
        """Whether the model has to be loaded here: somebody said so, or how."""
        return self.local or any(getattr(self, f.name) != f.default for f in fields(LoadingSettings))


def run(arguments: Sequence[str], forced_model: str | None, settings: RunSettings, sampling: Mapping[str, Any]) -> None:
    """Everything `tuili run` does; wrong flags are refused before a model is fetched or loaded."""
    if settings.url is not None and settings.must_load:
        raise InvalidRequestError("url has no place with local, or with flags of how to load a model", param="url")
    store = Store(store_dir())
    servers = [] if settings.must_load else _servers(settings.url)
    choice = split_arguments(arguments, forced_model, store, {name for server in servers for name in server.names})
    prompt = joined_prompt(choice.prompt, piped_text())
    _check(prompt, settings, sampling)
    remote = _remote_model(servers, choice, store)
    if remote is not None:
        _run(remote, prompt, settings, sampling, remote)
        return
    fetch_if_missing(store, choice.model)
    with settings.opened(choice.model, _MAX_NUM_SEQS) as pipeline:
        _run(pipeline, prompt, settings, sampling)


@dataclass(frozen=True, slots=True)
class _Server:
    """One that may be asked, and what it has. is_named: somebody said so, and no other will do."""

    client: ServerClient
    names: tuple[str, ...]
    is_named: bool = False


def _servers(url: str | None) -> list[_Server]:
    """The server that is named, else those of ours that run here. Raises what the named one tells."""
    named = named_server(url, None, os.environ)
    if named is not None:
        return [_Server(named, tuple(named.model_names()), is_named=True)]
    found = []
    for client in likely_servers(None, os.environ):
        try:
            found.append(_Server(client, tuple(client.model_names())))
        except AuthenticationError as error:
            note(f"the server at {client.address}: {error}; it is left alone")
    return found


def _remote_model(servers: Sequence[_Server], choice: ModelAndPrompt, store: Store) -> RemoteModel | None:
    """The model on the first server that has it; None: on none.

    Raises ModelNotFoundError when a server that is named has no such model, and what a server tells.
    """
    wanted = {choice.model}
    if not is_path_like(choice.model):
        with suppress(InvalidRequestError):
            wanted.add(store.full_name(choice.model))
    for server in servers:
        found = next((name for name in server.names if name in wanted), None)
        if found is None and server.is_named and choice.is_default:
            found = next(iter(server.names), None)
        if found is not None:
            return _opened(server.client, found)
        if server.is_named:
            raise ModelNotFoundError(
                f"the server at {server.client.address} has no model {shown(choice.model)}; --local runs one here"
            )
    return None


def _opened(client: ServerClient, name: str) -> RemoteModel:
    from tuili.cli.remote.remote_model import open_remote_model  # slow to import

    return open_remote_model(client, name)


def _run(
    model: ChatModel,
    prompt: str | None,
    settings: RunSettings,
    sampling: Mapping[str, Any],
    remote: RemoteModel | None = None,
) -> None:
    if prompt is None:
        _chat(model, settings, sampling, remote)
    else:
        _answer_once(model, prompt, settings, sampling, None if remote is None else remote.place)


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
    """Pulls a model that is neither stored nor a path, or that a Modelfile is made from.

    Raises what resolve and pull raise.
    """
    model = store.base_name(model)
    try:
        store.resolve(model)
    except ModelNotFoundError:
        from tuili.store.names import parse_model_name

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


def _answer_once(
    pipeline: ChatModel, prompt: str, settings: RunSettings, sampling: Mapping[str, Any], place: str | None
) -> None:
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
        lines = [*timing_lines(answer, pipeline, place), sampling_line(pipeline.default_sampling, sampling)]
        sys.stderr.write("".join(f"{line}\n" for line in lines))


def _chat(pipeline: ChatModel, settings: RunSettings, sampling: Mapping[str, Any], remote: RemoteModel | None) -> None:
    from tuili.cli.chat.chat import Chat, run_chat
    from tuili.cli.chat.commands import run_chat_command
    from tuili.cli.chat.line_reader import line_history

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
        place=None if remote is None else remote.place,
        license_text=None if remote is None else remote.license_text,
    )
    with line_history(store_dir() / "chat_history"):
        run_chat(chat, run_chat_command)
