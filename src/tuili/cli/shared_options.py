"""Lets commands share options: same names, same help, same defaults, written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

Command = Callable[..., int | None]


def with_options(command: Command, options: Iterable[inspect.Parameter]) -> Command:
    """The command, whose ** arguments now have names on the command line."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    marked: Any = command
    marked.__signature__ = signature.replace(parameters=[*own, *options])
    return command


def taking_options(names: Iterable[str], source: Command) -> Callable[[Command], Command]:
    """A decorator for a command that gets options of `source`, another command, as keyword arguments."""
    theirs = inspect.signature(source, eval_str=True).parameters
    options = [theirs[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in names]
    return lambda command: with_options(command, options)
