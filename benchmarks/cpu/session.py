"""Interleaved rounds: everybody runs a workload in turn, with the machine's probe before each round. Prints nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import machine

from tuili.runtime.bench.workload import Workload, median_ratio

OURS = "tuili"


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One turn of everybody at one workload; rates are tokens per second."""

    measure: str
    bandwidth_gb_s: float
    peak_int8_ops: float
    tokens_per_s: Mapping[str, float]
    settings: Mapping[str, str]
    date: str


def run_rounds(
    measure: str,
    workload: Workload,
    contenders: Sequence[Any],
    num_rounds: int,
    num_threads: int,
    report: Callable[[Round], None],
) -> list[Round]:
    """`num_rounds` rounds, each beginning one contender further on, so that nobody always comes first."""
    rounds = []
    for index in range(num_rounds):
        shift = index % len(contenders)
        turn = [*contenders[shift:], *contenders[:shift]]
        bandwidth = machine.read_bandwidth_gb_s(num_threads)
        peak = machine.peak_int8_ops(num_threads)
        rates = {contender.name: contender.measure(workload).speed for contender in turn}
        settings = {c.name: c.settings(workload) for c in contenders if hasattr(c, "settings")}
        rounds.append(
            Round(
                measure=measure,
                bandwidth_gb_s=round(bandwidth, 2),
                peak_int8_ops=peak,
                tokens_per_s={name: round(rate, 2) for name, rate in rates.items()},
                settings=settings,
                date=time.strftime("%Y-%m-%dT%H:%M"),
            )
        )
        report(rounds[-1])
    return rounds


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What the rounds of one workload say."""

    measure: str
    tokens_per_s: Mapping[str, float]  # medians
    ratios: Mapping[str, float]  # ours over each peer's, median over rounds
    bandwidth_gb_s: float
    peak_int8_ops: float
    num_rounds: int

    @property
    def best_peer(self) -> str | None:
        """The peer that comes closest to us."""
        return min(self.ratios, key=lambda name: self.ratios[name], default=None)


def summary(measure: str, rounds: Sequence[Round]) -> Row:
    """Medians over rounds; a peer counts in the rounds it took part in."""
    names = list(dict.fromkeys(name for r in rounds for name in r.tokens_per_s))
    pairs = {n: [(r.tokens_per_s[OURS], r.tokens_per_s[n]) for r in rounds if n in r.tokens_per_s] for n in names}
    return Row(
        measure=measure,
        tokens_per_s={n: statistics.median(theirs for _, theirs in pairs[n]) for n in names},
        ratios={n: median_ratio(*map(list, zip(*pairs[n], strict=True))) for n in names if n != OURS},
        bandwidth_gb_s=statistics.median(r.bandwidth_gb_s for r in rounds),
        peak_int8_ops=statistics.median(r.peak_int8_ops for r in rounds),
        num_rounds=len(rounds),
    )
