"""The chat in a real terminal: history, commands, several lines, Ctrl-C, Ctrl-D."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.terminal import CTRL_C, CTRL_D, Terminal, in_terminal

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from unittest import mock
from support.fake_pipeline import FakePipeline
from tuili.cli.main import main

fake = FakePipeline()
with mock.patch("tuili.runtime.loading.open_model", lambda *_: fake):
    code = main(["run", "m.gguf", *sys.argv[1:]])
for request in fake.requests:
    print("asked", [message["content"] for message in request.messages], request.sampling.temperature)
print("closed", fake.is_closed, "aborted", fake.num_aborted)
sys.exit(code)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    return tmp_path


@pytest.fixture
def chat(folder: Path) -> Iterator[Terminal]:
    environment = {
        "TUILI_HOME": str(folder / "home"),
        "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'src'}",
        "TERM": "dumb",
        "NO_COLOR": "1",
    }
    with in_terminal([sys.executable, "-c", PROGRAM], folder, environment) as terminal:
        terminal.wait_for(">>> ")
        yield terminal


def say(chat: Terminal, text: str, expected: str) -> None:
    """Types a line; what it brings must come before the next prompt."""
    chat.type(f"{text}\n")
    seen = chat.wait_for("\n>>> ")
    assert expected in seen.split("\n", 1)[1], seen


def ended(chat: Terminal, code: int = 0) -> str:
    found, rest = chat.finish()
    assert found == code, rest
    return rest.replace("\r\n", "\n")


def test_answers_come_with_the_history(chat: Terminal) -> None:
    say(chat, "one", "echo one")
    say(chat, "two", "echo two")
    chat.type("/bye\n")
    rest = ended(chat)
    assert "asked ['one'] 1.0\n" in rest
    assert "asked ['one', 'echo one', 'two'] 1.0\n" in rest
    assert "closed True aborted 0" in rest


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(chat: Terminal) -> None:
    chat.type("hang\n")
    chat.wait_for("echo")
    chat.type(CTRL_C)
    chat.wait_for(">>> ")
    say(chat, "still there", "echo still there")
    chat.type(CTRL_D)
    rest = ended(chat)
    assert "asked ['hang', 'echo', 'still there'] 1.0\n" in rest
    assert "aborted 1" in rest


def test_ctrl_c_at_the_prompt_clears_the_line(chat: Terminal) -> None:
    chat.type("half a li")
    chat.wait_for("half a li")
    chat.type(CTRL_C)
    chat.wait_for(">>> ")
    chat.type(CTRL_D)
    assert "asked" not in ended(chat)


def test_a_failed_message_is_not_remembered(chat: Terminal) -> None:
    say(chat, "too long", "error: prompt has 100 tokens, the context holds 99")
    say(chat, "fail", "error: the engine is gone")
    say(chat, "fine", "echo fine")
    chat.type("/bye\n")
    assert "asked ['fine'] 1.0\n" in ended(chat)


def test_several_lines_between_quotes(chat: Terminal) -> None:
    chat.type('"""first\n')
    chat.wait_for("... ")
    chat.type("  second\n")
    chat.wait_for("... ")
    say(chat, 'third"""', "echo first second third")
    say(chat, '"""all in one"""', "echo all in one")
    chat.type(CTRL_D)
    assert "asked ['first\\n  second\\nthird'] 1.0\n" in ended(chat)


def test_commands_change_what_is_asked(chat: Terminal) -> None:
    say(chat, "/system Be brief.", "system text set")
    say(chat, "/set temperature 0.5", "temperature is 0.5")
    say(chat, "/set --top-k 7", "top_k is 7")
    say(chat, "one", "echo one")
    say(chat, "/show", "sampling  temperature=0.5, top_k=7")
    say(chat, "/clear", "history cleared")
    say(chat, "/system", "system text removed")
    say(chat, "/set temperature default", "temperature is default")
    say(chat, "two", "echo two")
    chat.type("/bye\n")
    rest = ended(chat)
    assert "asked ['Be brief.', 'one'] 0.5\n" in rest
    assert "asked ['two'] 1.0\n" in rest


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "/nonsense",
            "error: no command '/nonsense': there are /clear, /system, /set, /show, /save, /load",
        ),
        ("/set", "error: /set takes a parameter and a value, as in: /set temperature 0.7"),
        ("/set colour red", "error: no parameter 'colour': there are temperature, top_p"),
        ("/set top_k many", "error: top_k must be an integer, got 'many'"),
        ("/set top_p 2", "error: top_p must be in (0, 1], got 2.0"),
        ("/set ignore_eos maybe", "error: ignore_eos must be true or false, got 'maybe'"),
        ("/load none.json", "error: cannot read 'none.json': No such file or directory"),
        ("/save", "error: /save takes the name of a file"),
        ("/save /no/such/folder/x", "error: cannot write '/no/such/folder/x': No such file or directory"),
    ],
)
def test_wrong_commands_are_explained(folder: Path, command: str, message: str) -> None:
    from support.fake_pipeline import FakePipeline
    from tuili.cli.chat import Chat
    from tuili.cli.chat_commands import run_chat_command
    from tuili.cli.conversation import Conversation
    from tuili.errors import InvalidRequestError

    chat = Chat(FakePipeline(), Conversation(), sys.stdout)
    with pytest.raises(InvalidRequestError) as info:
        run_chat_command(chat, command)
    assert f"error: {info.value}".startswith(message)


def test_help_lists_every_command(chat: Terminal) -> None:
    say(chat, "/help", "/set PARAM VALUE  set a sampling parameter")
    chat.type(CTRL_D)
    ended(chat)


def test_a_conversation_is_saved_and_continued(folder: Path, chat: Terminal) -> None:
    say(chat, "/system Be brief.", "system text set")
    say(chat, "/set seed 3", "seed is 3")
    say(chat, "one", "echo one")
    say(chat, "/save talk.json", "saved 2 messages")
    say(chat, "/clear", "history cleared")
    say(chat, "/system", "system text removed")
    say(chat, "/load talk.json", "loaded 2 messages")
    say(chat, "two", "echo two")
    chat.type("/bye\n")
    assert "asked ['Be brief.', 'one', 'echo one', 'two'] 1.0\n" in ended(chat)
    saved = json.loads((folder / "talk.json").read_text())
    assert (saved["model"], saved["sampling"], len(saved["messages"])) == ("fake", {"seed": 3}, 2)
    assert "/save talk.json" in (folder / "home" / "chat_history").read_text()
