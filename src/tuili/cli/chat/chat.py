"""The chat: reads entries, answers them with the history so far, keeps going whatever an answer does.

Ctrl-C stops the answer or clears the line; twice in a row at the prompt it ends the chat, as Ctrl-D does.
Slash commands are `chat_commands.py`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from tuili.cli.answer import PrintedAnswer, print_answer, timing_lines
from tuili.cli.chat.conversation import Conversation
from tuili.cli.chat.line_reader import read_entry
from tuili.cli.refusals import refuse_pictures
from tuili.cli.sampling_options import sampling_params
from tuili.cli.terminal import report_error
from tuili.errors import TuiliError
from tuili.types import GenerateRequest

if TYPE_CHECKING:
    from tuili.cli.chat_model import ChatModel


@dataclass(slots=True)
class Chat:
    """One person talking to one model."""

    pipeline: ChatModel
    conversation: Conversation
    out: TextIO
    is_verbose: bool = False
    is_markdown: bool = False
    template: str | None = None  # Jinja source in place of the model's
    place: str | None = None  # the server it runs on; None is here
    license_text: str | None = None  # None: what the store says
    num_answers: int = 0

    def answer(self, text: str) -> None:
        """Answers one message and remembers both. What failed, or was stopped before a word, is not remembered."""
        refuse_pictures(text)
        conversation = self.conversation
        conversation.messages.append({"role": "user", "content": text})
        answered = None
        try:
            answered = self._printed(self._request())
        finally:
            if answered is None or not answered.text:
                conversation.messages.pop()
            else:
                conversation.messages.append({"role": "assistant", "content": answered.text})

    def _request(self) -> GenerateRequest:
        self.num_answers += 1
        return GenerateRequest(
            request_id=f"chat-{self.num_answers}",
            sampling=sampling_params(self.pipeline.default_sampling, self.conversation.sampling),
            messages=self.conversation.prompt_messages(),
            template_args=self.conversation.template_args,
            chat_template=self.template,
        )

    def _printed(self, request: GenerateRequest) -> PrintedAnswer:
        answered = print_answer(
            self.pipeline.stream(request), self.out, is_interruptible=True, is_markdown=self.is_markdown
        )
        if self.is_verbose:
            sys.stderr.write("".join(f"{line}\n" for line in timing_lines(answered, self.pipeline, self.place)))
        return answered


def run_chat(chat: Chat, run_command: Callable[[Chat, str], bool], read: Callable[[], str] = read_entry) -> None:
    """Talks until the input ends or a command says so.

    `run_command` gets the entries that start with one slash and returns whether to go on.
    """
    if chat.place is not None:
        chat.out.write(f"{chat.pipeline.name} at {chat.place}\n")
    chat.out.write("/help lists commands, Ctrl-C stops an answer, Ctrl-D ends\n")
    was_interrupted = False
    while True:
        try:
            entry = read()
        except (EOFError, KeyboardInterrupt) as error:
            chat.out.write("\n")
            if was_interrupted or isinstance(error, EOFError):
                return
            was_interrupted = True
            chat.out.write("Ctrl-C again ends the chat, and so does Ctrl-D\n")
            continue
        was_interrupted = False
        try:
            if not _take(chat, entry, run_command):
                return
        except KeyboardInterrupt:
            chat.out.write("\n")
        except TuiliError as error:
            report_error(str(error))


def _take(chat: Chat, entry: str, run_command: Callable[[Chat, str], bool]) -> bool:
    """Runs or answers one entry; whether the chat goes on. Two slashes begin a message that begins with one."""
    if entry.startswith("/") and not entry.startswith("//"):
        return run_command(chat, entry)
    if entry:
        chat.answer(entry.removeprefix("/"))
    return True
