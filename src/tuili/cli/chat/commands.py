"""The commands of a chat: each a function of the chat and the text behind its name, with a line of help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuili.cli.chat.chat import Chat
from tuili.cli.chat.settings import SETTINGS, change_setting, set_system
from tuili.cli.chat.views import VIEWS, show
from tuili.cli.refusals import refuse_picture, refuse_pictures
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
    command = COMMANDS.get(_ALIASES.get(name, name))
    if command is None:
        refuse_pictures(entry)
        known = ", ".join(f"/{known}" for known in COMMANDS)
        raise InvalidRequestError(
            f"no command {'/' + name!a:.80}: there are {known}; // sends a message that begins with /"
        )
    return command.run(chat, argument.strip())


def _help(chat: Chat, _: str) -> bool:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        chat.out.write(f"{command.usage.ljust(width)}  {command.help}\n")
    for key, meaning in _KEYS.items():
        chat.out.write(f"{key.ljust(width)}  {meaning}\n")
    return True


def _clear(chat: Chat, _: str) -> bool:
    chat.conversation.messages.clear()
    chat.out.write("history cleared\n")
    return True


def _system(chat: Chat, text: str) -> bool:
    set_system(chat, text)
    return True


def _set(chat: Chat, argument: str) -> bool:
    change_setting(chat, argument)
    return True


def _show(chat: Chat, what: str) -> bool:
    show(chat, what)
    return True


def _image(_: Chat, path: str) -> bool:
    refuse_picture(path or "no file")


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
    "show": ChatCommand("/show [WHAT]", f"show one of {', '.join(VIEWS)}", _show),
    "save": ChatCommand("/save FILE", "write the conversation to a file", _save),
    "load": ChatCommand("/load FILE", "continue a saved conversation", _load),
    "image": ChatCommand("/image FILE", "refused: no model here sees", _image),
    "help": ChatCommand("/help", "show this", _help),
    "bye": ChatCommand("/bye", "end the chat", _bye),
}
_ALIASES = {"?": "help", "exit": "bye", "quit": "bye"}
_KEYS = {
    "/set SETTING": f"or one of {', '.join(SETTINGS)}",
    '"""': "begins and ends a message of several lines; so does \\ at a line's end go on in the next",
    "//...": "a message that begins with /",
    "Ctrl-C": "stops an answer and keeps the chat; twice at the prompt ends it, as Ctrl-D does",
}
