"""Every numeric argument of `tuili.compat.llama_cpp` at the edge of its type: taken, or refused by its own name."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

from tuili.compat.llama_cpp import Llama
from tuili.compat.llama_cpp_arguments import LLAMA_DEFAULT_SEED, REFUSED, llm_options, sampling_params
from tuili.errors import InvalidRequestError

EDGES: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)),
    *(math.nan, math.inf, -math.inf, -0.0, 0.5, 1.0, 1e308, 5e-324, True, False, None),
    *("", "1", "abc", "nan", "x" * 5000, b"x", [], [1], (), {}, {"a": 1}, {1}, object()),
)
DEFAULTS = {"temperature": 0.8, "top_p": 0.95, "min_p": 0.05, "top_k": 40, "max_tokens": 16, "seed": 1, "stop": None}
SAMPLING = (
    *(*DEFAULTS, "typical_p", "frequency_penalty", "presence_penalty", "repeat_penalty", "mirostat_mode"),
    *("mirostat_tau", "mirostat_eta", "logit_bias", "logits_processor", "tfs_z", "grammar"),
)
LOADING = {"n_ctx": 512, "n_batch": 512, "n_threads": None, "chat_format": None, "type_k": None, "type_v": None}


def refused(name: str, make: Any) -> int:
    """How many edges are refused, each in a short line that names the argument."""
    count = 0
    for value in EDGES:
        try:
            make(value)
        except InvalidRequestError as error:
            told = str(error)
        else:
            continue
        assert name in told, (name, value, told)
        assert len(told) < 400
        count += 1
    return count


@pytest.mark.parametrize("name", SAMPLING)
def test_arguments_of_an_answer(name: str) -> None:
    assert 0 < refused(name, lambda value: sampling_params({**DEFAULTS, name: value}, {})) < len(EDGES)


@pytest.mark.parametrize("name", [*LOADING, *REFUSED])
def test_arguments_of_loading(name: str) -> None:
    def load(value: Any) -> None:
        given = {**LOADING, name: value}
        kinds = given.pop("type_k"), given.pop("type_v")
        own = {key: given.pop(key) for key in ("n_ctx", "n_batch", "n_threads", "chat_format")}
        llm_options(**own, kv_types=kinds, others=given)

    assert 0 < refused(name, load) <= len(EDGES)
    load({**LOADING, **{key: nothing[0] for key, (nothing, _) in REFUSED.items()}}[name])


@pytest.mark.parametrize("name", ["seed", "last_n_tokens_size", "n_ctx", "n_batch", "n_threads"])
def test_arguments_of_llama_are_refused_before_a_file_is_looked_for(name: str) -> None:
    assert name in inspect.signature(Llama).parameters
    for value in ("abc", math.nan, 0.5, 2**64, [1]):
        with pytest.raises(InvalidRequestError, match=name):
            Llama("missing.gguf", **{name: value})


def test_an_infinite_bias_bans() -> None:
    found = sampling_params({**DEFAULTS, "logit_bias": {"7": -math.inf, 8: math.inf}}, {}).logit_bias
    assert found == {7: -100.0, 8: 100.0}
    assert sampling_params({**DEFAULTS, "seed": LLAMA_DEFAULT_SEED}, {}).seed is None
