"""Tells a model's thinking from its answer, in text as it comes. Knows the marks around thinking; knows no tokens.

Where an answer begins is read off the prompt, not guessed from the output: a template may have opened the thinking,
or closed it again.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from tuili.text.prompt_text import PromptText


class Marks(NamedTuple):
    """What stands before and after a model's thinking."""

    opening: str
    closing: str


THINK = Marks("<think>", "</think>")
KNOWN_MARKS = (
    THINK,
    Marks("<thinking>", "</thinking>"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("◁think▷", "◁/think▷"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
)


class Phase(Enum):
    """Where a text is: at its start, where thinking may be opened; in its thinking; in its answer."""

    START = "start"
    THINKING = "thinking"
    ANSWER = "answer"


def model_marks(template: str, is_token: Callable[[str], bool]) -> Marks:
    """The marks that a model's chat template names, else those that are tokens of its own, else THINK."""
    named = [marks for marks in KNOWN_MARKS if marks.closing in template]
    owned = [marks for marks in KNOWN_MARKS if is_token(marks.opening) and is_token(marks.closing)]
    return next(iter(named + owned), THINK)


def phase_after(prompt: str, marks: Marks, *, is_continued: bool = False) -> Phase:
    """Where the text that follows a prompt begins.

    In a rendered template only what the template wrote last counts, so that no message can open the thinking. With
    is_continued the prompt ends within an answer, and that answer's own marks count, too.
    """
    if not isinstance(prompt, PromptText):
        return Phase.THINKING if prompt.rstrip().endswith(marks.opening) else Phase.START
    spans = prompt.untrusted
    num_before = len(spans) - 1 if is_continued else len(spans)
    tail = prompt.plain()[spans[num_before - 1][1] if num_before > 0 else 0 :]
    opened, closed = tail.rfind(marks.opening), tail.rfind(marks.closing)
    if opened != closed:
        return Phase.THINKING if opened > closed else Phase.ANSWER
    has_begun = is_continued and bool(spans) and spans[-1][1] == len(prompt) and bool(tail.strip())
    return Phase.ANSWER if has_begun else Phase.START


class Split(NamedTuple):
    """A stretch of text, parted: what is thinking, and what is answer after it."""

    reasoning: str = ""
    content: str = ""


class ReasoningSplitter:
    """Parts text that comes in pieces. How it is cut makes no difference; the marks are in neither part.

    A mark counts only where it can be one: the opening mark at the very start, but for whitespace, the closing mark
    within thinking. Elsewhere it is text like any other.
    """

    def __init__(self, marks: Marks, phase: Phase = Phase.START) -> None:
        self._marks = marks
        self._may_open = phase is not Phase.ANSWER  # a model may repeat the mark that its prompt ended with
        self._is_thinking = phase is Phase.THINKING
        self._held = ""

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is thinking, as far as can be told."""
        return self._is_thinking

    def push(self, text: str) -> Split:
        """What has become certain."""
        if not (self._may_open or self._is_thinking):
            return Split("", text)
        text, self._held = self._held + text, ""
        if self._may_open:
            begun = text.lstrip()
            if len(begun) < len(self._marks.opening) and self._marks.opening.startswith(begun):
                self._held = text
                return Split()
            self._may_open = False
            if begun.startswith(self._marks.opening):
                self._is_thinking = True
                text = begun[len(self._marks.opening) :]
        return self._thought(text) if self._is_thinking else Split("", text)

    def _thought(self, text: str) -> Split:
        reasoning, found, content = text.partition(self._marks.closing)
        if found:
            self._is_thinking = False
            return Split(reasoning, content)
        certain = len(text) - _num_begun(text, self._marks.closing)
        self._held = text[certain:]
        return Split(text[:certain])

    def finish(self, text: str) -> Split:
        """The last piece, and what was held back because it might have become a mark."""
        reasoning, content = self.push(text)
        held, self._held = self._held, ""
        return Split(reasoning + held, content) if self._is_thinking else Split(reasoning, content + held)


def _num_begun(text: str, mark: str) -> int:
    """Length of the longest end of the text that begins the mark."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
