"""Ollama's options: what each sets, where values come from, which are named as without effect."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tuili.errors import InvalidRequestError
from tuili.server.dialects.ollama.bodies import ChatBody, Options
from tuili.server.dialects.ollama.options import Settings, read_settings


def read(options: dict[str, Any] | None = None, defaults: dict[str, Any] | None = None, **fields: Any) -> Settings:
    return read_settings(ChatBody.model_validate({"model": "m", "options": options, **fields}), defaults or {})


@pytest.mark.parametrize(
    ("option", "value", "field", "expected"),
    [
        ("num_predict", 7, "max_tokens", 7),
        ("num_predict", -1, "max_tokens", None),
        ("num_predict", -2, "max_tokens", None),
        ("temperature", 0, "temperature", 0.0),
        ("temperature", 0.7, "temperature", 0.7),
        ("top_k", 40, "top_k", 40),
        ("top_k", 0, "top_k", 0),
        ("top_p", 0.5, "top_p", 0.5),
        ("min_p", 0.1, "min_p", 0.1),
        ("typical_p", 0.9, "typical_p", 0.9),
        ("repeat_penalty", 1.1, "repetition_penalty", 1.1),
        ("repeat_last_n", 64, "repeat_last_n", 64),
        ("repeat_last_n", 0, "repeat_last_n", 0),
        ("repeat_last_n", -1, "repeat_last_n", 2**31 - 1),
        ("presence_penalty", 0.5, "presence_penalty", 0.5),
        ("frequency_penalty", -0.5, "frequency_penalty", -0.5),
        ("seed", 42, "seed", 42),
        ("seed", -1, "seed", None),
        ("seed", 42.0, "seed", 42),
        ("stop", ["a", "b"], "stop", ("a", "b")),
        ("stop", "a", "stop", ("a",)),
        ("mirostat", 2, "mirostat", 2),
        ("mirostat_tau", 3.0, "mirostat_tau", 3.0),
        ("mirostat_eta", 0.2, "mirostat_eta", 0.2),
    ],
)
def test_every_sampling_option_counts(option: str, value: object, field: str, expected: object) -> None:
    settings = read({option: value})
    assert getattr(settings.sampling, field) == expected
    assert settings.without_effect == ()


def test_every_option_is_either_used_or_named() -> None:
    used = {"num_ctx", "num_keep", "num_predict"}
    kinds = {"stop": ["x"], "mirostat": 1, "top_k": 1, "seed": 1, "repeat_last_n": 1, "top_p": 0.5, "min_p": 0.5}
    for name, field in Options.model_fields.items():
        value = kinds.get(name, False if "bool" in str(field.annotation) else 1)
        settings = read({name: value})
        counts = settings.sampling != read().sampling or name in used
        assert counts or settings.without_effect == (f"options.{name}",) or value == 1, name
        assert not (counts and settings.without_effect), name


def test_values_come_from_the_request_then_the_model_then_the_library() -> None:
    defaults = {"temperature": 0.2, "top_p": 0.9, "max_tokens": 50}
    settings = read({"temperature": 0.5}, defaults)
    assert (settings.sampling.temperature, settings.sampling.top_p, settings.sampling.max_tokens) == (0.5, 0.9, 50)
    assert (settings.sampling.top_k, settings.sampling.min_p) == (0, 0.0)  # not Ollama's 40 and 0.9
    assert read({"num_predict": -1}, defaults).sampling.max_tokens is None
    assert read().sampling.max_tokens is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_predict": 0}, "options.num_predict"),
        ({"num_predict": -3}, "options.num_predict"),
        ({"num_ctx": 0}, "options.num_ctx"),
        ({"num_keep": -2}, "options.num_keep"),
        ({"repeat_last_n": -2}, "options.repeat_last_n"),
        ({"repeat_penalty": 0}, "options.repeat_penalty"),
        ({"temperature": 3}, "options.temperature"),
        ({"temperature": float("inf")}, "options.temperature"),
        ({"top_p": 0}, "options.top_p"),
        ({"mirostat": 3}, "options.mirostat"),
        ({"seed": -2}, "options.seed"),
        ({"stop": [""]}, "options.stop"),
        ({"stop": ["x"] * 17}, "options.stop"),
    ],
)
def test_values_out_of_range_are_refused_by_their_own_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(options)
    assert caught.value.param == named
    assert str(caught.value).startswith(named)


@pytest.mark.parametrize("options", [{"num_ctx": 1.5}, {"num_ctx": "4096"}, {"use_mmap": 1}, {"temperature": "0"}])
def test_types_are_strict(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(options)


def test_logprobs() -> None:
    assert read().sampling.logprobs is None
    assert read(logprobs=True).sampling.logprobs == 0
    assert read(logprobs=True, top_logprobs=3).sampling.logprobs == 3
    for fields in ({"logprobs": True, "top_logprobs": 21}, {"top_logprobs": 2}, {"logprobs": True, "top_logprobs": -1}):
        with pytest.raises(InvalidRequestError, match="top_logprobs"):
            read(**fields)
