"""The machine probes: every instruction set measures something, and nonsense is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tuili.backends.cpu import _native

ISAS: tuple[str, ...] = _native.kernels.available_isas()  # type: ignore[attr-defined]


@pytest.mark.parametrize("isa", [None, *ISAS])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_probes_measure_every_instruction_set(isa: str | None, num_threads: int) -> None:
    peak = _native.peak_ops(num_threads, 0.0, isa)
    assert set(peak) == {"int8", "float32"}
    for rate in (*peak.values(), _native.read_bandwidth(num_threads, 1 << 20, 0.0, isa)):
        assert math.isfinite(rate)
        assert rate > 1e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_threads": 0}, "num_threads is out of range"),
        ({"num_threads": 257}, "num_threads is out of range"),
        ({"seconds": -1.0}, "seconds is out of range"),
        ({"seconds": math.nan}, "seconds is out of range"),
        ({"isa": "mmx"}, "isa: this build or CPU has no mmx"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"num_threads": 1, "seconds": 0.0, **change}
    with pytest.raises(ValueError, match=message):
        _native.peak_ops(**arguments)
    with pytest.raises(ValueError, match=message):
        _native.read_bandwidth(num_bytes=1, **arguments)


def test_a_buffer_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="num_bytes is out of range"):
        _native.read_bandwidth(1, 1 << 40, 0.0)
