"""What the CPU backend is meant to reach, and which of it the measured rows reach. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cpu.session import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """At least `factor` times every peer whose name begins with `peer`; or, where given, `share` of the machine."""

    measure: str
    factor: float | None = None
    peer: str = ""
    share: float | None = None

    def text(self) -> str:
        parts = []
        if self.factor is not None:
            parts.append(f"{self.factor:g}x {self.peer or 'the best peer'}")
        if self.share is not None:
            parts.append(f"{self.share:.0%} of the probe")
        return " or ".join(parts)


TARGETS: Mapping[str, Sequence[Target]] = {
    "smollm2": (
        Target(measure="prefill 512", factor=1.35),
        Target(measure="prefill 512", factor=10, peer="llama.cpp Q4_1"),
        Target(measure="decode B=1", factor=2.2, share=0.9),
        Target(measure="decode B=16", factor=4),
        Target(measure="decode B=32", factor=4),
        Target(measure="decode B=1, context 4096", factor=3, peer="llama.cpp"),
    ),
    "gemma3": (
        Target(measure="prefill 512", factor=3.5, peer="llama.cpp"),
        Target(measure="decode B=1", factor=2),
        Target(measure="decode B=16", factor=6),
        Target(measure="decode B=32", factor=6),
    ),
    "qwen3-q4_k_m": (
        Target(measure="prefill 512", factor=1.5),
        Target(measure="prefill 512", share=0.6),
        Target(measure="decode B=1", factor=1.4),
        Target(measure="decode B=1", share=0.85),
        Target(measure="decode B=16", factor=3),
        Target(measure="decode B=32", factor=3),
    ),
    "qwen3-q8_0": (
        Target(measure="prefill 512", factor=1.5),
        Target(measure="prefill 512", share=0.6),
        Target(measure="decode B=1", factor=1.4),
        Target(measure="decode B=1", share=0.85),
        Target(measure="decode B=16", factor=3.5),
        Target(measure="decode B=32", factor=3.5),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One target beside what was measured."""

    target: Target
    factor: float | None
    share: float | None

    @property
    def is_reached(self) -> bool:
        by_factor = self.target.factor is not None and self.factor is not None and self.factor >= self.target.factor
        by_share = self.target.share is not None and self.share is not None and self.share >= self.target.share
        return by_factor or by_share

    def text(self) -> str:
        parts = []
        if self.target.factor is not None and self.factor is not None:
            parts.append(f"{self.factor:.2f}x")
        if self.target.share is not None and self.share is not None:
            parts.append(f"{self.share:.0%}")
        return ", ".join(parts)


def verdicts(model: str, rows: Sequence[Row], shares: Mapping[str, float]) -> Iterator[Verdict]:
    """Every target of `model` whose workload was measured; the factor is the one over the closest peer meant."""
    by_measure = {row.measure: row for row in rows}
    for target in TARGETS[model]:
        if (row := by_measure.get(target.measure)) is not None:
            meant = [ratio for name, ratio in row.ratios.items() if name.startswith(target.peer)]
            yield Verdict(target=target, factor=min(meant, default=None), share=shares.get(target.measure))
