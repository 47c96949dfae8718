"""Typed reads of a model configuration. Knows one vocabulary, config.json's; hf_config.py and gguf_config.py speak it.

Configurations are hostile input: every value is checked for type and range before it becomes a number of ours.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import Any, cast

from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.models.config_keys import ACTIVATIONS, NEUTRAL, ROPE_SCALING_KEYS
from tuili.models.spec import Activation, RopeScaling, RopeScalingKind, RopeSpec

Config = dict[str, Any]

MAX_INTEGER = 2**31 - 1
MAX_LAYERS = 4096
MAX_NUMBER = 1e30


class ConfigReader:
    """Reads a flat configuration and remembers what was asked for.

    Every method takes the key and, where a missing key is fine, the default; null counts as missing unless
    the method says otherwise. Raises ModelFileError naming the key, what was found and what is allowed, and
    UnsupportedModelError where the value is well formed but not implemented.
    """

    def __init__(self, config: Mapping[str, Any], prefix: str = "") -> None:
        self._config = config
        self._prefix = prefix
        self._read: set[str] = set()

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_INTEGER) -> int:
        """An integer in [low, high]."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._error(key, value, f"an integer in [{low}, {high}]")
        return value

    def optional_integer(self, key: str, default: int | None = None) -> int | None:
        """As integer, but null means none, and 0 where that is neutral; only a missing key takes the default."""
        value = self._get(key)
        if key not in self._config:
            return default
        return None if _is_off(key, value) else self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number > 0. What is exact in float32 is read as its shortest decimal, so that a GGUF's
        float32 and a config.json's decimal are the same number."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        return self._positive(key, value)

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """As number, but null means none, and 0 where that is neutral; only a missing key takes the default."""
        value = self._get(key)
        if key not in self._config:
            return default
        return None if _is_off(key, value) else self._positive(key, value)

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of `length` numbers > 0; () when missing."""
        value = self._get(key)
        if value is None:
            return ()
        if not isinstance(value, (list, tuple)) or len(value) != length:
            raise self._error(key, value, f"a list of {length} numbers > 0")
        return tuple(self._positive(key, item) for item in value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return value

    def word(self, key: str, allowed: Collection[str], default: str | None = None) -> str:
        """One of `allowed`; any other word is UnsupportedModelError."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._error(key, value, f"one of {', '.join(sorted(allowed))}")
        if value not in allowed:
            raise self._unsupported(key, value, f"one of {', '.join(sorted(allowed))}")
        return value

    def layer_types(self, default: tuple[str, ...]) -> tuple[str, ...]:
        """One of "full_attention" and "sliding_attention" for each of len(default) layers."""
        value = self._get("layer_types")
        if value is None:
            return default
        if not isinstance(value, (list, tuple)) or len(value) != len(default):
            raise self._error("layer_types", value, f"a list of {len(default)} layer types")
        for item in value:
            if item not in ("full_attention", "sliding_attention"):
                raise self._unsupported("layer_types", item, "full_attention and sliding_attention")
        return tuple(value)

    def layer_flags(self, key: str, default: tuple[bool, ...]) -> tuple[bool, ...]:
        """A list of 0 and 1 with one entry for each of len(default) layers."""
        value = self._get(key)
        if value is None:
            return default
        is_list = isinstance(value, (list, tuple)) and len(value) == len(default)
        if not is_list or not all(isinstance(item, int) and item in (0, 1) for item in value):
            raise self._error(key, value, f"a list of {len(default)} entries, each 0 or 1")
        return tuple(bool(item) for item in value)

    def activation(self, key: str, default: Activation) -> Activation:
        return cast(Activation, ACTIVATIONS[self.word(key, ACTIVATIONS, default)])

    def rope(self, head_dim: int, default_theta: float = 10_000.0, default_part: float = 1.0) -> RopeSpec:
        """The rotary embedding of rope_theta, partial_rotary_factor and rope_scaling or rope_frequency_divisors."""
        dim = int(
            head_dim * self.number("partial_rotary_factor", default_part) + 1e-6
        )  # the factor may be a rounded ratio
        if not 2 <= dim <= head_dim or dim % 2:
            raise self._error("partial_rotary_factor", dim / head_dim, f"an even part of head_dim = {head_dim}")
        theta = self.number("rope_theta", default_theta)
        divisors = self.numbers("rope_frequency_divisors", dim // 2)
        scaling = self._get("rope_scaling")
        if divisors:
            if scaling is not None:
                raise self._unsupported("rope_scaling", scaling, "none beside rope_frequency_divisors")
            return RopeSpec(dim=dim, theta=theta, scaling=RopeScaling(kind="llama3", frequency_divisors=divisors))
        return RopeSpec(dim=dim, theta=theta, scaling=self._scaling("rope_scaling", dim))

    def local_rope(self, head_dim: int, default_theta: float) -> RopeSpec:
        """The rotary embedding of sliding layers: rope_local_base_freq and rope_local_scaling."""
        theta = self.number("rope_local_base_freq", default_theta)
        return RopeSpec(dim=head_dim, theta=theta, scaling=self._scaling("rope_local_scaling", head_dim))

    def leave_out(self, key: str) -> None:
        """Says that what `key` configures is knowingly not part of the spec."""
        self._read.add(key)

    def refuse_unread(self) -> None:
        """Raises UnsupportedModelError for a key that changes the mathematics and that nobody has read."""
        for key, neutral in NEUTRAL.items():
            value = self._config.get(key)
            if key in self._read or value is None or value in neutral:
                continue
            if key == "layer_types" and isinstance(value, list) and all(item == "full_attention" for item in value):
                continue
            allowed = " or ".join(["no such key", *(repr(item) for item in neutral)])
            raise self._unsupported(key, value, f"{allowed} for this model type")

    def _scaling(self, key: str, dim: int) -> RopeScaling | None:
        raw = self._get(key)
        if raw is None:
            return None
        if not isinstance(raw, Mapping):
            raise self._error(key, raw, "an object or null")
        c = ConfigReader(raw, f"{key}.")
        kind = c.word("rope_type", {"default", *ROPE_SCALING_KEYS})
        allowed = ROPE_SCALING_KEYS.get(kind, frozenset())
        for name, value in raw.items():
            if value is not None and name != "rope_type" and name not in allowed:
                raise c._unsupported(name, value, f"no such key for {kind}")
        if kind == "default":
            return None
        max_position = self.integer("max_position_embeddings")
        return _rope_scaling(c, cast(RopeScalingKind, kind), dim, max_position)

    def _get(self, key: str) -> Any:
        self._read.add(key)
        return self._config.get(key)

    def _positive(self, key: str, value: Any) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 1 / MAX_NUMBER <= value <= MAX_NUMBER:
            raise self._error(key, value, "a finite number > 0")
        return _shortest_decimal(float(value))

    def _error(self, key: str, value: Any, allowed: str) -> ModelFileError:
        found = "is missing" if value is None else f"is {short(value)}"
        return ModelFileError(f"config: {self._prefix}{key} {found}; allowed: {allowed}")

    def _unsupported(self, key: str, value: Any, allowed: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"config: {self._prefix}{key} is {short(value)}, which is not implemented; allowed: {allowed}"
        )


def _is_off(key: str, value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (is_number and value == 0 and 0 in NEUTRAL.get(key, ()))


def short(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _shortest_decimal(value: float) -> float:
    """The shortest decimal with the same float32, for values that are exact in float32; others as they are."""
    single = struct.pack("<f", value)
    if struct.unpack("<f", single)[0] != value:
        return value
    candidates = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next(x for x in candidates if struct.pack("<f", x) == single)


def _rope_scaling(c: ConfigReader, kind: RopeScalingKind, dim: int, max_position: int) -> RopeScaling:
    original = c.integer("original_max_position_embeddings", max_position)
    if kind == "linear":
        return RopeScaling(kind=kind, factor=c.number("factor"))
    if kind == "dynamic":
        if dim < 4:
            raise ModelFileError(f"config: dynamic rope_scaling needs at least 4 rotary dimensions, found {dim}")
        return RopeScaling(kind=kind, factor=c.number("factor"), original_max_position=original)
    if kind == "llama3":
        low, high = c.number("low_freq_factor"), c.number("high_freq_factor")
        if high <= low:
            raise ModelFileError(f"config: rope_scaling.high_freq_factor is {high}; allowed: > low_freq_factor = {low}")
        return RopeScaling(
            kind=kind,
            factor=c.number("factor"),
            original_max_position=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    factor = c.number("factor", max_position / original)
    if kind == "longrope":
        return _longrope(c, factor, original, dim)
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_max_position=original,
        attention_factor=c.optional_number("attention_factor"),
        beta_fast=c.number("beta_fast", 32.0),
        beta_slow=c.number("beta_slow", 1.0),
        mscale=c.optional_number("mscale") or 0.0,
        mscale_all_dim=c.optional_number("mscale_all_dim") or 0.0,
        truncate=c.flag("truncate", True),
    )


def _longrope(c: ConfigReader, factor: float, original: int, dim: int) -> RopeScaling:
    short, long = c.numbers("short_factor", dim // 2), c.numbers("long_factor", dim // 2)
    if not short or not long or original < 2:
        raise ModelFileError(
            "config: longrope rope_scaling needs short_factor, long_factor and original_max_position_embeddings >= 2"
        )
    return RopeScaling(
        kind="longrope",
        factor=factor,
        original_max_position=original,
        attention_factor=c.optional_number("attention_factor"),
        short_factor=short,
        long_factor=long,
    )
