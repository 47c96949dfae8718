"""The plain operations against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tuili.backends.reference import layers as reference
from tuili.backends.torch.ops import AttentionConstants, AttentionPlan, DenseWeight, LayerCache, plain
from tuili.backends.torch.ops.plain import ACTIVATIONS, PlainOps
from tuili.models.spec import AttentionSpec

OPS = PlainOps()


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("has_slopes", [False, True])
def test_attention_is_the_references(
    window: int | None, softcap: float | None, has_sinks: bool, has_slopes: bool
) -> None:
    rng = np.random.default_rng(0)
    num_heads, num_kv_heads, head_dim, block_size, seq_len, num_queries = 6, 2, 16, 8, 29, 5
    spec = AttentionSpec(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, scale=0.3,
        sliding_window=window, logit_softcap=softcap, sinks=has_sinks,
    )  # fmt: skip
    queries = rng.standard_normal((num_queries, num_heads, head_dim), np.float32)
    keys, values = rng.standard_normal((2, seq_len, num_kv_heads, head_dim), np.float32)
    sinks = rng.standard_normal(num_heads).astype(np.float32) if has_sinks else None
    slopes = rng.random(num_heads).astype(np.float32) if has_slopes else None

    table = np.array([[3, 1, 6, 2]], np.int32)
    positions = np.arange(seq_len)
    slots = torch.from_numpy((table[0, positions // block_size] * block_size + positions % block_size).astype(np.int32))
    shape = (7, block_size, num_kv_heads, head_dim)
    cache = LayerCache(torch.zeros(shape), torch.zeros(shape))
    OPS.write_cache(cache, torch.from_numpy(keys), torch.from_numpy(values), slots)
    plan = AttentionPlan(
        torch.tensor([0, num_queries], dtype=torch.int32), torch.tensor([seq_len], dtype=torch.int32),
        torch.from_numpy(table), num_queries, seq_len, 0,
    )  # fmt: skip
    constants = AttentionConstants(
        0.3, window, softcap,
        None if sinks is None else torch.from_numpy(sinks), None if slopes is None else torch.from_numpy(slopes),
    )  # fmt: skip
    found = OPS.attend(torch.from_numpy(queries), cache, plan, constants)
    expected = reference.attend(spec, queries, keys, values, seq_len - num_queries, 0, slopes, sinks)
    np.testing.assert_allclose(found.reshape(num_queries, -1).numpy(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_the_references(name: str) -> None:
    gate, up = np.random.default_rng(0).standard_normal((2, 3, 40), np.float32) * 4
    found = OPS.activate(torch.from_numpy(gate), torch.from_numpy(up), name).numpy()
    np.testing.assert_allclose(found, reference.ACTIVATIONS[name](gate) * up, rtol=1e-5, atol=5e-6)
    alone = OPS.activate(torch.from_numpy(gate), None, name).numpy()
    np.testing.assert_allclose(alone, reference.ACTIVATIONS[name](gate), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_norms_are_the_references(kind: str, has_bias: bool) -> None:
    rng = np.random.default_rng(0)
    x, residual = rng.standard_normal((2, 5, 48), np.float32)
    gain, bias = rng.standard_normal((2, 48), np.float32)
    torch_bias = torch.from_numpy(bias) if has_bias else None
    arguments = (torch.from_numpy(gain), torch_bias, 1e-5, kind)
    expected = reference.normalize(x, gain, bias if has_bias else None, 1e-5, kind)
    np.testing.assert_allclose(OPS.norm(torch.from_numpy(x), *arguments).numpy(), expected, rtol=1e-5, atol=1e-5)
    normed, total = OPS.add_and_norm(torch.from_numpy(x), torch.from_numpy(residual), *arguments, 0.5)
    np.testing.assert_allclose(total.numpy(), residual + np.float32(0.5) * x, rtol=1e-6, atol=1e-6)
    expected = reference.normalize(total.numpy(), gain, bias if has_bias else None, 1e-5, kind)
    np.testing.assert_allclose(normed.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_caches_keep_heads_within_a_step(dtype: torch.dtype) -> None:
    shape = (4, 8, 2, 16)
    cache = LayerCache(
        torch.zeros(shape).to(dtype), torch.zeros(shape).to(dtype), torch.zeros(shape[:3]), torch.zeros(shape[:3])
    )
    keys, values = torch.randn(2, 3, 2, 16, generator=torch.manual_seed(0))
    OPS.write_cache(cache, keys, values, torch.tensor([5, -1, 30], dtype=torch.int32))
    assert cache.key_scales is not None
    found = cache.keys.float() * cache.key_scales[..., None]
    top = keys.abs().amax(-1, keepdim=True)
    for block, offset, token in ((0, 5, 0), (3, 6, 2)):
        assert bool(((found[block, offset] - keys[token]).abs() <= top[token] * 0.04).all())
    assert int((cache.key_scales > 0).sum()) == 4  # the token without a slot left nothing
    expected = reference_int8(keys[0]) if dtype == torch.int8 else found[0, 5]
    assert torch.allclose(found[0, 5], expected, atol=1e-6)


def reference_int8(heads: torch.Tensor) -> torch.Tensor:
    from tuili.backends.reference.cache import through_int8

    return torch.from_numpy(through_int8(heads.numpy()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_that_are_not_rounded_to_the_inputs_dtype(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows of the weight at a time, the last of them fewer."""
    monkeypatch.setattr(plain, "_WIDENED", 7 * 32)
    shapes = ((3, 32), (17, 32), (17,))
    x, weight, bias = (torch.randn(shape, generator=torch.manual_seed(0)).to(dtype) for shape in shapes)
    expected = x.double() @ weight.double().T + bias.double()
    found = OPS.linear(x, DenseWeight(weight), bias, torch.float32)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-5)
    rounded = OPS.linear(x, DenseWeight(weight), bias).float().numpy()
    assert not np.allclose(rounded, expected.numpy(), rtol=0, atol=1e-5)
    assert OPS.linear(x[:0], DenseWeight(weight), bias, torch.float32).shape == (0, 17)
    assert OPS.finish_logits(found, 1.0, None) is found
