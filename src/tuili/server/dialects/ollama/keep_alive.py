"""How long a model stays loaded after a request, as Ollama's clients write it."""

from __future__ import annotations

import math
import re

from tuili.checks import refusal

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_DURATION = re.compile(rf"([+-]?)((?:{_PART.pattern})+)", re.ASCII)
_MAX_CHARS = 64
MAX_KEEP_ALIVE_S = 10 * 365 * 86400.0  # a time farther away is no date that clients can read
_ALLOWED = 'a number of seconds or a duration like "5m" or "1h30m"; below 0 is for ever, 0 is to unload at once'


def parse_keep_alive(value: float | str | None) -> float | None:
    """Seconds; -1 for ever, which more than ten years are, too; None where the request leaves it to the server.

    Numbers are seconds, texts Go durations ("1h30m", "300ms") or numbers. Raises InvalidRequestError.
    """
    if value is None:
        return None
    seconds = _seconds(value) if isinstance(value, str) else float(value)
    if seconds is None or not math.isfinite(seconds):
        raise refusal("keep_alive", value, _ALLOWED)
    return -1.0 if seconds < 0 or seconds > MAX_KEEP_ALIVE_S else seconds


def _seconds(text: str) -> float | None:
    if len(text) > _MAX_CHARS:
        return None
    match = _DURATION.fullmatch(text)
    if match is not None:
        total = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(match[2]))
        return -total if match[1] == "-" else total
    try:
        return float(text) if text.isascii() else None
    except ValueError:
        return None
