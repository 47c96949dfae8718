"""What `/set` of a chat changes: sampling parameters, system text, template, and how the chat behaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuili.cli.chat.chat import Chat
from tuili.cli.chat.line_reader import keep_history
from tuili.cli.refusals import refuse_format
from tuili.cli.sampling_options import parse_value, sampling_params
from tuili.errors import InvalidRequestError
from tuili.ollama_terms import ALL_FIELDS, WITHOUT_EFFECT, read_options

_MAX_TEMPLATE_BYTES = 1 << 20


def change_setting(chat: Chat, argument: str) -> None:
    """Runs "NAME [VALUE]"; a name that is no setting is a sampling parameter. Raises InvalidRequestError."""
    name, _, text = argument.partition(" ")
    setting = SETTINGS.get(name)
    if setting is None:
        set_parameter(chat, argument)
    else:
        setting(chat, text.strip())


def set_parameter(chat: Chat, argument: str) -> None:
    """Checks the whole combination before it takes effect; the value "default" takes an option back."""
    name, _, text = argument.partition(" ")
    name, text = name.removeprefix("--").replace("-", "_"), text.strip()
    if not name or not text:
        raise InvalidRequestError("/set takes a parameter and a value, as in: /set temperature 0.7")
    field = ALL_FIELDS.get(name, name)  # Ollama's names, too
    wanted = {key: value for key, value in chat.conversation.sampling.items() if key != field}
    if text != "default":
        wanted[field] = _value(name, field, text)
    sampling_params(chat.pipeline.default_sampling, wanted)
    chat.conversation.sampling = wanted
    chat.out.write(f"{name} is {text}\n")


def _value(name: str, field: str, text: str) -> Any:
    """Of a sampling parameter under its own name or Ollama's."""
    if name == "num_ctx":
        raise InvalidRequestError("num_ctx is set as the model is loaded: tuili run --max-model-len", param=name)
    if name in WITHOUT_EFFECT or name == "num_keep":
        raise InvalidRequestError(f"{name} has no effect here", param=name)
    value = parse_value(field, text)
    return read_options({name: value}).sampling[field] if name == "num_predict" else value


def set_system(chat: Chat, text: str) -> None:
    """No text removes it; quotes around all of it are not part of it."""
    if len(text) > 1 and text.startswith('"') and text.endswith('"') and '"' not in text[1:-1]:
        text = text[1:-1]
    chat.conversation.system = text or None
    removed = "removed" if chat.pipeline.preamble.system is None else "is the Modelfile's again"
    chat.out.write("system text set\n" if text else f"system text {removed}\n")


def _set_template(chat: Chat, text: str) -> None:
    from tuili.text.chat_template import ChatTemplate

    if text in ("", "default"):
        chat.template = None
        chat.out.write("template is the model's\n")
        return
    try:
        data = Path(text).expanduser().read_bytes()
        source = data.decode() if len(data) <= _MAX_TEMPLATE_BYTES else None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InvalidRequestError(f"cannot read the template {text!a:.200}: {reason}") from error
    if source is None:
        raise InvalidRequestError(f"the template {text!a:.200} has more than {_MAX_TEMPLATE_BYTES} bytes")
    ChatTemplate(source, {})  # says what is wrong with it
    chat.template = source
    chat.out.write("template set\n")


def _set_think(value: bool) -> Callable[[Chat, str], None]:
    def run(chat: Chat, _: str) -> None:
        chat.conversation.template_args["enable_thinking"] = value
        chat.out.write(f"thinking is {'asked for' if value else 'asked not to be done'}\n")

    return run


def _set_verbose(value: bool) -> Callable[[Chat, str], None]:
    def run(chat: Chat, _: str) -> None:
        chat.is_verbose = value
        chat.out.write(f"timings are {'shown' if value else 'not shown'}\n")

    return run


def _set_markdown(value: bool) -> Callable[[Chat, str], None]:
    def run(chat: Chat, _: str) -> None:
        chat.is_markdown = value
        chat.out.write(f"markdown is {'rendered' if value else 'shown as it is'}\n")

    return run


def _set_history(value: bool) -> Callable[[Chat, str], None]:
    def run(chat: Chat, _: str) -> None:
        keep_history(value)
        chat.out.write(f"lines are {'kept' if value else 'not kept'} in the history\n")

    return run


def _refuse_format(_: Chat, __: str) -> None:
    refuse_format()


SETTINGS: dict[str, Callable[[Chat, str], None]] = {
    "parameter": set_parameter,
    "system": set_system,
    "template": _set_template,
    "think": _set_think(True),
    "nothink": _set_think(False),
    "verbose": _set_verbose(True),
    "quiet": _set_verbose(False),
    "markdown": _set_markdown(True),
    "nomarkdown": _set_markdown(False),
    "history": _set_history(True),
    "nohistory": _set_history(False),
    "format": _refuse_format,
}
