"""Prints one answer while it is being made, and says afterwards how fast that was. Knows events, no models."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TextIO

from tuili.cli.terminal import printable
from tuili.types import Done, Event, Failed, Finished, FinishReason, TextDelta


@dataclass(frozen=True, kw_only=True, slots=True)
class PrintedAnswer:
    """What was printed. done is None when the person stopped it."""

    text: str
    finish_reason: FinishReason
    done: Done | None


def print_answer(events: Iterator[Event], out: TextIO, *, is_interruptible: bool = False) -> PrintedAnswer:
    """Prints text as it comes, ending in a newline. With is_interruptible Ctrl-C ends the answer, not the program.

    Raises the error of a Failed event.
    """
    pieces: list[str] = []
    finish_reason: FinishReason = "abort"
    done = None
    try:
        for event in events:
            match event:
                case TextDelta(text=text):
                    pieces.append(text)
                    _write(out, text)
                case Finished(finish_reason=reason):
                    finish_reason = reason
                case Failed(error=error):
                    raise error
                case Done():
                    done = event
    except KeyboardInterrupt:
        if not is_interruptible:
            raise
    finally:
        if isinstance(events, Generator):
            events.close()  # aborts what is still running
        if pieces and not "".join(pieces).endswith("\n"):
            _write(out, "\n")
    return PrintedAnswer(text="".join(pieces), finish_reason=finish_reason, done=done)


def timing_lines(answer: PrintedAnswer, load_s: float) -> list[str]:
    """What --verbose shows: load time, prompt and generation speed, and why the answer ended."""
    lines = [f"load        {load_s:.2f} s"]
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


def _write(out: TextIO, text: str) -> None:
    out.write(printable(text) if out.isatty() else text)
    out.flush()
