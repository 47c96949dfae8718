"""How much of a draft is computed: what pays by the costs of this machine, and nothing where it does not."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuili.engine.drafts.speculative_width import FIRST_PROBE, WidthChooser
from tuili.engine.step_costs import Foreseen, StepCosts

CHANCES = st.lists(st.lists(st.floats(0.0, 1.0), max_size=5), min_size=1, max_size=3)


def by_tenths(num_rows: int) -> float:
    return 9.0 + num_rows


def costs(seconds: dict[int, float], foreseen: Foreseen = by_tenths) -> StepCosts:
    table = StepCosts(foreseen)
    for num_rows, value in seconds.items():
        table.observe(num_rows, value)
    return table


def chooser(table: StepCosts, drafting: float = 0.0) -> WidthChooser:
    """Guessing the next token of any number of drafts takes `drafting` seconds."""
    return WidthChooser(table, lambda num_drafts: drafting if num_drafts else 0.0, probe_gain=1.3)


def test_costs_are_interpolated_and_continued() -> None:
    table = costs({1: 1.0, 5: 2.0, 9: 6.0})
    assert [table.seconds(n) for n in (1, 3, 5, 7, 9)] == pytest.approx([1.0, 1.5, 2.0, 4.0, 6.0])
    assert table.seconds(11) == pytest.approx(8.0)
    assert costs({4: 2.0}).seconds(2) == pytest.approx(2.0)
    assert costs({1: 2.0}).seconds(6) == pytest.approx(2.0 * 1.5)
    assert StepCosts(by_tenths).seconds(3) == 1.0


def test_a_disturbance_passes_and_a_lasting_change_is_learned() -> None:
    table = costs({1: 1.0, 8: 2.0})
    table.observe(8, 50.0)
    assert table.seconds(8) < 2.2
    for _ in range(60):
        table.observe(8, 4.0)
    assert table.seconds(8) == pytest.approx(4.0, rel=0.05)
    for _ in range(20):
        table.observe(8, 2.0)
    assert table.seconds(8) == pytest.approx(2.0, rel=0.05)


def test_cold_first_steps_are_not_believed() -> None:
    table = costs({1: 9.0})
    for seconds in (1.0, 3.0, 1.2):
        table.observe(1, seconds)
    assert table.seconds(1) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(("row_cost", "least", "most"), [(1.0, 0, 20), (0.02, 180 * 8, 200 * 8)])
def test_nothing_has_to_be_measured_beforehand(row_cost: float, least: int, most: int) -> None:
    table = StepCosts(by_tenths)
    subject, drafted = chooser(table), 0
    for _ in range(200):
        (width,) = subject.choose([(0.9,) * 8], 99)
        drafted += width
        table.observe(1 + width, 1.0 + row_cost * width)
    assert least <= drafted <= most


def test_what_guessing_takes_counts() -> None:
    free = costs(dict.fromkeys(range(1, 20), 1.0))
    assert chooser(free, drafting=0.1).choose([(0.9,) * 9], 99) == [9]
    assert chooser(free, drafting=0.2).choose([(0.9,) * 9], 99) == [7]
    assert chooser(free, drafting=1.0).choose([(0.9,) * 9], 99) == [0]


def test_a_slower_moment_seen_at_one_size_moves_the_others_along() -> None:
    table = costs({1: 1.0, 8: 2.0})
    for _ in range(100):
        table.observe(8, 3.0)
    assert table.seconds(1) == pytest.approx(1.5**0.5, rel=0.05)


def test_noise_at_one_size_does_not_carry_the_others_away() -> None:
    table = costs({1: 1.0, 16: 4.0})
    for i in range(10_000):
        table.observe(1, 1.0 + 0.3 * (i % 2))
    assert 3.8 < table.seconds(16) < 4.6


@given(chances=CHANCES, slope=st.floats(0.0, 1.0), max_rows=st.integers(0, 12))
def test_the_choice_is_the_best_of_all(chances: list[list[float]], slope: float, max_rows: int) -> None:
    table = costs({n: 1.0 + slope * (n - 1) for n in range(1, 20)})
    widths = chooser(table).choose(chances, max_rows)

    def rate(candidate: tuple[int, ...]) -> float:
        expected = float(len(chances))
        for width, steps in zip(candidate, chances, strict=True):
            chance = 1.0
            for step in steps[:width]:
                chance *= step
                expected += chance
        return expected / table.seconds(len(chances) + sum(candidate))

    candidates = [c for c in itertools.product(*(range(len(c) + 1) for c in chances)) if sum(c) <= max_rows]
    best, none = max(map(rate, candidates)), rate((0,) * len(chances))
    assert sum(widths) <= max_rows
    assert rate(tuple(widths)) == pytest.approx(best if best >= 1.03 * none else none)


def test_rows_that_cost_nothing_are_used_and_rows_that_cost_as_much_as_a_step_are_not() -> None:
    good, poor = (0.9, 0.9, 0.9, 0.9), (0.1, 0.5)
    free, dear = costs({1: 1.0, 16: 1.02}), costs({n: float(n) for n in range(1, 17)})
    assert chooser(free).choose([good], 99) == [4]
    assert chooser(free).choose([poor], 99) == [2]
    assert chooser(dear).choose([good], 99) == [0]
    assert chooser(free).choose([good, (), poor], 3) == [3, 0, 0]


def test_a_step_takes_no_longer_than_readers_are_to_wait() -> None:
    table, good = costs({1: 1.0, 2: 1.2, 16: 4.0}), (0.99,) * 15
    assert chooser(table).choose([good], 99) == [15]  # 4 seconds for 14 tokens and more
    steady = WidthChooser(table, lambda _: 0.0, probe_gain=1.3, max_slowdown=2.0)
    (width,) = steady.choose([good], 99)
    assert table.seconds(1 + width) <= 1.5 < table.seconds(2 + width)


def test_steps_wider_than_any_that_ran_are_weighed_by_what_all_steps_took() -> None:
    table = costs({15: 20.0, 16: 20.0}, foreseen=lambda num_rows: 20.0 + num_rows)  # two that seem to cost the same
    assert table.seconds(106) == pytest.approx(20.0 * 126 / 36)
    steady = WidthChooser(table, lambda _: 0.0, probe_gain=1.3, max_slowdown=2.0)
    assert 0 < sum(steady.choose([(0.9,) * 15] * 16, 300)) <= 18


def test_one_bad_moment_does_not_end_drafting_for_those_who_are_not_to_wait() -> None:
    table, good = costs({1: 1.0, 16: 100.0}), (0.99,) * 15
    steady = WidthChooser(table, lambda _: 0.0, probe_gain=1.3, max_slowdown=2.0)
    widths = []
    for _ in range(FIRST_PROBE * 16):
        (width,) = steady.choose([good], 99)
        widths.append(width)
        table.observe(1 + width, 1.0 + 0.02 * width)
    assert widths[0] == 0
    assert steady.pays
    assert widths[-1] > 0


def test_what_does_not_pay_is_tried_ever_more_rarely_until_it_pays() -> None:
    table = costs({n: float(n) for n in range(1, 17)})
    subject, good = chooser(table), (0.9, 0.9, 0.9)
    tries = [i for i in range(FIRST_PROBE * 8) if subject.choose([good], 99) != [0]]
    assert tries == [FIRST_PROBE - 1, FIRST_PROBE * 3 - 1, FIRST_PROBE * 7 - 1]
    assert not any(any(subject.choose([(0.2,)], 99)) for _ in range(3000))
    for _ in range(200):
        for n in range(1, 17):
            table.observe(n, 1.0 + 0.01 * n)
    assert subject.choose([good], 99) == [3]
