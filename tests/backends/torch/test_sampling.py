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
from support.sampling_rows import Rows, random_bits, random_row
from tuili.backend import Choices
from tuili.backend import SamplerKind as Kind
from tuili.backends.reference.sampling import choose
from tuili.backends.torch import draw_plan
from tuili.backends.torch.sampling import Carried, RowRules, StepDraws, choose_tokens, plan_draws
from tuili.backends.torch.step import Uploader

pytestmark = pytest.mark.no_cover  # the same lines thousands of times
CPU = torch.device("cpu")


def planned(rows: Rows, vocab_size: int, mask: np.ndarray | None = None, tile: int = 1 << 20) -> StepDraws:
    rules = RowRules(sampling_arrays(rows), mask, np.full(len(rows), -1, np.int32))
    return plan_draws(rules, tile, vocab_size, Uploader(CPU), CPU)


def choices(
    logits: np.ndarray,
    rows: Rows,
    mask: np.ndarray | None = None,
    *,
    tile: int = 1 << 20,
    carried: np.ndarray | None = None,
) -> Choices:
    draws = planned(rows, logits.shape[1], mask, tile)
    found = []
    for first in range(0, len(rows), tile):
        part = torch.from_numpy(logits[first : first + tile].copy())
        coming = None if carried is None else Carried(torch.from_numpy(carried[first : first + tile]), part[:, 0])
        found.append(choose_tokens(part, first, draws, torch.full((len(part),), -1, dtype=torch.int32), coming))
    token_ids, states = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return Choices(token_ids, states)


def drawn(logits: np.ndarray, rows: Rows, mask: np.ndarray | None = None, *, tile: int = 1 << 20) -> list[int]:
    ids: list[int] = choices(logits, rows, mask, tile=tile).token_ids.tolist()
    return ids


@pytest.mark.parametrize("tile", [3, 40])
def test_a_carried_token_counts_as_if_it_had_been_sent(tile: int) -> None:
    rng, draw = np.random.default_rng(3), random.Random(3)
    logits = rng.normal(0, 3, (40, 11)).astype(np.float32)
    told, sent, tokens = [], [], rng.integers(0, 11, 40).astype(np.int32)
    for r, token_id in enumerate(tokens.tolist()):
        row = random_row(draw, 11) | {"repetition_penalty": 1.6, "frequency_penalty": 0.4, "presence_penalty": 0.3}
        history = {draw.randrange(11): draw.randrange(3) for _ in range(draw.choice([0, 2, 9]))}
        if r % 4:
            told.append(row | {"history": history | {-1: 0}})
            sent.append(row | {"history": history | {token_id: history.get(token_id, 0) + 1}})
        else:  # one that is not ahead, beside those that are
            told.append(row | {"history": history})
            sent.append(told[-1])
    found = choices(logits, told, tile=tile, carried=tokens)
    expected = choices(logits, sent, tile=tile)
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
    np.testing.assert_array_equal(found.sampler_state, expected.sampler_state)


@pytest.mark.parametrize("vocab_size", [7, 101, 1500])
@pytest.mark.parametrize("kind", ["normal", "ties", "banned", "masked"])
def test_random_rows_choose_as_the_reference(kind: str, vocab_size: int) -> None:
    """One in a thousand may differ: where a sum is at an edge, in its last bit."""
    num_rows = 250
    rng, draw = np.random.default_rng(vocab_size), random.Random(f"{kind}{vocab_size}")
    logits = rng.normal(0, 3, (num_rows, vocab_size)).astype(np.float32)
    if kind == "ties":
        logits = np.round(logits / 2).astype(np.float32) * 2
    if kind == "banned":
        logits[rng.random(logits.shape) < 0.5] = -np.inf
        logits[:, 3] = 1.25
    rows = [random_row(draw, vocab_size) for _ in range(num_rows)]
    mask = random_bits(rng, num_rows, vocab_size) if kind == "masked" else None
    found, expected = choices(logits, rows, mask, tile=173), choose(logits, sampling_arrays(rows), mask)
    is_same = found.token_ids == expected.token_ids
    assert (~is_same).sum() <= num_rows // 1000 + 1, [rows[r] for r in np.flatnonzero(~is_same)[:3]]
    states = found.sampler_state[is_same], expected.sampler_state[is_same]
    assert np.isfinite(states[1]).sum() > num_rows // 20
    np.testing.assert_allclose(*states, rtol=1e-4, atol=1e-5)


VOCAB = 10
ROWS = st.integers(0, 2**32).map(lambda seed: random_row(random.Random(seed), VOCAB))
LOGITS = st.lists(st.sampled_from([-math.inf, -8.0, -1.5, -0.25, 0.0, 0.3, 1.0, 1.75]), min_size=VOCAB, max_size=VOCAB)


@settings(max_examples=100, deadline=None)
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
    monkeypatch.setattr(draw_plan, "PART_LOGITS", 200 * 7)
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
    parts = planned(rows, 5000).parts[0]
    assert [(part.rows.tolist(), [step.kind for step in part.steps[2:]]) for part in parts] == [
        ([1, 5], [Kind.TEMPERATURE, Kind.MIN_P]),
        ([2, 3], [Kind.TEMPERATURE, Kind.TOP_K, Kind.TOP_P]),
        ([4], [Kind.TEMPERATURE, Kind.TOP_P]),
        ([6], []),
        ([7], []),
    ]
    assert [step.kind for part in parts[3:] for step in part.steps] == [
        *(Kind.TOP_K, Kind.TEMPERATURE),
        *(Kind.TEMPERATURE, Kind.MIROSTAT_2),
    ]
    assert parts[1].steps[3].most[0] == 40


LLAMA = (Kind.PENALTIES, Kind.DRY, Kind.TOP_N_SIGMA, Kind.TOP_K, Kind.TYPICAL_P, Kind.TOP_P, Kind.MIN_P, Kind.XTC)


def test_what_top_k_leaves_is_all_that_the_rest_works_on() -> None:
    """In llama.cpp's order, too: later samplers sort 40 candidates, not the vocabulary."""
    steps = {Kind.TOP_K: (40,), Kind.TYPICAL_P: (0.9, 1), Kind.TOP_P: (0.9, 1), Kind.MIN_P: (0.05, 1)}
    chain = [(kind, *steps[kind]) for kind in LLAMA if kind in steps] + [(Kind.TEMPERATURE, 0.8)]
    rows: Rows = [{"temperature": 0.8, "seed": seed, "chain": chain} for seed in range(50)]
    logits = np.random.default_rng(3).normal(0, 3, (50, 3000)).astype(np.float32)
    sorted_widths: set[int] = set()

    class Sorts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._schema.name.split("::")[1] in ("sort", "argsort"):
                sorted_widths.add(args[0].shape[-1])
            return func(*args, **(kwargs or {}))

    with Sorts():
        found = drawn(logits, rows)
    assert sorted_widths == {40}
    assert found == choose(logits, sampling_arrays(rows), None).token_ids.tolist()


def test_a_device_without_float64_has_its_rows_drawn_on_the_cpu() -> None:
    rows: Rows = [{"temperature": 0.8}, {}]
    rules = RowRules(sampling_arrays(rows), None, np.full(2, -1, np.int32))
    mps = torch.device("mps")
    (part,) = plan_draws(rules, 2, 50, Uploader(torch.device("meta")), mps).parts[0]
    assert part.rows.device == CPU


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
