"""The chat in a real terminal: history, commands, several lines, Ctrl-C, Ctrl-D."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.fake_pipeline import FakePipeline
from support.terminal import CTRL_C, CTRL_D, Terminal, in_terminal
from tuili.cli.answer import print_answer
from tuili.cli.chat.chat import Chat
from tuili.cli.chat.commands import run_chat_command
from tuili.cli.chat.conversation import Conversation
from tuili.cli.sampling_options import SAMPLING_NAMES
from tuili.errors import InvalidRequestError
from tuili.runtime.front.sampling_defaults import SamplingDefaults
from tuili.types import Event, TextDelta

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from unittest import mock
from support.fake_pipeline import FakePipeline
from tuili.cli.main import main

fake = FakePipeline()
with mock.patch("tuili.runtime.loading.loading.open_model", lambda *_: fake):
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


def started(folder: Path, *arguments: str, **environment: str) -> AbstractContextManager[Terminal]:
    """PROGRAM in a terminal of its own."""
    paths = {"TUILI_HOME": str(folder / "home"), "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'src'}"}
    return in_terminal([sys.executable, "-c", PROGRAM, *arguments], folder, paths | environment)


@pytest.fixture
def chat(folder: Path) -> Iterator[Terminal]:
    with started(folder, TERM="dumb", NO_COLOR="1") as terminal:
        terminal.wait_for(">>> ")
        yield terminal


@pytest.fixture
def rich_chat(folder: Path) -> Iterator[Terminal]:
    """A terminal that shows colours and marks what is pasted."""
    with started(folder, "--markdown", TERM="xterm-256color", NO_COLOR="", LC_ALL="C.UTF-8") as terminal:
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


@pytest.mark.parametrize(("pieces", "shown"), [([], "\n"), (["a"], "a\n"), (["a\n"], "a\n\n")])
def test_the_prompt_has_a_line_of_its_own_behind_ctrl_c(pieces: list[str], shown: str) -> None:
    """The terminal shows the key itself, wherever the answer was."""

    def events() -> Iterator[Event]:
        for text in pieces:
            yield TextDelta(index=0, text=text, token_ids=(1,))
        raise KeyboardInterrupt

    out = io.StringIO()
    answer = print_answer(events(), out, is_interruptible=True)
    assert (out.getvalue(), answer.done, answer.text) == (shown, None, "".join(pieces))


def test_ctrl_c_at_the_prompt_clears_the_line(chat: Terminal) -> None:
    chat.type("half a li")
    chat.wait_for("half a li")
    chat.interrupt(">>> ")
    chat.type(CTRL_D)
    assert "asked" not in ended(chat)


def test_ctrl_c_twice_at_the_prompt_ends_the_chat(chat: Terminal) -> None:
    chat.interrupt("Ctrl-C again ends the chat, and so does Ctrl-D")
    chat.wait_for(">>> ")
    say(chat, "one", "echo one")
    chat.interrupt(">>> ")
    chat.interrupt("closed True")
    ended(chat)


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


def test_a_line_that_ends_in_a_backslash_goes_on(chat: Terminal) -> None:
    chat.type("first\\\n")
    chat.wait_for("... ")
    say(chat, "second", "echo first second")
    say(chat, "a backslash \\\\", "echo a backslash")
    chat.type(CTRL_D)
    rest = ended(chat)
    assert "asked ['first\\nsecond'] 1.0\n" in rest


def test_what_is_pasted_is_one_message(rich_chat: Terminal) -> None:
    rich_chat.type("\x1b[200~first\nsecond\x1b[201~")
    rich_chat.wait_for("second")
    rich_chat.type("\n")
    rich_chat.wait_for("echo first second")
    rich_chat.wait_for(">>> ")
    rich_chat.type(CTRL_D)
    assert "asked ['first\\nsecond'] 1.0\n" in ended(rich_chat)


def test_markdown_is_rendered_and_remembered_as_written(rich_chat: Terminal) -> None:
    rich_chat.type("**你好** and `code`\n")
    rich_chat.wait_for("echo \x1b[1m你好\x1b[0m and ")
    rich_chat.wait_for(">>> ")
    rich_chat.type("/set nomarkdown\n")
    rich_chat.wait_for("markdown is shown as it is")
    rich_chat.type("**plain**\n")
    rich_chat.wait_for("echo **plain**")
    rich_chat.wait_for(">>> ")
    rich_chat.type(CTRL_D)
    assert "'echo **你好** and `code`'" in ended(rich_chat)


def test_settings_change_the_chat(folder: Path, chat: Terminal) -> None:
    (folder / "t.jinja").write_text("{{ messages[0].content }}")
    say(chat, "/set parameter temperature 0.5", "temperature is 0.5")
    say(chat, "/set system Be brief.", "system text set")
    say(chat, "/set verbose", "timings are shown")
    say(chat, "one", "generation  2 tokens, 4.0 tokens/s")
    say(chat, "/set quiet", "timings are not shown")
    say(chat, "/set nothink", "thinking is asked not to be done")
    say(chat, "/set template t.jinja", "template set")
    say(chat, "/show template", "{{ messages[0].content }}")
    say(chat, "/set template default", "template is the model's")
    say(chat, "/show template", "{{ messages }}")
    say(chat, "/show system", "Be brief.")
    say(chat, "/show parameters", "  set here\r\n")
    say(chat, "/set nohistory", "lines are not kept in the history")
    say(chat, "secret", "echo secret")
    say(chat, "/?", "/show [WHAT]")
    chat.type("/exit\n")
    assert "asked ['Be brief.', 'one'] 0.5\n" in ended(chat)
    history = folder / "home" / "chat_history"
    assert "/set nohistory" in history.read_text()
    assert "secret" not in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


def test_pictures_and_structure_are_refused(folder: Path, chat: Terminal) -> None:
    (folder / "a cat.PNG").write_bytes(b"")
    refusal = "error: images cannot be read yet, found "
    say(chat, "what is in 'a cat.PNG'?", f"{refusal}'a cat.PNG'")
    say(chat, "a\\ cat.PNG what is it", f"{refusal}'a cat.PNG'")
    say(chat, f"{folder}/a\\ cat.PNG", refusal)
    say(chat, "/image a cat.PNG", refusal)
    say(chat, "what does none.png mean", "echo what does none.png mean")
    say(chat, "/set format json", "error: format: structured output is not there yet")
    chat.type(CTRL_D)
    ended(chat)


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
        (
            "/show nothing",
            "error: /show takes one of info, parameters, system, messages, template, license, got",
        ),
        ("/set template none", "error: cannot read the template 'none': No such file or directory"),
        ("/set colour red", "error: no parameter 'colour': there are temperature, top_p"),
        ("/set top_k many", "error: top_k must be an integer, got 'many'"),
        ("/set top_p 2", "error: top_p must be in (0, 1], got 2.0"),
        ("/set ignore_eos maybe", "error: ignore_eos must be true or false, got 'maybe'"),
        ("/set parameter num_predict 0", "error: num_predict must be an integer >= 1, or -1 or -2 for no limit"),
        ("/set parameter num_ctx 4096", "error: num_ctx is set as the model is loaded: tuili run --max-model-len"),
        ("/set parameter num_gpu 1", "error: num_gpu has no effect here"),
        ("/load none.json", "error: cannot read 'none.json': No such file or directory"),
        ("/save", "error: /save takes the name of a file"),
        ("/save /no/such/folder/x", "error: cannot write '/no/such/folder/x': No such file or directory"),
    ],
)
def test_wrong_commands_are_explained(folder: Path, command: str, message: str) -> None:
    chat = Chat(FakePipeline(), Conversation(), sys.stdout)
    with pytest.raises(InvalidRequestError) as info:
        run_chat_command(chat, command)
    assert f"error: {info.value}".startswith(message)


def test_parameters_have_ollama_s_names_too() -> None:
    chat = Chat(FakePipeline(), Conversation(), io.StringIO())
    for typed, sampling in (
        ("num_predict 7", {"max_tokens": 7}),
        ("repeat_penalty 1.2", {"max_tokens": 7, "repetition_penalty": 1.2}),
        ("repeat_penalty default", {"max_tokens": 7}),
        ("num_predict -1", {"max_tokens": None}),
        ("num_predict default", {}),
    ):
        run_chat_command(chat, f"/set parameter {typed}")
        assert chat.conversation.sampling == sampling


def shown(pipeline: FakePipeline, what: str, **sampling: object) -> str:
    out = io.StringIO()
    run_chat_command(Chat(pipeline, Conversation(sampling=sampling), out), f"/show {what}")
    return out.getvalue()


def test_a_models_template_cannot_paint_the_terminal() -> None:
    template = SimpleNamespace(source="{# \x1b]0;title\x07\x9b2J #}\n\tend")
    assert shown(FakePipeline(chat_template=template), "template") == "{# ]0;title2J #}\n\tend\n"


def test_parameters_are_those_of_set_with_where_each_is_from() -> None:
    layers = (("catalogue", {"top_p": 0.9}), ("generation_config", {"temperature": 0.6, "top_k": 20}))
    pipeline = FakePipeline(default_sampling=SamplingDefaults(layers))  # type: ignore[arg-type]
    rows = {name: rest for name, *rest in map(str.split, shown(pipeline, "parameters", top_k=7).splitlines())}
    assert set(rows) == set(SAMPLING_NAMES)
    assert rows["temperature"] == ["0.6", "generation_config"]
    assert rows["top_p"] == ["0.9", "catalogue"]
    assert rows["top_k"] == ["7", "set", "here"]
    assert rows["min_p"] == ["0.0"]
    assert (rows["bad_words"], rows["samplers"], rows["ignore_eos"]) == (["none"], ["none"], ["false"])
    lines = shown(pipeline, "parameters", stop=("a b", "\n"), top_k=7).splitlines()
    assert len({line.index(value) for line, value in zip(lines, ("0.6", "0.9", "7"), strict=False)}) == 1
    (stop,) = (line for line in lines if line.startswith("stop "))
    assert stop.removeprefix("stop").split() == ["'a", "b',", "'\\n'", "set", "here"]


def test_a_message_may_begin_with_a_slash(chat: Terminal) -> None:
    say(chat, "//etc/hosts is what", "echo /etc/hosts is what")
    say(chat, "/etc/hosts is what", "// sends a message that begins with /")
    chat.type(CTRL_D)
    assert "asked ['/etc/hosts is what'] 1.0\n" in ended(chat)


@pytest.mark.parametrize("command", ["/system", "/set system"])
@pytest.mark.parametrize(
    ("text", "system"),
    [('"Be brief."', "Be brief."), ('say "no"', 'say "no"'), ('"a" or "b"', '"a" or "b"'), ('"', '"'), ('""', None)],
)
def test_quotes_around_a_system_text_are_not_part_of_it(command: str, text: str, system: str | None) -> None:
    chat = Chat(FakePipeline(), Conversation(), io.StringIO())
    run_chat_command(chat, f"{command} {text}")
    assert chat.conversation.system == system


def test_messages_are_shown_as_they_were() -> None:
    out = io.StringIO()
    chat = Chat(FakePipeline(), Conversation(), out)
    run_chat_command(chat, "/show messages")
    chat.conversation.messages += [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two\nlines"}]
    run_chat_command(chat, "/show messages")
    assert out.getvalue() == "no messages\n>>> one\ntwo\nlines\n"


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
