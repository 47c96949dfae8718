"""The attention kernels against their plain twin, torch's own attention, and themselves in other company."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tuili.backends.torch.ops import AttentionConstants, LayerCache
from tuili.backends.torch.ops.plain import PlainOps

pytest.importorskip("triton")

from support.attention_cases import constants, plan_of, random_step
from tuili.backends.torch.ops import triton_attention
from tuili.backends.torch.ops.triton_ops import TritonOps

CPU = torch.device("cpu")
FAST, DETERMINISTIC = TritonOps(CPU, False), TritonOps(CPU, True)
CHUNK = 32
MIXED = ((1, 6, 1, 17), (CHUNK + 20, 6, 3, 50))  # decodes, a prompt, a chunk of one
TOLERANCE = {torch.float32: 6e-6, torch.float16: 4e-3}
# exp(2 x) = inf makes the hyperbolic tangent 1, the right limit.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

CASES = {
    "plain": {},
    "window": {"window": 23},
    "wide window": {"window": CHUNK + 5},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": True},
    "alibi": {"alibi": True},
    "all": {"window": 40, "softcap": 3.0, "sinks": True, "alibi": True},
}


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is slow: short texts have many chunks here."""
    monkeypatch.setattr(triton_attention, "CHUNK", CHUNK)


@pytest.mark.parametrize("case", sorted(CASES))
def test_mixed_batches(case: str) -> None:
    step = random_step(*MIXED, num_heads=3, num_kv_heads=1, head_dim=24)
    a = constants(3, **CASES[case])
    expected = PlainOps().attend(step.queries, step.cache, step.plan, a)
    for ops in (FAST, DETERMINISTIC) if case in ("plain", "all") else (FAST,):
        found = ops.attend(step.queries, step.cache, step.plan, a)
        assert float((found - expected).abs().max()) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("cache_dtype", [None, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(2, 2, 16), (7, 1, 64), (2, 1, 136)])
def test_shapes_and_dtypes(num_heads: int, num_kv_heads: int, head_dim: int, cache_dtype: torch.dtype | None) -> None:
    dtype = torch.float32 if head_dim == 136 else torch.float16
    step = random_step((1, 3, 1), (33, 5, 0), num_heads, num_kv_heads, head_dim, dtype, cache_dtype)
    a = constants(num_heads, window=17, sinks=head_dim == 64)
    expected = PlainOps().attend(step.queries, step.cache, step.plan, a)
    for ops in (FAST, DETERMINISTIC):
        found = ops.attend(step.queries, step.cache, step.plan, a)
        assert float((found.float() - expected.float()).abs().max()) < TOLERANCE[dtype]
        assert bool((found[-1] == 0).all())  # a row that only fills up a graph


def test_torchs_own_attention_agrees() -> None:
    step = random_step((1, 18), (50, 18), num_heads=4, num_kv_heads=2, head_dim=32)
    found = FAST.attend(step.queries, step.cache, step.plan, AttentionConstants(32**-0.5))
    for rows, s in ((slice(0, 1), 0), (slice(1, 19), 1)):
        q, k, v = (x.transpose(0, 1)[None] for x in (step.queries[rows], step.keys[s], step.values[s]))
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=s == 1, enable_gqa=True)[0].transpose(0, 1)
        assert torch.allclose(found[rows], expected, atol=2e-6)


@pytest.mark.usefixtures("placeless_dot")
def test_a_row_does_not_know_its_company() -> None:
    """A decode alone, and a prompt alone, have the very bits they have in a mixed batch."""
    step = random_step(*MIXED, num_heads=3, num_kv_heads=1, head_dim=16)
    a = constants(3)
    table = step.plan.block_table
    for ops in (FAST, DETERMINISTIC):
        together = ops.attend(step.queries, step.cache, step.plan, a)
        for s, begin, end in ((0, 0, 1), (3, 8, 25)):
            plan = plan_of((end - begin,), (MIXED[1][s],), table[s : s + 1])
            assert torch.equal(ops.attend(step.queries[begin:end], step.cache, plan, a), together[begin:end])


def test_long_texts_are_decoded_as_many_at_a_time_as_the_scratch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    step = random_step((1, 6, 1, 1, 1), (CHUNK + 20, 6, 3, 90, 40), num_heads=3, num_kv_heads=1, head_dim=16)
    a = constants(3, sinks=True)
    whole = FAST.attend(step.queries, step.cache, step.plan, a)
    one = 4 * 3 * 3 * (16 + 2)  # bytes of a text with three chunks
    for limit, expected in ((2 * one + 7, 2 * one), (1, one)):
        sizes: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(triton_attention, "DECODE_SCRATCH", limit)
            patch.setattr(torch, "empty", _noting(sizes, torch.empty))
            found = FAST.attend(step.queries, step.cache, step.plan, a)
        assert torch.equal(found, whole)
        assert sum(sizes) == 4 * found.numel() + expected


def _noting(sizes: list[int], real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def empty(*shape: Any, **options: Any) -> torch.Tensor:
        made = real(*shape, **options)
        sizes.append(made.numel() * made.element_size())
        return made

    return empty


@pytest.mark.usefixtures("placeless_dot")
def test_deterministic_rows_do_not_know_how_their_prompt_was_cut() -> None:
    step = random_step((20,), (50,), num_heads=3, num_kv_heads=1, head_dim=16)
    a = constants(3, window=30)
    whole = DETERMINISTIC.attend(step.queries, step.cache, step.plan, a)
    for begin, end in ((0, 1), (1, 8), (8, 20)):
        plan = plan_of((end - begin,), (30 + end,), step.plan.block_table)
        assert torch.equal(DETERMINISTIC.attend(step.queries[begin:end], step.cache, plan, a), whole[begin:end])


def test_caches_of_any_stride() -> None:
    """Keys and values as halves of one tensor."""
    step = random_step((1, 4), (20, 9), num_heads=2, num_kv_heads=1, head_dim=16)
    both = torch.stack((step.cache.keys, step.cache.values), 1)
    halves = LayerCache(both[:, 0], both[:, 1])
    a = constants(2)
    found = FAST.attend(step.queries, halves, step.plan, a)
    assert torch.equal(found, FAST.attend(step.queries, step.cache, step.plan, a))
