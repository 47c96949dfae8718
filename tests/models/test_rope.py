"""Rotary frequencies of every kind against transformers' own functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tuili.models.hf_config import hf_config
from tuili.models.reader import ConfigReader
from tuili.models.rope import attention_factor, inverse_frequencies
from tuili.models.spec import RopeScaling, RopeSpec

ORIGINAL = {"original_max_position_embeddings": 256}
FACTORS = {"short_factor": [1 + j / 10 for j in range(16)], "long_factor": [1 + j / 2 for j in range(16)]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}

CASES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear-partial": {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "yarn": {"rope_type": "yarn", "factor": 8.0, **ORIGINAL},
    "yarn-betas": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, **ORIGINAL},
    "yarn-mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7, **ORIGINAL},
    "yarn-factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3, **ORIGINAL},
    "yarn-untruncated": {"rope_type": "yarn", "factor": 4.0, "truncate": False, **ORIGINAL},
    "yarn-one-pair": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.0, "beta_slow": 1.0, **ORIGINAL},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "longrope": {"rope_type": "longrope", "factor": 4.0, **FACTORS, **ORIGINAL},
    "longrope-no-factor": {"rope_type": "longrope", **FACTORS, **ORIGINAL},
    "longrope-attention": {"rope_type": "longrope", "factor": 4.0, "attention_factor": 1.2, **FACTORS, **ORIGINAL},
}


def parameters(rope_theta: float, **rope: Any) -> tuple[LlamaConfig, RopeSpec]:
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_theta": rope_theta, **rope},
    )
    return config, ConfigReader(hf_config(config.to_dict())).rope(head_dim=32)


@pytest.mark.parametrize("context_len", [100, 256, 1024, 4096])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("name", CASES)
def test_frequencies_equal_transformers(name: str, theta: float, context_len: int) -> None:
    config, rope = parameters(theta, **CASES[name])
    assert rope.scaling is not None
    theirs, factor = ROPE_INIT_FUNCTIONS[CASES[name]["rope_type"]](config, seq_len=context_len)
    np.testing.assert_allclose(inverse_frequencies(rope, context_len), theirs.numpy(), rtol=1e-6)
    assert attention_factor(rope, context_len) == pytest.approx(factor, rel=1e-9)


def test_plain_frequencies_are_roformers() -> None:
    _, rope = parameters(10_000.0, rope_type="default")
    assert rope == RopeSpec(dim=32, theta=10_000.0)
    frequencies = inverse_frequencies(rope, 512)
    assert frequencies == tuple(10_000.0 ** (-2 * j / 32) for j in range(16))
    assert attention_factor(rope, 512) == 1.0


def test_divisors_given_outright_equal_llama3() -> None:
    """As GGUF gives them: the plain frequency over the scaled one."""
    _, scaled = parameters(500_000.0, rope_type="llama3", **LLAMA3)
    plain, wanted = inverse_frequencies(RopeSpec(dim=32, theta=500_000.0), 1), inverse_frequencies(scaled, 1)
    divisors = tuple(p / w for p, w in zip(plain, wanted, strict=True))
    given = RopeSpec(dim=32, theta=500_000.0, scaling=RopeScaling(kind="llama3", frequency_divisors=divisors))
    assert inverse_frequencies(given, 1) == pytest.approx(wanted, rel=1e-12)
    assert attention_factor(given, 1) == 1.0


def test_only_dynamic_and_longrope_look_at_the_context() -> None:
    for name, case in CASES.items():
        _, rope = parameters(10_000.0, **case)
        is_same = inverse_frequencies(rope, 64) == inverse_frequencies(rope, 8192)
        assert is_same == (not name.startswith(("dynamic", "longrope"))), name


def test_longrope_without_stretch_scales_nothing() -> None:
    scaling = RopeScaling(
        kind="longrope", factor=1.0, original_max_position=64, short_factor=(1.0,), long_factor=(2.0,)
    )
    rope = RopeSpec(dim=2, scaling=scaling)
    assert attention_factor(rope, 128) == 1.0
    assert inverse_frequencies(rope, 64) == (1.0,)
    assert inverse_frequencies(rope, 65) == (0.5,)
