"""Sampling options of the command line: their flags, their values as typed in a chat, and SamplingParams of them.

Names, meanings and ranges are SamplingParams'. An option not given leaves the model's default.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from tuili.cli.shared_options import Command, with_options
from tuili.errors import InvalidRequestError
from tuili.sampling_checks import MAX_LOGIT_BIAS
from tuili.types import SamplingParams


class _Option(NamedTuple):
    kind: type  # list: texts, given one by one; dict: such as ID+BIAS, likewise
    help: str


_OPTIONS: Mapping[str, _Option] = {
    "temperature": _Option(float, "0 is greedy."),
    "top_p": _Option(float, "Keep the likeliest tokens up to this mass."),
    "top_k": _Option(int, "Keep this many tokens; 0 is all."),
    "min_p": _Option(float, "Drop tokens below this share of the best."),
    "max_tokens": _Option(int, "Longest answer in tokens."),
    "min_tokens": _Option(int, "Shortest answer in tokens."),
    "repetition_penalty": _Option(float, "1 is none."),
    "presence_penalty": _Option(float, "0 is none."),
    "frequency_penalty": _Option(float, "0 is none."),
    "seed": _Option(int, "Makes a sampled answer repeatable."),
    "stop": _Option(list, "End before this text; repeatable."),
    "include_stop_str_in_output": _Option(bool, "End after the stop text instead."),
    "ignore_eos": _Option(bool, "Pass the end token."),
    "logit_bias": _Option(dict, "Add to a token's logit, as in 15043+1 or 15043=-1; 15043-inf bans it; repeatable."),
    "bad_words": _Option(list, "Never write this word; repeatable."),
    "samplers": _Option(str, "Order of the samplers, as in top_k;top_p;temperature or kpt."),
    "repeat_last_n": _Option(int, "Tokens that penalties look back at; -1 is all, 0 turns them off."),
    "min_keep": _Option(int, "Tokens that samplers leave at least."),
    "typical_p": _Option(float, "Keep tokens of typical surprise up to this mass; 1 is all."),
    "top_n_sigma": _Option(float, "Keep logits within this many deviations of the best; 0 is all."),
    "xtc_probability": _Option(float, "How often to drop the likeliest tokens; 0 is never."),
    "xtc_threshold": _Option(float, "Probability from which XTC drops them."),
    "dynatemp_range": _Option(float, "Temperature moves this far with the entropy; 0 is none."),
    "dynatemp_exponent": _Option(float, "How it moves."),
    "dry_multiplier": _Option(float, "Penalty of repetitions; 0 is none."),
    "dry_base": _Option(float, "By how much it grows with each token."),
    "dry_allowed_length": _Option(int, "Longest repetition without penalty."),
    "dry_penalty_last_n": _Option(int, "Tokens looked back at; -1 is all."),
    "dry_sequence_breakers": _Option(list, "No repetition goes past this text; repeatable."),
    "adaptive_target": _Option(float, "Probability that chosen tokens are kept near; below 0 is off."),
    "adaptive_decay": _Option(float, "How slowly it follows what was chosen."),
    "mirostat": _Option(int, "1 or 2: steer the surprise; 0 is off."),
    "mirostat_tau": _Option(float, "Surprise to steer to, in bits."),
    "mirostat_eta": _Option(float, "How fast to steer."),
}
SAMPLING_NAMES = tuple(_OPTIONS)
_TYPES = {
    float: float | None,
    int: int | None,
    bool: bool | None,
    str: str | None,
    list: list[str] | None,
    dict: list[str] | None,
}
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf"
_BIAS = re.compile(rf"(\d{{1,10}})(?:=|(?=[+-]))([+-]?(?:{_NUMBER}))", re.ASCII | re.IGNORECASE)
_TRUTH = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


def taking_sampling(command: Command) -> Command:
    """Gives a command every sampling option as a keyword argument."""
    return with_options(command, map(_parameter, SAMPLING_NAMES))


def _parameter(name: str) -> inspect.Parameter:
    kind, text = _OPTIONS[name]
    flags = [f"--{name.replace('_', '-')}"] if kind is bool else []  # without a --no-
    option = typer.Option(*flags, help=text, rich_help_panel="Sampling")
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[_TYPES[kind], option]
    )


def given_only(options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling options somebody set. Raises InvalidRequestError naming one that cannot be read."""
    given = {name: options[name] for name in SAMPLING_NAMES if options.get(name) not in (None, [])}
    return {name: _biases(name, value) if _OPTIONS[name].kind is dict else value for name, value in given.items()}


def sampling_params(defaults: Mapping[str, object], given: Mapping[str, Any]) -> SamplingParams:
    """What is given, over the model's defaults; an answer may run to the end of the context.

    Raises InvalidRequestError naming the option.
    """
    values: dict[str, Any] = {"max_tokens": None, **defaults, **given}
    return SamplingParams(**values)


def sampling_told(defaults: Mapping[str, object], given: Mapping[str, Any]) -> str:
    """The values in effect that are not the library's, and where each is from."""
    from tuili.runtime.front.sampling_defaults import LIBRARY, effective_sampling

    effective = effective_sampling(sampling_params(defaults, given), defaults, given)
    told = [f"{name} {value!r} ({source})" for name, value, source in effective if source != LIBRARY]
    return ", ".join(told) or "the defaults"


def sampling_line(defaults: Mapping[str, object], given: Mapping[str, Any]) -> str:
    """The same as a line below an answer's timings."""
    return f"sampling    {sampling_told(defaults, given)}"


def parse_value(name: str, text: str) -> Any:
    """A value as typed in a chat. Raises InvalidRequestError naming the parameter and what it takes."""
    if name not in _OPTIONS:
        raise InvalidRequestError(f"no parameter {name!a:.80}: there are {', '.join(SAMPLING_NAMES)}", param=name)
    kind = _OPTIONS[name].kind
    if kind is bool:
        if text.lower() not in _TRUTH:
            raise InvalidRequestError(f"{name} must be true or false, got {text!a:.80}", param=name)
        return _TRUTH[text.lower()]
    if kind is list:
        return [text]
    if kind is dict:
        return _biases(name, text.split())
    try:
        return kind(text)
    except ValueError:
        noun = "an integer" if kind is int else "a number"
        raise InvalidRequestError(f"{name} must be {noun}, got {text!a:.80}", param=name) from None


def _biases(name: str, texts: Sequence[str]) -> dict[str, float]:
    """Biases by token id, as JSON would have them."""
    biases: dict[str, float] = {}
    for text in texts:
        found = _BIAS.fullmatch(text.strip())
        if found is None:
            raise InvalidRequestError(
                f"{name} must be a token id and a number, as in 15043+1, 15043-inf or 15043=-1, got {text!a:.80}",
                param=name,
            )
        token_id = str(int(found[1]))
        if token_id in biases:
            raise InvalidRequestError(f"{name} must name each token at most once, got {token_id} twice", param=name)
        biases[token_id] = min(max(float(found[2]), -MAX_LOGIT_BIAS), MAX_LOGIT_BIAS)  # JSON knows no infinity
    return biases
