"""Lets one command take options of another: same names, same help, same defaults, written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any


def taking_options(
    names: Iterable[str], source: Callable[..., None]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator for a command that gets options of `source`, another command, as keyword arguments."""
    theirs = inspect.signature(source, eval_str=True).parameters

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        shared = [theirs[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in names]
        marked: Any = command
        marked.__signature__ = signature.replace(parameters=[*own, *shared])
        return command

    return extend
