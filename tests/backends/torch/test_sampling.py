"""The device's choices against the reference's, row by row, and that they wait for nothing."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from support.batches import sampling_arrays
from tuili.backend import SamplerKind as Kind
from tuili.backends.reference.sampling import choose
from tuili.backends.torch import draw_plan
from tuili.backends.torch.sampling import RowRules, StepDraws, choose_tokens, plan_draws
from tuili.backends.torch.step import Uploader

pytestmark = pytest.mark.no_cover  # the same lines thousands of times
CPU = torch.device("cpu")
Rows = list[dict[str, Any]]


def planned(rows: Rows, vocab_size: int, mask: np.ndarray | None = None, tile: int = 1 << 20) -> StepDraws:
    rules = RowRules(sampling_arrays(rows), mask, np.full(len(rows), -1, np.int32))
    return plan_draws(rules, tile, vocab_size, Uploader(CPU), CPU)


def drawn(logits: np.ndarray, rows: Rows, mask: np.ndarray | None = None, *, tile: int = 1 << 20) -> list[int]:
    draws = planned(rows, logits.shape[1], mask, tile)
    assert not len(draws.host_rows)
    found: list[int] = []
    for first in range(0, len(rows), tile):
        part = torch.from_numpy(logits[first : first + tile].copy())
        targets = torch.full((len(part),), -1, dtype=torch.int32)
        found += choose_tokens(part, first, draws, targets).token_ids.tolist()
    return found


def random_row(rng: random.Random, vocab_size: int) -> dict[str, Any]:
    """A plain row, or one with a chain of any samplers in the default order."""
    row: dict[str, Any] = {"seed": rng.getrandbits(64), "position": rng.randrange(1 << 31)}
    row["sample_index"] = rng.randrange(9)
    row["temperature"] = rng.choice([0.0, 0.3, 0.8, 1.0, 1.7])
    if rng.random() < 0.4:
        row["bias"] = {rng.randrange(vocab_size): rng.choice([-math.inf, -3.0, 0.5, 4.0]) for _ in range(4)}
    if rng.random() < 0.5:
        row |= {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": rng.choice([-0.4, 0.7])}
        row["history"] = {rng.randrange(vocab_size): rng.randrange(4) for _ in range(8)}
    if rng.random() < 0.4:
        row |= {"top_k": rng.choice([0, 1, 5, vocab_size + 3]), "top_p": rng.choice([0.2, 0.9, 1.0])}
        return row | {"min_p": rng.choice([0.0, 0.07, 1.0])}
    keep = rng.choice([0, 1, 4, vocab_size + 1])
    steps = [
        (Kind.PENALTIES,),
        (Kind.DRY,),
        (Kind.TEMPERATURE, row["temperature"] or 1.0, rng.choice([0.0, 0.5]), rng.choice([0.6, 1.0, 2.0])),
        (Kind.TOP_N_SIGMA, rng.choice([0.5, 1.0, 2.5])),
        (Kind.MIN_P, rng.choice([0.02, 0.3]), keep),
        (Kind.TOP_K, rng.choice([1, 3, 20, 1 << 24])),
        (Kind.TYPICAL_P, rng.choice([0.1, 0.5, 0.95]), keep),
        (Kind.TOP_P, rng.choice([0.1, 0.5, 0.95]), keep),
        (Kind.XTC, rng.choice([0.5, 1.0]), rng.choice([0.02, 0.1, 0.4]), keep),
    ]
    row["dry"] = {rng.randrange(vocab_size): rng.choice([1.5, 1e30]) for _ in range(3)}
    return row | {"chain": [step for step in steps if rng.random() < 0.45]}


def random_bits(rng: np.random.Generator, num_rows: int, vocab_size: int) -> np.ndarray:
    is_allowed = rng.random((num_rows, -(-vocab_size // 32) * 32)) < rng.choice([0.02, 0.5, 1.0], (num_rows, 1))
    return np.packbits(is_allowed, axis=1, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("vocab_size", [7, 101, 1500])
@pytest.mark.parametrize("kind", ["normal", "ties", "banned", "masked"])
def test_random_rows_choose_as_the_reference(kind: str, vocab_size: int) -> None:
    """One in a thousand may differ: where a sum is at an edge, in its last bit."""
    num_rows = 500
    rng, draw = np.random.default_rng(vocab_size), random.Random(f"{kind}{vocab_size}")
    logits = rng.normal(0, 3, (num_rows, vocab_size)).astype(np.float32)
    if kind == "ties":
        logits = np.round(logits / 2).astype(np.float32) * 2
    if kind == "banned":
        logits[rng.random(logits.shape) < 0.5] = -np.inf
        logits[:, 3] = 1.25
    rows = [random_row(draw, vocab_size) for _ in range(num_rows)]
    mask = random_bits(rng, num_rows, vocab_size) if kind == "masked" else None
    found = drawn(logits, rows, mask, tile=173)
    expected = choose(logits, sampling_arrays(rows), mask).token_ids.tolist()
    different = [(r, rows[r]) for r in range(num_rows) if found[r] != expected[r]]
    assert len(different) <= num_rows // 1000 + 1, different[:3]


VOCAB = 10
ROWS = st.integers(0, 2**32).map(lambda seed: random_row(random.Random(seed), VOCAB))
LOGITS = st.lists(st.sampled_from([-math.inf, -8.0, -1.5, -0.25, 0.0, 0.3, 1.0, 1.75]), min_size=VOCAB, max_size=VOCAB)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(LOGITS, ROWS), min_size=1, max_size=4), st.none() | st.sets(st.integers(0, VOCAB - 1)))
def test_few_levels_choose_as_the_reference(
    rows: list[tuple[list[float], dict[str, Any]]], allowed: set[int] | None
) -> None:
    logits = np.array([[*values[:-1], 0.7] for values, _ in rows], np.float32)
    mask = None if allowed is None else np.full((len(rows), 1), sum(1 << i for i in allowed), np.uint32)
    described = [row for _, row in rows]
    assert drawn(logits, described, mask) == choose(logits, sampling_arrays(described), mask).token_ids.tolist()


def test_a_sort_of_all_and_of_the_best_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, draw = np.random.default_rng(1), random.Random(1)
    logits = np.round(rng.normal(0, 3, (300, 200)).astype(np.float32), 1)
    rows = [random_row(draw, 200) for _ in range(300)]
    found = drawn(logits, rows)
    monkeypatch.setattr(draw_plan, "NARROW", 0)
    assert drawn(logits, rows) == found
    monkeypatch.setattr(draw_plan, "_PART_LOGITS", 200 * 7)
    assert drawn(logits, rows) == found


def test_rows_are_put_together_by_the_candidates_they_look_at() -> None:
    rows: Rows = [
        {},
        {"temperature": 0.8},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 40},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 0.8, "min_p": 0.1},
        {"temperature": 0.8, "chain": [(Kind.TOP_K, 30), (Kind.TEMPERATURE, 0.8)]},
        {"temperature": 0.8, "chain": [(Kind.TEMPERATURE, 0.8), (Kind.MIROSTAT_2, 5.0, 0.1)]},
    ]
    draws = planned(rows, 5000)
    assert draws.host_rows.tolist() == [6, 7]
    assert [(part.width, part.rows.tolist()) for part in draws.parts[0]] == [(0, [1, 5]), (40, [2, 3]), (5000, [4])]


class Watch(TorchDispatchMode):
    """Names of operations whose result or shape the host must know."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        is_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.seen.add("index by a mask" if is_mask else name)
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> set[str]:
        return {name for name in self.seen if name in self.WAITING or name == "index by a mask"}


def test_nothing_is_read_on_the_way() -> None:
    draw = random.Random(2)
    rows: Rows = [{}, {"temperature": 0.8, "top_p": 0.9}, *(random_row(draw, 64) for _ in range(60))]
    draws = planned(rows, 64, np.full((62, 2), 0xFFFFFFFF, np.uint32), 62)
    logits, targets = torch.randn(62, 64), torch.full((62,), -1, dtype=torch.int32)
    with Watch() as watch:
        choose_tokens(logits, 0, draws, targets)
    assert {"sort", "cumsum", "searchsorted", "index_copy_"} <= watch.seen
    assert watch.waits == set()
    with Watch() as watch:
        assert logits[logits > 0].sum().item() > 0
    assert watch.waits == {"index by a mask", "_local_scalar_dense"}


def test_no_choice_where_logits_are_damaged() -> None:
    logits = np.array([[np.nan, 1.0], [1.0, 2.0], [-np.inf, -np.inf], [np.inf, 0.0]], np.float32)
    assert drawn(logits, [{"temperature": 0.5, "top_k": 1}] * 4) == [-1, 1, -1, -1]


def test_vanishing_weights_are_never_drawn() -> None:
    logits = np.repeat(np.array([[-1000.0, 0.0, -1000.0]], np.float32), 200, axis=0)
    assert set(drawn(logits, [{"temperature": 0.01, "seed": seed} for seed in range(200)])) == {1}
