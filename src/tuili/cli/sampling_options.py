"""Sampling options of the command line: their flags, their values as typed in a chat, and SamplingParams of them.

Names, meanings and ranges are SamplingParams'. An option not given leaves the model's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tuili.errors import InvalidRequestError
from tuili.types import SamplingParams

_PANEL = "Sampling"
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.", rich_help_panel=_PANEL)]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this mass.", rich_help_panel=_PANEL)]
TopK = Annotated[int | None, typer.Option(help="Keep this many tokens; 0 is all.", rich_help_panel=_PANEL)]
MinP = Annotated[float | None, typer.Option(help="Drop tokens below this share of the best.", rich_help_panel=_PANEL)]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer in tokens.", rich_help_panel=_PANEL)]
MinTokens = Annotated[int | None, typer.Option(help="Shortest answer in tokens.", rich_help_panel=_PANEL)]
RepetitionPenalty = Annotated[float | None, typer.Option(help="1 is none.", rich_help_panel=_PANEL)]
PresencePenalty = Annotated[float | None, typer.Option(help="0 is none.", rich_help_panel=_PANEL)]
FrequencyPenalty = Annotated[float | None, typer.Option(help="0 is none.", rich_help_panel=_PANEL)]
Seed = Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.", rich_help_panel=_PANEL)]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.", rich_help_panel=_PANEL)]
IgnoreEos = Annotated[bool | None, typer.Option("--ignore-eos", help="Pass the end token.", rich_help_panel=_PANEL)]

_KINDS: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "min_tokens": int,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "stop": str,
    "ignore_eos": bool,
}
SAMPLING_NAMES = tuple(_KINDS)
_TRUTH = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


def given_only(options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling options somebody set."""
    return {name: options[name] for name in SAMPLING_NAMES if options.get(name) not in (None, [])}


def sampling_params(defaults: Mapping[str, object], given: Mapping[str, Any]) -> SamplingParams:
    """What is given, over the model's defaults; an answer may run to the end of the context.

    Raises InvalidRequestError naming the option.
    """
    values: dict[str, Any] = {"max_tokens": None, **defaults, **given}
    return SamplingParams(**values)


def parse_value(name: str, text: str) -> Any:
    """A value as typed in a chat. Raises InvalidRequestError naming the parameter and what it takes."""
    kind = _KINDS.get(name)
    if kind is None:
        raise InvalidRequestError(f"no parameter {name!a:.80}: there are {', '.join(SAMPLING_NAMES)}", param=name)
    if kind is bool:
        if text.lower() not in _TRUTH:
            raise InvalidRequestError(f"{name} must be true or false, got {text!a:.80}", param=name)
        return _TRUTH[text.lower()]
    if kind is str:
        return [text]
    try:
        return kind(text)
    except ValueError:
        noun = "an integer" if kind is int else "a number"
        raise InvalidRequestError(f"{name} must be {noun}, got {text!a:.80}", param=name) from None
