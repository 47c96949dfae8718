"""keep_alive as Ollama's clients write it."""

from __future__ import annotations

import pytest

from tuili.errors import InvalidRequestError
from tuili.server.dialects.ollama.keep_alive import parse_keep_alive


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        *((None, None), (0, 0.0), (300, 300.0), (1.5, 1.5), (-1, -1.0), (-0.5, -1.0)),
        *(("5m", 300.0), ("1h30m", 5400.0), ("300ms", 0.3), ("1.5h", 5400.0), (".5s", 0.5), ("10us", 1e-5)),
        *(("0", 0.0), ("0s", 0.0), ("-1", -1.0), ("-1m", -1.0), ("+2s", 2.0), ("90", 90.0)),
        *(("99999999h", -1.0), (1e12, -1.0), ("1e12", -1.0), ("87600h", 315360000.0), ("87601h", -1.0)),
    ],
)
def test_durations(written: float | str | None, seconds: float | None) -> None:
    assert parse_keep_alive(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written", ["", "5 m", "m", "5x", "1h-5m", "nan", float("nan"), "inf", "-inf", float("inf"), "5m5", "1" * 100, "٣m"]
)
def test_what_is_no_duration_is_refused(written: float | str) -> None:
    with pytest.raises(InvalidRequestError, match="keep_alive must be") as caught:
        parse_keep_alive(written)
    assert caught.value.param == "keep_alive"
