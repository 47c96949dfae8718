"""What `/show` of a chat prints: of the model and of the conversation."""

from __future__ import annotations

from collections.abc import Callable

from tuili.cli.chat.chat import Chat
from tuili.cli.chat.line_reader import PROMPT
from tuili.cli.sampling_options import SAMPLING_NAMES, sampling_params
from tuili.cli.terminal import printable
from tuili.config import store_dir
from tuili.errors import InvalidRequestError, ModelNotFoundError
from tuili.store.store import Store

_MODELFILE = "from the Modelfile"


def show(chat: Chat, what: str) -> None:
    """Prints one of VIEWS without control characters; "" is the overview. Raises InvalidRequestError for another."""
    view = VIEWS.get(what or "info")
    if view is None:
        raise InvalidRequestError(f"/show takes one of {', '.join(VIEWS)}, got {what!a:.80}")
    chat.out.write(printable(view(chat)).rstrip("\n") + "\n")


def _info(chat: Chat) -> str:
    conversation, pipeline = chat.conversation, chat.pipeline
    settings = ", ".join(f"{name}={value}" for name, value in conversation.sampling.items()) or "the model's defaults"
    place = "" if chat.place is None else f" at {chat.place}"
    return (
        f"model     {pipeline.name}{place} ({pipeline.spec.family}, context {pipeline.max_model_len} tokens)\n"
        f"sampling  {settings}\n"
        f"system    {conversation.system or _own(pipeline.preamble.system) or '-'}\n"
        f"history   {len(conversation.messages)} messages"
    )


def _parameters(chat: Chat) -> str:
    """What `/set` can change as it takes effect, and where it comes from if that is not the library."""
    from tuili.runtime.front.sampling_defaults import LIBRARY, REQUEST, effective_sampling

    given, defaults = chat.conversation.sampling, chat.pipeline.default_sampling
    said = {LIBRARY: "", REQUEST: "set here"}
    rows = [
        (name, _value(value), said.get(source, source))
        for name, value, source in effective_sampling(sampling_params(defaults, given), defaults, given)
        if name in SAMPLING_NAMES
    ]
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name.ljust(names)}  {value.ljust(values)}  {source}".rstrip() for name, value, source in rows)


def _value(value: object) -> str:
    """As `/set` takes it, where that is one word."""
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple | list):
        return ", ".join(map(repr, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _messages(chat: Chat) -> str:
    """Each as it stood in the terminal."""
    lines = (
        f"{PROMPT if message['role'] == 'user' else ''}{message['content']}" for message in chat.conversation.messages
    )
    before = (f"({_MODELFILE}, {message['role']}) {message['content']}" for message in chat.pipeline.preamble.messages)
    return "\n".join((*before, *lines)) or "no messages"


def _system(chat: Chat) -> str:
    return chat.conversation.system or _own(chat.pipeline.preamble.system) or "no system text"


def _own(text: str | None) -> str | None:
    """What the model begins with, and where that is from."""
    return None if text is None else f"{text} ({_MODELFILE})"


def _template(chat: Chat) -> str:
    model = chat.pipeline.chat_template
    return chat.template or ("no template" if model is None else model.source)


def _license(chat: Chat) -> str:
    from tuili.weights.checkpoint import open_checkpoint

    if chat.license_text is not None:
        return chat.license_text or "not stated"
    try:
        files = Store(store_dir()).resolve(chat.pipeline.name)
    except ModelNotFoundError:
        return "not stated"
    checkpoint = open_checkpoint(files.path)
    own = None if files.modelfile is None else files.modelfile.license
    return own or checkpoint.license_text or files.license or checkpoint.license or "not stated"


VIEWS: dict[str, Callable[[Chat], str]] = {
    "info": _info,
    "parameters": _parameters,
    "system": _system,
    "messages": _messages,
    "template": _template,
    "license": _license,
}
