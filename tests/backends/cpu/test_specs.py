"""Every spec member and weight format of the C++ runtime against the NumPy reference, on small random models.

Keys and values are kept as bfloat16; with a reference that rounds them too, float formats differ by float32 noise and,
where that noise crosses a rounding edge, by one bfloat16 step of one key. Integer formats also round activations to
127 levels per 32 values. Logits of these models have a standard deviation near 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from support.batches import Driver
from support.bfloat16 import rounded_to_bf16
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.cpu import _native
from tuili.backends.reference.cache import PagedCache
from tuili.models.spec import MlpSpec, ModelSpec, QueryScaling, RopeScaling, RopeSpec

ROUNDED_BOUND = 4e-3  # measured: up to 1.5e-3
FLOAT_BOUND = 0.05  # measured: up to 0.028
INT8_BOUND = 0.3  # measured: up to 0.16
OPTIONS = BackendOptions(max_model_len=400)

PARALLEL = layer(layer_changes={"parallel": True})
TWO_NORMS = layer(layer_changes={"parallel": True, "parallel_norms": 2, "residual_scale": 0.7})

SPECS = {
    "plain": decoder(),
    "multi-head": decoder(layer(num_kv_heads=4), layer(num_kv_heads=4)),
    "multi-query": decoder(layer(num_heads=8, num_kv_heads=1, head_dim=20, rope=RopeSpec(dim=20))),
    "heads that share quantization groups": decoder(layer(head_dim=24, rope=RopeSpec(dim=24))),
    "head 80, partial rope": decoder(layer(head_dim=80, rope=RopeSpec(dim=20))),
    "head 256": decoder(layer(num_heads=2, num_kv_heads=1, head_dim=256, scale=1 / 16, rope=RopeSpec(dim=256))),
    "normed heads": decoder(layer(qk_norm="head")),
    "normed rows": decoder(layer(qk_norm="full")),
    "biases": decoder(
        layer(q_bias=True, k_bias=True, v_bias=True, out_bias=True, mlp=MlpSpec(intermediate_size=64, bias=True))
    ),
    "window": decoder(layer(sliding_window=17), layer(), layer(sliding_window=300)),
    "soft caps": decoder(layer(logit_softcap=2.0), logit_softcap=3.0),
    "no rope": decoder(layer(rope=None)),
    "yarn": decoder(
        layer(rope=RopeSpec(dim=16, scaling=RopeScaling(kind="yarn", factor=4.0, original_max_position=64)))
    ),
    "own sizes per layer": decoder(
        layer(num_heads=2, num_kv_heads=1, head_dim=48, rope=RopeSpec(dim=32)),
        layer(mlp=MlpSpec(intermediate_size=160)),
    ),
    "sandwich": decoder(layer(layer_changes={"norms": "sandwich"}), embedding_scale=8.0),
    "output norms": decoder(layer(layer_changes={"norms": "output", "residual_scale": 0.5})),
    "post norms": decoder(layer(layer_changes={"norms": "post"}), layer(layer_changes={"norms": "post"})),
    "layer norm": decoder(norm="layer", norm_bias=True),
    "layer norm of heads": decoder(layer(qk_norm="head"), layer(qk_norm="each_head"), norm="layer", norm_bias=True),
    "layer norm of rows": decoder(layer(qk_norm="full"), norm="layer"),
    "gains of each head": decoder(layer(num_heads=6, num_kv_heads=3, qk_norm="each_head")),
    "parallel": decoder(PARALLEL, layer(), PARALLEL),
    "parallel on two norms": decoder(TWO_NORMS, TWO_NORMS),
    "parallel, mixed": decoder(PARALLEL, TWO_NORMS, layer(layer_changes={"norms": "sandwich"}), PARALLEL),
    "parallel, layer norm": decoder(PARALLEL, TWO_NORMS, PARALLEL, norm="layer", norm_bias=True),
    "parallel, plain mlp": decoder(
        layer(
            num_kv_heads=1,
            mlp=MlpSpec(intermediate_size=96, activation="gelu", gated=False),
            layer_changes={"parallel": True, "residual_scale": 0.5},
        ),
        norm="layer",
    ),
    "alibi": decoder(layer(rope=None), position="alibi"),
    "alibi, six heads, window": decoder(
        layer(rope=None, num_heads=6, num_kv_heads=3, sliding_window=20), position="alibi", alibi_scale=0.25
    ),
    "learned positions": decoder(layer(rope=None), position="learned", position_offset=2),
    "norm of embeddings": decoder(embedding_norm=True, norm="layer", norm_bias=True),
    "narrow embeddings": decoder(embedding_size=32, tie_word_embeddings=True, embedding_scale=2.0, lm_head_bias=True),
    "wide embeddings": decoder(layer(layer_changes={"norms": "post"}), embedding_size=96, final_norm=False),
    "sinks": decoder(layer(sinks=True), layer(sinks=True, sliding_window=17)),
    "growing queries": decoder(
        layer(query_scaling=QueryScaling(beta=0.5, original_max_position=16)), layer(sliding_window=9)
    ),
    "layer norm without bias": decoder(norm="layer"),
    "no final norm": decoder(final_norm=False, logit_scale=0.25),
    "tied": decoder(tie_word_embeddings=True, lm_head_bias=True, logit_scale=0.5),
    **{
        f"{a}, gated": decoder(layer(mlp=MlpSpec(intermediate_size=96, activation=a)))
        for a in ("gelu", "gelu_tanh", "relu")
    },
    **{
        f"{a}, plain": decoder(layer(mlp=MlpSpec(intermediate_size=96, activation=a, gated=False)))
        for a in ("silu", "gelu", "relu2")
    },
}


def difference(
    spec: ModelSpec, format_name: str, num_tokens: int = 90, isa: str | None = None, **formats: str
) -> float:
    """Largest difference of a logit to the reference's."""
    weights = random_weights(spec, format_name, **formats)
    token_ids = np.random.default_rng(2).integers(0, spec.vocab_size, num_tokens).tolist()
    ours, expected = (
        Driver(load_backend(name, spec, weights, options)).logits(token_ids)
        for name, options in (("cpu", replace(OPTIONS, isa=isa)), ("reference", OPTIONS))
    )
    return float(np.abs(ours - expected).max())


@pytest.fixture
def rounded_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference keeps keys and values as bfloat16, too."""
    write = PagedCache.write

    def write_rounded(self: PagedCache, layer: int, slots: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
        write(self, layer, slots, rounded_to_bf16(keys), rounded_to_bf16(values))

    monkeypatch.setattr(PagedCache, "write", write_rounded)


@pytest.mark.usefixtures("rounded_reference")
@pytest.mark.parametrize("name", SPECS)
def test_float_weights_but_for_the_cache(name: str) -> None:
    plain = _native.best_isa().removesuffix("_bf16")  # rounds nothing that multiplies the cache
    assert difference(SPECS[name], "F32", isa=plain) <= ROUNDED_BOUND


@pytest.mark.parametrize("name", SPECS)
def test_float_weights(name: str) -> None:
    assert difference(SPECS[name], "F32") <= FLOAT_BOUND


@pytest.mark.parametrize("name", SPECS)
def test_int8_activations(name: str) -> None:
    assert difference(SPECS[name], "Q8_0") <= INT8_BOUND


@pytest.mark.parametrize("format_name", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"])
def test_formats(format_name: str) -> None:
    bound = FLOAT_BOUND if "F" in format_name else INT8_BOUND
    assert difference(decoder(), format_name) <= bound


@pytest.mark.parametrize("format_name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_k_formats(format_name: str) -> None:
    spec = decoder(layer(mlp=MlpSpec(intermediate_size=256), num_heads=16, num_kv_heads=4), hidden_size=256)
    assert difference(spec, format_name) <= INT8_BOUND


def test_every_matrix_in_a_format_of_its_own() -> None:
    spec = decoder(layer(mlp=MlpSpec(intermediate_size=256)), hidden_size=256, tie_word_embeddings=True)
    formats = {"q_proj": "Q4_K", "k_proj": "F16", "v_proj": "Q6_K", "o_proj": "BF16", "gate_proj": "Q5_0"}
    bound = difference(spec, "Q8_0", **formats, up_proj="F32", down_proj="Q4_1", embed_tokens="Q6_K")
    assert bound <= INT8_BOUND


def test_sizes_that_fill_no_panel() -> None:
    """Float formats take any width."""
    spec = decoder(
        layer(num_heads=3, num_kv_heads=1, head_dim=10, rope=RopeSpec(dim=6), mlp=MlpSpec(intermediate_size=37)),
        hidden_size=45,
        vocab_size=67,
    )
    assert difference(spec, "F32") <= FLOAT_BOUND


def test_a_context_of_several_chunks() -> None:
    assert difference(decoder(layer(), layer(sliding_window=290)), "F32", num_tokens=390) <= FLOAT_BOUND


def test_the_bounds_would_notice() -> None:
    """A window one token too wide is well above the float bound."""
    spec, wider = decoder(layer(sliding_window=17)), decoder(layer(sliding_window=18))
    weights = random_weights(spec, "F32")
    token_ids = np.random.default_rng(2).integers(0, spec.vocab_size, 90).tolist()
    ours = Driver(load_backend("cpu", spec, weights, OPTIONS)).logits(token_ids)
    other = Driver(load_backend("reference", wider, weights, OPTIONS)).logits(token_ids)
    assert np.abs(ours - other).max() > 5 * FLOAT_BOUND
