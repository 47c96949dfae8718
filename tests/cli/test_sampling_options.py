"""Flags, chat values and parameters are one set, and every value in effect can be told."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields

import pytest

from tuili.cli.commands import generate, run
from tuili.cli.sampling_options import SAMPLING_NAMES, given_only, parse_value, sampling_line, sampling_params
from tuili.errors import InvalidRequestError
from tuili.runtime.front.sampling_defaults import SamplingDefaults, effective_sampling, sampling_defaults
from tuili.types import SamplingParams

DEFAULTS = SamplingDefaults((("catalogue", {"temperature": 0.2, "top_p": 0.9}), ("generation_config", {"top_p": 0.8})))


def test_every_option_is_a_parameter_and_a_flag() -> None:
    assert set(SAMPLING_NAMES) <= {field.name for field in fields(SamplingParams)}
    for command in (run.command, generate.command):
        assert set(SAMPLING_NAMES) <= set(inspect.signature(command).parameters)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("typical_p", "0.5", 0.5),
        ("mirostat", "2", 2),
        ("samplers", "kpt", "kpt"),
        ("bad_words", "never", ["never"]),
        ("include_stop_str_in_output", "on", True),
        ("logit_bias", "15043+1  7=-2.5 8-.5", {"15043": 1.0, "7": -2.5, "8": -0.5}),
        ("repeat_last_n", "64", 64),
        ("adaptive_target", "0.3", 0.3),
    ],
)
def test_values_typed_in_a_chat(name: str, text: str, value: object) -> None:
    assert parse_value(name, text) == value
    sampling_params({}, {name: value})


def test_a_value_of_the_wrong_kind_is_named() -> None:
    for name in ("mirostat", "xtc_probability"):
        with pytest.raises(InvalidRequestError, match=f"{name} must be"):
            parse_value(name, "much")
    with pytest.raises(InvalidRequestError, match="samplers must be"):
        sampling_params({}, {"samplers": "qq"})


@pytest.mark.parametrize(
    ("texts", "biases"),
    [
        (["15043+1"], {15043: 1.0}),
        (["15043-1", "2=3"], {15043: -1.0, 2: 3.0}),
        (["007=1e1", " 8=+.5 "], {7: 10.0, 8: 0.5}),
        (["5=-1e9"], {5: -100.0}),
        (["5-inf", "6=-INF", "7+inf"], {5: -100.0, 6: -100.0, 7: 100.0}),
    ],
)
def test_biases_of_the_command_line(texts: list[str], biases: dict[int, float]) -> None:
    """As JSON can keep them, in a job's journal or a saved chat."""
    given = given_only({"logit_bias": texts})
    assert sampling_params({}, given).logit_bias == biases
    assert sampling_params({}, json.loads(json.dumps(given))).logit_bias == biases


@pytest.mark.parametrize(
    "text", ["", "5", "5+", "+5", "=5", "5=", "a+1", "5=x", "5-info", "5-nan", "5 + 1", "5++1", "-5+1", "5+1+1", "٥+1"]
)
def test_what_is_no_bias_is_named(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="logit_bias must be a token id and a number") as error:
        given_only({"logit_bias": [text]})
    assert error.value.param == "logit_bias"


def test_biases_that_cannot_be() -> None:
    with pytest.raises(InvalidRequestError, match="each token at most once, got 5 twice"):
        given_only({"logit_bias": ["5+1", "05-1"]})
    with pytest.raises(InvalidRequestError, match="logit_bias must be"):
        sampling_params({}, given_only({"logit_bias": ["9999999999+1"]}))
    with pytest.raises(InvalidRequestError, match="logit_bias must be"):
        given_only({"logit_bias": ["9" * 5000 + "+1"]})


def test_the_request_wins_over_the_model_and_later_layers_over_earlier_ones() -> None:
    assert dict(DEFAULTS) == {"temperature": 0.2, "top_p": 0.8}
    assert len(DEFAULTS) == 2
    params = sampling_params(DEFAULTS, {"top_k": 5})
    effective = {e.name: (e.value, e.source) for e in effective_sampling(params, DEFAULTS, {"top_k": 5})}
    assert effective["temperature"] == (0.2, "catalogue")
    assert effective["top_p"] == (0.8, "generation_config")
    assert effective["top_k"] == (5, "request")
    assert effective["min_p"] == (0.0, "library")
    plain = {e.name: e.source for e in effective_sampling(params, {"top_p": 0.8}, {})}
    assert plain["top_p"] == "model"


def test_the_values_in_effect_as_a_line() -> None:
    assert sampling_line(DEFAULTS, {"mirostat": 1}) == (
        "sampling    temperature 0.2 (catalogue), top_p 0.8 (generation_config), mirostat 1 (request)"
    )
    assert sampling_line({}, {}) == "sampling    the defaults"


def test_what_generation_config_says() -> None:
    found = sampling_defaults(
        {"do_sample": False, "temperature": 0.6, "typical_p": 0.9, "max_new_tokens": 7, "top_k": None}
    )
    assert found == {"temperature": 0.0, "typical_p": 0.9, "max_tokens": 7}


def test_only_what_is_given_counts() -> None:
    assert given_only({"top_k": 0, "stop": [], "seed": None, "ignore_eos": False, "model": "m"}) == {
        "top_k": 0,
        "ignore_eos": False,
    }
