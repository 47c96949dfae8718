"""Prints one answer while it is being made, and says afterwards how fast that was. Knows events, no models."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from tuili.cli.terminal import is_plain, printable
from tuili.types import Done, Event, Failed, Finished, FinishReason, TextDelta

if TYPE_CHECKING:
    from tuili.cli.chat_model import ChatModel
    from tuili.cli.markdown import MarkdownWriter


@dataclass(frozen=True, kw_only=True, slots=True)
class PrintedAnswer:
    """What was printed. done is None when the person stopped it."""

    text: str
    finish_reason: FinishReason
    done: Done | None


def print_answer(
    events: Iterator[Event], out: TextIO, *, is_interruptible: bool = False, is_markdown: bool = False
) -> PrintedAnswer:
    """Prints text as it comes, ending in a newline. With is_interruptible Ctrl-C ends the answer, not the program;
    the line on which the terminal shows that key is ended too.

    is_markdown renders it, where the output is a terminal that shows more than plain text.

    Raises the error of a Failed event.
    """
    pieces: list[str] = []
    writer: MarkdownWriter | _PlainPrinter = _markdown(out) if is_markdown and not is_plain(out) else _PlainPrinter(out)
    finish_reason: FinishReason = "abort"
    done, was_interrupted = None, False
    try:
        for event in events:
            match event:
                case TextDelta(text=text):
                    pieces.append(text)
                    writer.write(text)
                case Finished(finish_reason=reason):
                    finish_reason = reason
                case Failed(error=error):
                    raise error
                case Done():
                    done = event
    except KeyboardInterrupt:
        if not is_interruptible:
            raise
        was_interrupted = True
    finally:
        if isinstance(events, Generator):
            events.close()  # aborts what is still running
        writer.finish()
    if was_interrupted and (not pieces or pieces[-1].endswith("\n")):
        out.write("\n")
    return PrintedAnswer(text="".join(pieces), finish_reason=finish_reason, done=done)


def _markdown(out: TextIO) -> MarkdownWriter:
    from tuili.cli.markdown import MarkdownWriter  # rich is slow to import

    return MarkdownWriter(out)


def timing_lines(answer: PrintedAnswer, model: ChatModel, place: str | None = None) -> list[str]:
    """What --verbose shows: the server if it is not here, load time, prompt and generation speed, and why it ended."""
    lines = [] if place is None else [f"server      {place}, model {model.name}"]
    lines += [f"load        {model.load_s:.2f} s"]
    if answer.done is not None:
        usage, timings = answer.done.usage, answer.done.timings
        computed = usage.num_prompt_tokens - usage.num_cached_tokens
        lines += [
            f"prompt      {usage.num_prompt_tokens} tokens, {usage.num_cached_tokens} cached, "
            f"{_rate(computed, timings.time_to_first_token_s)}",
            f"generation  {usage.num_output_tokens} tokens, {_rate(usage.num_output_tokens - 1, timings.decode_s)}",
            f"first token {timings.time_to_first_token_s:.3f} s",
        ]
    return [*lines, f"ended by    {answer.finish_reason}"]


def _rate(num_tokens: int, seconds: float) -> str:
    return f"{num_tokens / seconds:.1f} tokens/s" if num_tokens > 0 and seconds > 0 else "- tokens/s"


class _PlainPrinter:
    """Text as it is, at once."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last = "\n"

    def write(self, text: str) -> None:
        self._out.write(printable(text) if self._out.isatty() else text)
        self._out.flush()
        self._last = text[-1:] or self._last

    def finish(self) -> None:
        """Ends the last line."""
        if self._last != "\n":
            self.write("\n")
