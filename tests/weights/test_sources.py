"""Fused, stacked and transposed tensors against slices written out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from support.random_models import decoder, layer, quantized
from tuili import quant
from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import ModelSpec
from tuili.quant.format import Floats, Tensor
from tuili.weights.loader import Conventions, canonical_weights, left_out

SPEC = replace(decoder(layer(q_bias=True, k_bias=True, v_bias=True)), tie_word_embeddings=True)  # 4 heads of 16, 2 kv
PLAIN = {"": ""}


def rows(count: int, cols: int = 64) -> Floats:
    """Every row holds its index."""
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], cols, axis=1)


def tensors(spec: ModelSpec, without: tuple[str, ...], **fused: Floats) -> dict[str, Tensor]:
    """Zeros for every weight but those of leaves in `without`; `fused` by name, "__" for "."."""
    f32 = quant.BY_NAME["F32"]
    kept = {n: s for n, s in tensor_shapes(spec).items() if n.split(".")[-2] not in without}
    found = {name: quantized(f32, np.zeros(shape, np.float32)) for name, shape in kept.items()}
    return found | {name.replace("__", "."): quantized(f32, values) for name, values in fused.items()}


def load(found: dict[str, Tensor], spec: ModelSpec = SPEC, **transforms: str) -> dict[str, Floats]:
    conventions = Conventions(names=PLAIN, transforms=transforms, ignored=())
    return {name: t.dequantize() for name, t in canonical_weights(found, spec, conventions, "f").items()}


def first_column(weights: dict[str, Floats], leaf: str, kind: str = "weight") -> list[int]:
    values = weights[f"layers.0.{leaf}_proj.{kind}"]
    return [int(row) for row in (values if values.ndim == 1 else values[:, 0])]


QKV = ("q_proj", "k_proj", "v_proj")


def test_queries_keys_and_values_one_after_the_other() -> None:
    bias = np.arange(128, dtype=np.float32)
    weights = load(tensors(SPEC, QKV, layers__0__qkv_proj__weight=rows(128), layers__0__qkv_proj__bias=bias))
    for kind in ("weight", "bias"):
        assert first_column(weights, "q", kind) == list(range(64))
        assert first_column(weights, "k", kind) == list(range(64, 96))
        assert first_column(weights, "v", kind) == list(range(96, 128))


def test_groups_of_queries_with_their_key_and_value() -> None:
    bias = np.arange(128, dtype=np.float32)
    found = tensors(SPEC, QKV, layers__0__qkv_groups_proj__weight=rows(128), layers__0__qkv_groups_proj__bias=bias)
    weights = load(found)
    for kind in ("weight", "bias"):
        assert first_column(weights, "q", kind) == [*range(32), *range(64, 96)]
        assert first_column(weights, "k", kind) == [*range(32, 48), *range(96, 112)]
        assert first_column(weights, "v", kind) == [*range(48, 64), *range(112, 128)]


@pytest.mark.parametrize("leaf", ["qkv_proj", "qkv_groups_proj"])
def test_quantized_vectors_are_not_split(leaf: str) -> None:
    found = tensors(SPEC, QKV, **{f"layers__0__{leaf}__weight": rows(128)})
    found[f"layers.0.{leaf}.bias"] = quantized(quant.BY_NAME["Q8_0"], np.ones(128, np.float32))
    with pytest.raises(UnsupportedModelError, match=rf"^f: layers.0.{leaf}.bias is a vector in Q8_0, only unquantized"):
        load(found)


def test_gate_above_up() -> None:
    weights = load(tensors(SPEC, ("gate_proj", "up_proj"), layers__0__gate_up_proj__weight=rows(192)))
    assert first_column(weights, "gate") == list(range(96))
    assert first_column(weights, "up") == list(range(96, 192))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_transposed_and_fused(kind: str) -> None:
    found = tensors(SPEC, QKV, layers__0__qkv_proj__bias=np.zeros(128, np.float32))
    values = np.arange(128 * 64, dtype=np.float32).reshape(128, 64) % 97
    found["layers.0.qkv_proj.weight"] = quantized(quant.BY_NAME[kind], np.ascontiguousarray(values.T))
    weights = load(found, qkv_proj="transpose")
    assert np.array_equal(weights["layers.0.k_proj.weight"], values[64:96])
    down = values[:96, :64].T.copy()  # [64, 96] as it should be
    found = tensors(SPEC, ("down_proj",), layers__0__down_proj__weight=np.ascontiguousarray(down.T))
    assert np.array_equal(load(found, down_proj="transpose")["layers.0.down_proj.weight"], down)


def test_fused_rows_stay_packed() -> None:
    found = tensors(SPEC, QKV, layers__0__qkv_proj__bias=np.zeros(128, np.float32))
    values = np.random.default_rng(0).standard_normal((128, 64), np.float32)
    found["layers.0.qkv_proj.weight"] = quantized(quant.BY_NAME["Q4_0"], values)
    weights = canonical_weights(found, SPEC, Conventions(names=PLAIN, transforms={}, ignored=()), "f")
    assert np.array_equal(weights["layers.0.v_proj.weight"].data, found["layers.0.qkv_proj.weight"].data[96:])


@pytest.mark.parametrize("leaf", ["qkv_proj", "qkv_groups_proj"])
def test_sizes_that_a_configuration_claims_cost_nothing(leaf: str) -> None:
    """Rows of a billion heads are not counted one by one before the file is seen to have fewer."""
    huge = replace(decoder(layer(num_heads=1 << 30, num_kv_heads=1 << 30)), tie_word_embeddings=True)
    found = tensors(SPEC, QKV, **{f"layers__0__{leaf}__weight": rows(128)})
    with pytest.raises(ModelFileError, match=r"has shape \[128, 64\], the configuration asks for \[51539607552, 64\]"):
        load(found, huge)


HEADS = replace(decoder(layer(qk_norm="each_head", num_kv_heads=1)), tie_word_embeddings=True)
GAINS = {f"layers__0__q_norm__{h}__weight": np.full(16, h, np.float32) for h in range(4)}
KEY_GAINS = {"layers__0__k_norm__0__weight": np.ones(16, np.float32)}


def test_one_tensor_per_head() -> None:
    weights = load(tensors(HEADS, ("q_norm", "k_norm"), **GAINS, **KEY_GAINS), HEADS)
    assert weights["layers.0.q_norm.weight"][:, 3].tolist() == [0, 1, 2, 3]
    assert weights["layers.0.k_norm.weight"].shape == (1, 16)


@pytest.mark.parametrize(
    ("fused", "words"),
    [
        ({"layers__0__qkv_proj__weight": rows(127)}, r"qkv_proj.weight has shape \[127, 64\], .* \[128, 64\]"),
        ({"layers__0__qkv_proj__weight": rows(128), "layers__0__k_proj__weight": rows(32)}, "are the same weight"),
        ({"layers__7__qkv_proj__weight": rows(128)}, "layers.0.k_proj.weight, .* are missing"),
    ],
)
def test_fused_tensors_that_do_not_fit(fused: dict[str, Floats], words: str) -> None:
    found = tensors(SPEC, QKV, layers__0__qkv_proj__bias=np.zeros(128, np.float32), **fused)
    with pytest.raises(ModelFileError, match=words):
        load(found)


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ({k: v for k, v in GAINS.items() if "__3__" not in k}, r"q_norm.0.weight and 2 more, 4 of them are expected"),
        ({k: v for k, v in GAINS.items() if "__1__" not in k}, r"layers.0.q_norm.weight is missing"),
        (GAINS | {"layers__0__q_norm__2__weight": np.ones(15, np.float32)}, r"q_norm.2.weight has shape \[15\]"),
    ],
)
def test_heads_that_do_not_fit(gains: dict[str, Floats], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        load(tensors(HEADS, ("q_norm", "k_norm"), **gains, **KEY_GAINS), HEADS)


def test_what_is_left_out_begins_with_an_ignored_name() -> None:
    conventions = Conventions(names=PLAIN, transforms={}, ignored=("vision.", ".inv_freq"))
    assert left_out(["vision.a.weight", "norm.weight", "layers.0.inv_freq"], conventions) == ("vision.a.weight",)
