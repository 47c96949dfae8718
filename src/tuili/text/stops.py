"""Finds stop strings in text that arrives in pieces. Knows text only: no tokens, no requests."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Passes text through until a stop string is complete, holding back only what may begin one.

    The stop string that is complete first counts; of several complete at the same place, the one that begins
    first. With `include` it is part of what is emitted. How the text is split makes no difference.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._first_chars = frozenset(stop[0] for stop in self._stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that surely belongs to the answer; nothing more once `found` is set."""
        if self.found is not None:
            return ""
        if not self._held and self._first_chars.isdisjoint(text):
            return text
        text = self._held + text
        found = min(self._matches(text), default=None)
        if found is not None:
            stop, start = found
            self.found, self._held = text[start:stop], ""
            return text[: stop if self._include else start]
        certain = len(text) - self._num_pending(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """The text held back: the answer ended before it became a stop string."""
        held, self._held = self._held, ""
        return held

    def _matches(self, text: str) -> list[tuple[int, int]]:
        """End and start of the first occurrence of each stop string."""
        starts = [(text.find(stop), stop) for stop in self._stops]
        return [(start + len(stop), start) for start, stop in starts if start >= 0]

    def _num_pending(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for start in range(max(len(text) - longest, 0), len(text)):
            if text[start] in self._first_chars and any(stop.startswith(text[start:]) for stop in self._stops):
                return len(text) - start
        return 0
