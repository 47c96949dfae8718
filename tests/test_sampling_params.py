"""Every field of SamplingParams and BeamSearchParams at the edges of what it takes."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuili.errors import InvalidRequestError
from tuili.sampler_names import DEFAULT_SAMPLERS, SAMPLERS, parse_samplers
from tuili.types import BeamSearchParams, RepetitionDetectionParams, RequestOutputKind, SamplingParams

NUMBERS: dict[str, tuple[float, float]] = {  # field: smallest and largest that is allowed
    "n": (1, 128),
    "temperature": (0, 2),
    "top_p": (1e-6, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (1e-6, 1e6),
    "max_tokens": (1, 2**31 - 1),
    "min_tokens": (0, 16),
    "logprobs": (-1, 2**31 - 1),
    "prompt_logprobs": (-1, 2**31 - 1),
    "truncate_prompt_tokens": (1, 2**31 - 1),
    "repeat_last_n": (-1, 2**31 - 1),
    "min_keep": (0, 2**31 - 1),
    "typical_p": (1e-6, 1),
    "top_n_sigma": (-1, 1e6),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "dynatemp_range": (0, 2),
    "dynatemp_exponent": (0, 100),
    "dry_multiplier": (0, 1000),
    "dry_base": (1, 1000),
    "dry_allowed_length": (1, 2**31 - 1),
    "dry_penalty_last_n": (-1, 2**31 - 1),
    "adaptive_target": (-1, 1),
    "adaptive_decay": (0, 0.99),
    "mirostat": (0, 2),
    "mirostat_tau": (1e-6, 100),
    "mirostat_eta": (0, 1),
    "seed": (-1, 2**64 - 1),
}
ODD: list[Any] = [math.nan, math.inf, -math.inf, -1e9, 10**5000, "1", "", b"1", [], {}, 1j, object()]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    low, high = NUMBERS[name]
    SamplingParams(**{name: low})
    SamplingParams(**{name: high})
    optional = ("logprobs", "prompt_logprobs")  # where True is 1
    for value in [*ODD, low - 1, high * 2 + 1, False, *(() if name in optional else (True,))]:
        with pytest.raises(InvalidRequestError) as caught:
            SamplingParams(**{name: value})
        assert caught.value.param == name
        assert str(caught.value).startswith(f"{name} must be ")
        assert len(str(caught.value)) < 300


@given(st.sampled_from(sorted(NUMBERS)), st.floats() | st.integers() | st.text() | st.none() | st.booleans())
def test_a_number_is_taken_or_named(name: str, value: Any) -> None:
    error: InvalidRequestError | None = None
    try:
        taken = getattr(SamplingParams(**{name: value}), name)
        assert taken is None or math.isfinite(taken)
    except InvalidRequestError as refused:
        error = refused
    assert error is None or error.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("samplers", "kz"),
        ("samplers", ["top_k", "infill"]),
        ("samplers", 5),
        ("samplers", ["top_k"] * 33),
        ("samplers", "kpk"),
        ("samplers", ["temperature", "top_p", "temp"]),
        ("samplers", [5]),
        ("bad_words", [""]),
        ("bad_words", "word"),
        ("bad_words", [5]),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]),
        ("allowed_token_ids", [True]),
        ("allowed_token_ids", 5),
        ("dry_sequence_breakers", [""]),
        ("dry_sequence_breakers", ["a"] * 65),
        ("dry_sequence_breakers", ["a" * 65]),
        ("dry_sequence_breakers", "\n"),
        ("logits_processors", [5]),
        ("logits_processors", len),
        ("repetition_detection", 5),
        ("repetition_detection", {}),
        ("repetition_detection", {"max_pattern_size": 5, "size": 1}),
        ("repetition_detection.max_pattern_size", {"max_pattern_size": 0}),
        ("repetition_detection.min_pattern_size", {"max_pattern_size": 2, "min_pattern_size": 3}),
        ("repetition_detection.min_count", {"max_pattern_size": 2, "min_count": 1}),
        ("best_of", 2),
        ("output_kind", 3),
        ("output_kind", True),
        ("truncate_prompt_tokens", 0),
        ("spaces_between_special_tokens", 1),
    ],
)
def test_other_fields_are_named_too(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{name.partition(".")[0]: value})
    assert caught.value.param == name
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("structured_outputs", {"json": "{}"}, "comes later"),
        ("guided_decoding", {"regex": "a"}, "comes later"),
        ("logprob_token_ids", [1], "logprobs=-1"),
        ("thinking_token_budget", 5, "max_tokens"),
        ("watermarking", {"key": 1}, "not implemented"),
        ("extra_args", {"a": 1}, "nothing that reads"),
        ("flat_logprobs", True, "one dict per token"),
        ("skip_reading_prefix_cache", True, "enable_prefix_caching"),
        ("stream_interval", 3, "every step"),
    ],
)
def test_what_has_no_meaning_here_is_refused_with_the_reason(name: str, value: Any, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name} is not supported: .*{reason}"):
        SamplingParams(**{name: value})
    SamplingParams(**{name: None})


def test_sampler_orders() -> None:
    assert parse_samplers("edskypmxta") == SAMPLERS
    assert parse_samplers("top_k;top-p; TEMP ;typ_p") == ("top_k", "top_p", "temperature", "typ_p")
    assert parse_samplers(["typical_p", "topk", "nucleus"]) == ("typ_p", "top_k", "top_p")
    assert parse_samplers("xtc") == ("xtc",)
    assert parse_samplers("") == parse_samplers([]) == ()
    assert sorted(DEFAULT_SAMPLERS) == sorted(SAMPLERS)
    assert SamplingParams().order == DEFAULT_SAMPLERS


@pytest.mark.parametrize("key", ["x", "-1", "1.0", "", "٥", "9" * 11, 2**31, -1, True, 1.0, None])
def test_ids_of_a_bias(key: Any) -> None:
    assert SamplingParams(logit_bias={"7": 1, 8: -200}).logit_bias == {7: 1, 8: -100}
    with pytest.raises(InvalidRequestError, match="logit_bias must be an integer"):
        SamplingParams(logit_bias={key: 1.0})


def test_canonical_forms_stay_as_they_are() -> None:
    """with_seed and clone make the same parameters again."""
    params = SamplingParams(
        samplers="kt",
        bad_words=["a"],
        allowed_token_ids=[5, 3, 5],
        repetition_detection={"max_pattern_size": 2, "min_count": 3},
        output_kind=2,
        best_of=1,
        extra_args={},
        top_n_sigma=-1,
    )
    assert params.allowed_token_ids == (3, 5)
    assert params.repetition == RepetitionDetectionParams(max_pattern_size=2, min_count=3)
    assert params.output_kind is RequestOutputKind.FINAL_ONLY
    assert params.clone() == params
    assert params.with_seed(3).clone().with_seed(5) == params.with_seed(5)
    assert params.changed().keys() >= {"samplers", "bad_words", "output_kind"}
    assert SamplingParams().changed() == {}
    assert len(fields(SamplingParams)) > 50


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_width", 0),
        ("beam_width", 65),
        ("beam_width", 2.0),
        ("max_tokens", 0),
        ("temperature", -1),
        ("temperature", math.nan),
        ("length_penalty", math.inf),
        ("length_penalty", 10.01),
        ("early_stopping", "always"),
        ("early_stopping", None),
        ("ignore_eos", 1),
        ("structured_outputs", {}),
    ],
)
def test_beam_search_parameters(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 4, name: value})
    assert caught.value.param == name
