"""`EngineArgs` and `AsyncEngineArgs`: a model with its arguments as one value, as vLLM's scripts hand it around."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from typing import Any, Self

from tuili.runtime.api.arguments import LLMArguments
from tuili.runtime.api.vllm_arguments import IGNORED, REFUSED
from tuili.store.catalogue import DEFAULT_MODEL


class EngineArgs:
    """The model and the arguments given for it: attributes, so that `LLM(**vars(engine_args))` loads it.

    Names and errors are LLM's. Without a model it is the library's default one.
    """

    def __init__(self, model: str = DEFAULT_MODEL, **arguments: Any) -> None:
        LLMArguments.parse(arguments)
        vars(self).update(model=str(model), **arguments)

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Self:
        """Of parsed command line arguments, those that are an engine's."""
        known = {name for name, _ in _options()} | {*IGNORED, *REFUSED, "model"}
        return cls(**{name: value for name, value in vars(args).items() if name in known})

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Adds --model and a flag for each argument that is a number, a word or a switch."""
        parser.add_argument("--model", default=DEFAULT_MODEL)
        for name, default in _options():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(default, bool):
                parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
            else:
                parser.add_argument(flag, type=_parse, default=default)
        return parser

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class AsyncEngineArgs(EngineArgs):
    """EngineArgs for AsyncLLM."""


def _options() -> list[tuple[str, Any]]:
    """Names of arguments and their defaults, without those that are mappings."""
    own = [(field.name, field.default) for field in fields(LLMArguments) if field.default is not MISSING]
    return own + [(name, ignored.default) for name, ignored in IGNORED.items()]


def _parse(text: str) -> int | float | str | None:
    """A value as typed: a number where it reads as one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None if text == "None" else text
