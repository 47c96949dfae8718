"""The names of samplers: llama.cpp's and its letters, the orders they run in, and how an order is written."""

from __future__ import annotations

from collections.abc import Mapping

from tuili.checks import refusal

MAX_SAMPLERS = 32

SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature", "adaptive_p")
DEFAULT_SAMPLERS = (
    "penalties",
    "dry",
    "temperature",
    "top_n_sigma",
    "min_p",
    "top_k",
    "typ_p",
    "top_p",
    "xtc",
    "adaptive_p",
)
SAMPLER_LETTERS: Mapping[str, str] = dict(zip("edskypmxta", SAMPLERS, strict=True))
_ALIASES: Mapping[str, str] = {
    **{name: name for name in SAMPLERS},
    **{name.replace("_", ""): name for name in SAMPLERS},
    "typical_p": "typ_p",
    "typical": "typ_p",
    "typ": "typ_p",
    "nucleus": "top_p",
    "temp": "temperature",
}


def parse_samplers(value: object) -> tuple[str, ...]:
    """Canonical names from a list of names, from names between semicolons, or from llama.cpp's letters.

    Raises InvalidRequestError naming what is no sampler.
    """
    if isinstance(value, str):
        is_names = ";" in value or _sampler(value) is not None
        value = [v for v in value.split(";") if v] if is_names else [SAMPLER_LETTERS.get(v, v) for v in value]
    if not isinstance(value, list | tuple) or len(value) > MAX_SAMPLERS:
        raise refusal("samplers", value, f"at most {MAX_SAMPLERS} names or letters")
    names = [_sampler(name) for name in value]
    if None in names:
        allowed = f"of {', '.join(SAMPLERS)}, or letters of {''.join(SAMPLER_LETTERS)}"
        raise refusal("samplers", value[names.index(None)], allowed)
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise refusal("samplers", twice, "each sampler at most once")
    return tuple(name for name in names if name is not None)


def _sampler(name: object) -> str | None:
    return _ALIASES.get(name.strip().lower().replace("-", "_")) if isinstance(name, str) else None
