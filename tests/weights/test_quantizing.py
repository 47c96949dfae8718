"""Which format a recipe gives each weight, and weights quantized as they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from support.random_models import decoder, layer, random_weights
from tuili import quant
from tuili.errors import InvalidRequestError, ModelFileError
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import MlpSpec, ModelSpec
from tuili.quant.format import Tensor
from tuili.weights.checkpoint import open_checkpoint
from tuili.weights.quantizing import check_quantizable, quantize_tensor, quantized_weights
from tuili.weights.recipes import RECIPES, find_recipe
from tuili.weights.tensor_table import TensorTable

# How many matrices llama-quantize of 2026-10 gives each format, without an importance matrix; every one was compared.
SMOLLM2 = {
    "q4_0": {"Q8_0": 1, "Q4_0": 210},
    "q4_1": {"Q8_0": 1, "Q4_1": 210},
    "q5_0": {"Q8_0": 1, "Q5_0": 210},
    "q5_1": {"Q8_0": 1, "Q5_1": 210},
    "q8_0": {"Q8_0": 211},
    "q6_k": {"Q8_0": 181, "Q6_K": 30},
    "q2_k": {"Q8_0": 1, "Q4_0": 180, "Q3_K": 30},
    "q2_k_s": {"Q8_0": 1, "Q4_0": 180, "Q4_K": 3, "Q2_K": 27},
    "q3_k_s": {"Q8_0": 1, "Q4_0": 180, "Q3_K": 30},
    "q3_k_m": {"Q8_0": 1, "Q4_0": 120, "Q5_0": 58, "Q5_1": 2, "Q5_K": 1, "Q4_K": 29},
    "q3_k_l": {"Q8_0": 1, "Q4_0": 120, "Q5_1": 60, "Q5_K": 30},
    "q4_k_s": {"Q8_0": 1, "Q5_0": 176, "Q5_1": 4, "Q5_K": 3, "Q4_K": 27},
    "q4_k_m": {"Q8_0": 15, "Q5_0": 166, "Q6_K": 14, "Q4_K": 16},
    "q5_k_s": {"Q8_0": 1, "Q5_1": 180, "Q5_K": 30},
    "q5_k_m": {"Q8_0": 15, "Q5_1": 166, "Q6_K": 14, "Q5_K": 16},
    "iq4_nl": {"Q8_0": 1, "IQ4_NL": 207, "Q5_K": 3},
    "iq4_xs": {"Q8_0": 1, "IQ4_NL": 180, "Q5_K": 3, "IQ4_XS": 27},
    "f16": {"F16": 211},
    "bf16": {"BF16": 211},
}
GEMMA3 = {  # four query heads read each value head
    "q2_k": {"Q8_0": 1, "Q4_0": 72, "Q3_K": 36, "Q5_0": 18},
    "q2_k_s": {"Q8_0": 1, "Q4_0": 72, "Q2_K": 34, "Q5_0": 18, "Q4_K": 2},
    "q4_k_m": {"Q8_0": 10, "Q5_0": 81, "Q4_K": 27, "Q6_K": 9},
    "iq4_xs": {"Q8_0": 1, "IQ4_NL": 72, "IQ4_XS": 34, "Q5_1": 18, "Q5_K": 2},
}


def formats(spec: ModelSpec, recipe: str) -> dict[str, int]:
    shapes = {name: shape for name, shape in tensor_shapes(spec).items() if len(shape) == 2}
    found = [RECIPES[recipe].format_of(name, shape[1], spec) for name, shape in shapes.items()]
    return dict(Counter(f.name for f in found if f is not None))


def test_smollm2_is_mixed_as_llama_cpp_mixes_it(smollm2_gguf: Path) -> None:
    spec = open_checkpoint(smollm2_gguf).spec
    assert {recipe: formats(spec, recipe) for recipe in RECIPES} == SMOLLM2


def test_gemma3_is_mixed_as_llama_cpp_mixes_it(gemma3_gguf: Path) -> None:
    spec = open_checkpoint(gemma3_gguf).spec
    assert {recipe: formats(spec, recipe) for recipe in GEMMA3} == GEMMA3


def test_names_of_recipes() -> None:
    assert find_recipe("Q4_K_M") is find_recipe("q4_k") is RECIPES["q4_k_m"]
    assert find_recipe("q3_k") is RECIPES["q3_k_m"]
    for wrong in ("", "q4", "awq", "Q4_K_M "):
        with pytest.raises(InvalidRequestError, match=r"^quantization must be one of q4_0, q4_1, "):
            find_recipe(wrong)


def test_rows_that_no_group_divides_have_no_format() -> None:
    spec = decoder()
    assert RECIPES["q4_k_m"].format_of("layers.0.up_proj.weight", 48, spec) is None
    assert RECIPES["f16"].format_of("layers.0.up_proj.weight", 48, spec) is quant.BY_NAME["F16"]


def table(weights: Mapping[str, Tensor]) -> TensorTable:
    return TensorTable({name: partial(weights.__getitem__, name) for name in weights})


@pytest.fixture
def spec() -> ModelSpec:
    return decoder(layer(mlp=MlpSpec(intermediate_size=256)), hidden_size=64, tie_word_embeddings=True)


def test_float_matrices_become_narrower_and_nothing_else(spec: ModelSpec) -> None:
    weights = random_weights(spec, "F32", q_proj="Q4_0", k_proj="F16")
    found = quantized_weights(table(weights), spec, RECIPES["q4_k_m"], quantize_tensor)
    assert list(found) == list(weights)
    for name, tensor in weights.items():
        if len(tensor.shape) == 1 or "q_proj" in name:
            assert found[name].format is tensor.format
            assert found[name].data is tensor.data
    assert {n.split(".")[-2]: found[n].format.name for n in found if len(weights[n].shape) == 2} == {
        "embed_tokens": "Q8_0",
        "q_proj": "Q4_0",
        "k_proj": "Q5_0",
        "v_proj": "Q8_0",
        "o_proj": "Q5_0",
        "gate_proj": "Q5_0",
        "up_proj": "Q5_0",
        "down_proj": "Q6_K",
    }
    name = "layers.0.down_proj.weight"
    assert found[name].shape == weights[name].shape
    np.testing.assert_allclose(found[name].dequantize(), weights[name].dequantize(), atol=0.03)


def test_what_is_as_narrow_already_stays(spec: ModelSpec) -> None:
    for kind in ("F16", "BF16"):
        with pytest.raises(InvalidRequestError, match=f"the weights are {kind} already, only wider floats"):
            quantized_weights(table(random_weights(spec, kind)), spec, RECIPES["bf16"], quantize_tensor)
    with pytest.raises(InvalidRequestError, match="quantization='q2_k': the weights are Q8_0 already"):
        quantized_weights(table(random_weights(spec, "Q8_0")), spec, RECIPES["q2_k"], quantize_tensor)


def test_learned_positions_are_looked_up_as_they_are() -> None:
    spec = decoder(position="learned")
    found = quantized_weights(table(random_weights(spec, "F32")), spec, RECIPES["q8_0"], quantize_tensor)
    assert found["embed_positions.weight"].format.name == "F32"
    assert found["embed_tokens.weight"].format.name == "Q8_0"


def test_gains_of_each_head_stay() -> None:
    spec = decoder(layer(qk_norm="each_head", head_dim=32), hidden_size=64)
    found = quantized_weights(table(random_weights(spec, "F32")), spec, RECIPES["q8_0"], quantize_tensor)
    assert found["layers.0.q_norm.weight"].format.name == "F32"
    assert found["layers.0.q_proj.weight"].format.name == "Q8_0"


def test_what_can_be_quantized_is_seen_without_a_value(spec: ModelSpec) -> None:
    def read() -> Tensor:
        raise AssertionError("a weight was read")

    names = tensor_shapes(spec)
    weights = TensorTable(dict.fromkeys(names, read), dict.fromkeys(names, lambda: "F16"))
    check_quantizable(weights, spec, RECIPES["q8_0"])
    with pytest.raises(InvalidRequestError, match="the weights are F16 already"):
        check_quantizable(weights, spec, RECIPES["bf16"])


def test_large_tensors_are_quantized_in_chunks() -> None:
    values = np.random.default_rng(0).standard_normal((65_537, 96)).astype(np.float32)
    tensor = Tensor(quant.BY_NAME["F32"], values.shape, values.view(np.uint8))
    found = quantize_tensor(quant.BY_NAME["Q8_0"], tensor, "a")
    np.testing.assert_allclose(found.dequantize(), values, atol=0.03)
    values[-1, -1] = np.nan
    with pytest.raises(ModelFileError, match=r"^weight a is not finite, which cannot be quantized$"):
        quantize_tensor(quant.BY_NAME["Q8_0"], tensor, "a")
