"""The commands of a chat: each a function of the chat and the text behind its name, with a line of help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuili.cli.chat import Chat
from tuili.cli.sampling_options import parse_value, sampling_params
from tuili.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """`run` returns whether the chat goes on."""

    usage: str
    help: str
    run: Callable[[Chat, str], bool]


def run_chat_command(chat: Chat, entry: str) -> bool:
    """Runs "/name argument". Raises InvalidRequestError for a name that is none, or a wrong argument."""
    name, _, argument = entry[1:].partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        known = ", ".join(f"/{known}" for known in COMMANDS)
        raise InvalidRequestError(f"no command {'/' + name!a:.80}: there are {known}")
    return command.run(chat, argument.strip())


def _help(chat: Chat, _: str) -> bool:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        chat.out.write(f"{command.usage.ljust(width)}  {command.help}\n")
    chat.out.write('"""'.ljust(width) + "  begins and ends a message of several lines\n")
    return True


def _clear(chat: Chat, _: str) -> bool:
    chat.conversation.messages.clear()
    chat.out.write("history cleared\n")
    return True


def _system(chat: Chat, text: str) -> bool:
    chat.conversation.system = text or None
    chat.out.write("system text set\n" if text else "system text removed\n")
    return True


def _set(chat: Chat, argument: str) -> bool:
    """Checks the whole combination before it takes effect; the value "default" takes an option back."""
    name, _, text = argument.partition(" ")
    name, text = name.removeprefix("--").replace("-", "_"), text.strip()
    if not name or not text:
        raise InvalidRequestError("/set takes a parameter and a value, as in: /set temperature 0.7")
    wanted = {key: value for key, value in chat.conversation.sampling.items() if key != name}
    if text != "default":
        wanted[name] = parse_value(name, text)
    sampling_params(chat.pipeline.default_sampling, wanted)
    chat.conversation.sampling = wanted
    chat.out.write(f"{name} is {text}\n")
    return True


def _show(chat: Chat, _: str) -> bool:
    conversation, pipeline = chat.conversation, chat.pipeline
    settings = ", ".join(f"{name}={value}" for name, value in conversation.sampling.items()) or "the model's defaults"
    chat.out.write(
        f"model     {pipeline.name} ({pipeline.spec.family}, context {pipeline.max_model_len} tokens)\n"
        f"sampling  {settings}\n"
        f"system    {conversation.system or '-'}\n"
        f"history   {len(conversation.messages)} messages\n"
    )
    return True


def _save(chat: Chat, argument: str) -> bool:
    chat.conversation.save(_path(argument, "/save"), chat.pipeline.name)
    chat.out.write(f"saved {len(chat.conversation.messages)} messages\n")
    return True


def _load(chat: Chat, argument: str) -> bool:
    chat.conversation.load(_path(argument, "/load"))
    chat.out.write(f"loaded {len(chat.conversation.messages)} messages\n")
    return True


def _bye(_: Chat, __: str) -> bool:
    return False


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise InvalidRequestError(f"{command} takes the name of a file")
    return Path(argument).expanduser()


COMMANDS: dict[str, ChatCommand] = {
    "clear": ChatCommand("/clear", "forget the messages so far", _clear),
    "system": ChatCommand("/system TEXT", "set the system text; none removes it", _system),
    "set": ChatCommand("/set PARAM VALUE", "set a sampling parameter; the value default takes it back", _set),
    "show": ChatCommand("/show", "show model, settings and size of the history", _show),
    "save": ChatCommand("/save FILE", "write the conversation to a file", _save),
    "load": ChatCommand("/load FILE", "continue a saved conversation", _load),
    "help": ChatCommand("/help", "show this", _help),
    "bye": ChatCommand("/bye", "end the chat", _bye),
}
