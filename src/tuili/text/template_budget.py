"""What one rendering of a chat template may use: steps, characters, nesting. Knows no template language.

A step is about a microsecond. Every operation pays for the size of what it touches, so that time and memory
are bounded by construction and not by a clock.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sized, ValuesView
from typing import Any

from jinja2.utils import Namespace

from tuili.text.prompt_text import PromptText

BASE_STEPS = 200_000
STEPS_PER_VALUE = 400
PASSES_OVER_TEXT = 16
BASE_CHARS = 1 << 20
CHARS_PER_INPUT = 4
CHARS_PER_STEP = 64
MAX_DEPTH = 100
MAX_CALLS = 40
MAX_INT_BITS = 4096

_CONTAINERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


class BoundExceededError(Exception):
    """A template asked for more than it may use."""


def size(value: object) -> int:
    """Steps that touching a value once costs, not counting what a container holds."""
    if isinstance(value, PromptText):
        return 1 + len(value) // CHARS_PER_STEP + len(value.untrusted) // 4
    if isinstance(value, str):
        return 1 + len(value) // CHARS_PER_STEP
    if isinstance(value, (*_CONTAINERS, range, Mapping)):
        return 1 + len(value) // 8
    return 1


class Budget:
    """The allowance of one rendering, for inputs of `num_chars` characters in `num_values` values."""

    __slots__ = ("_calls", "_max_chars", "_steps")

    def __init__(self, num_chars: int, num_values: int) -> None:
        self._steps = BASE_STEPS + STEPS_PER_VALUE * num_values + PASSES_OVER_TEXT * num_chars // CHARS_PER_STEP
        self._max_chars = BASE_CHARS + CHARS_PER_INPUT * num_chars
        self._calls = 0

    def spend(self, steps: int) -> None:
        """Raises BoundExceededError when the allowance is used up."""
        self._steps -= steps
        if self._steps < 0:
            raise BoundExceededError("it takes too many steps")

    def check_chars(self, num_chars: int) -> None:
        """Refuses a string of this length before it is made."""
        if num_chars > self._max_chars:
            raise BoundExceededError(f"it makes a string of more than {self._max_chars} characters")

    def check_items(self, num_items: int) -> None:
        """Pays for a container of this length before it is made."""
        self.spend(max(num_items, 0) // 8)

    def check_bits(self, num_bits: int) -> None:
        """Refuses an integer of this size before it is made."""
        if num_bits > MAX_INT_BITS:
            raise BoundExceededError(f"it makes an integer of more than {MAX_INT_BITS} bits")

    def spend_deep(self, value: object) -> bool:
        """Pays for a value with all it holds. True when some text in it is untrusted."""
        is_outside = False
        stack: list[tuple[object, int]] = [(value, 0)]
        while stack:
            item, depth = stack.pop()
            self.spend(size(item))
            if depth > MAX_DEPTH:
                raise BoundExceededError(f"it nests values more than {MAX_DEPTH} deep")
            if isinstance(item, PromptText):
                is_outside = is_outside or bool(item.untrusted)
                continue
            held = _held(item)
            self.spend(len(held))
            stack.extend((inner, depth + 1) for inner in held)
        return is_outside

    def enter_call(self) -> None:
        """Pays for a call; `leave_call` ends it."""
        self.spend(4)
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise BoundExceededError(f"it nests calls more than {MAX_CALLS} deep")

    def leave_call(self) -> None:
        """Ends a call."""
        self._calls -= 1


def _held(value: object) -> list[object]:
    if isinstance(value, _CONTAINERS):
        return list(value)
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return []


class Counted:
    """An iterable each step of which is paid for."""

    __slots__ = ("_budget", "_iterable", "_weight")

    def __init__(self, iterable: Iterable[Any], budget: Budget, weight: int = 1) -> None:
        self._iterable, self._budget, self._weight = iterable, budget, weight

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            self._budget.spend(self._weight)
            yield item

    def __len__(self) -> int:
        if not isinstance(self._iterable, Sized):
            raise TypeError("no length")
        return len(self._iterable)
