"""Typed reads of a model configuration. Knows one vocabulary, config.json's; hf_config and gguf_config speak it.

Configurations are hostile input: every value is checked for type and range before it becomes a number of ours.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.models.config_keys import (
    ACTIVATIONS,
    GGUF_HARMLESS,
    GGUF_KEYS,
    GGUF_SPECIAL,
    NEUTRAL,
    ROPE_SCALING_KEYS,
)
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
        """As integer, but null means none; only a missing key takes the default."""
        if key not in self._config:
            self._read.add(key)
            return default
        return None if self._get(key) is None else self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number > 0. What is exact in float32 is read as its shortest decimal, so that a GGUF's
        float32 and a config.json's decimal are the same number."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        return self._positive(key, value)

    def optional_number(self, key: str) -> float | None:
        """As number, but null and missing are none."""
        value = self._get(key)
        return None if value is None else self._positive(key, value)

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

    def activation(self, key: str, default: Activation) -> Activation:
        return cast(Activation, ACTIVATIONS[self.word(key, ACTIVATIONS, default)])

    def rope(self, head_dim: int, default_theta: float = 10_000.0) -> RopeSpec:
        """The rotary embedding of rope_theta, partial_rotary_factor and rope_scaling or rope_frequency_divisors."""
        dim = int(head_dim * self.number("partial_rotary_factor", 1.0) + 1e-6)  # the factor may be a rounded ratio
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
        found = "is missing" if value is None else f"is {_short(value)}"
        return ModelFileError(f"config: {self._prefix}{key} {found}; allowed: {allowed}")

    def _unsupported(self, key: str, value: Any, allowed: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"config: {self._prefix}{key} is {_short(value)}, which is not implemented; allowed: {allowed}"
        )


def _short(value: Any) -> str:
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


def hf_config(raw: Mapping[str, Any]) -> Config:
    """A config.json, flat: rotary parameters of transformers 4 and 5 become rope_theta, partial_rotary_factor and
    rope_scaling, those of sliding layers rope_local_base_freq and rope_local_scaling.

    Code named by auto_map is never run: a family of ours implements the model type, or nobody does.
    Raises ModelFileError and UnsupportedModelError.
    """
    if raw.get("quantization_config") is not None:
        method = raw["quantization_config"]
        method = method.get("quant_method", method) if isinstance(method, Mapping) else method
        raise UnsupportedModelError(f"config: quantization_config is {_short(method)}, which is not implemented")
    config = dict(raw)
    nested = config.pop("rope_parameters", None)
    scaling = config.pop("rope_scaling", None)
    for key, value in (("rope_parameters", nested), ("rope_scaling", scaling)):
        if value is not None and not isinstance(value, Mapping):
            raise ModelFileError(f"config: {key} is {_short(value)}; allowed: an object or null")
    if nested and any(key in nested for key in ("full_attention", "sliding_attention")):
        _flatten_rope(config, nested.get("sliding_attention"), "rope_local_base_freq", "rope_local_scaling")
        nested = nested.get("full_attention")
    _flatten_rope(config, nested or scaling, "rope_theta", "rope_scaling")
    return config


def _flatten_rope(config: Config, parameters: Any, theta_key: str, scaling_key: str) -> None:
    if parameters is None:
        return
    if not isinstance(parameters, Mapping):
        raise ModelFileError(f"config: rope_parameters is {_short(parameters)}; allowed: objects of parameters")
    scaling = {key: value for key, value in parameters.items() if value is not None}
    kind = scaling.pop("type", None)
    kind = scaling.pop("rope_type", kind) or "default"
    kind = "longrope" if kind == "su" else kind
    for key, name in (("rope_theta", theta_key), ("partial_rotary_factor", "partial_rotary_factor")):
        if key in scaling:
            config[name] = scaling.pop(key)
    original = config.get("original_max_position_embeddings")
    if original is not None and kind in ("yarn", "longrope", "llama3"):
        scaling["original_max_position_embeddings"] = original
    config[scaling_key] = None if kind == "default" and not scaling else {"rope_type": kind, **scaling}


def gguf_config(metadata: Mapping[str, Any], tensor_names: Iterable[str]) -> Config:
    """GGUF metadata in the vocabulary of config.json, as far as the two name the same things.

    tensor_names decides what GGUF does not state: a missing output.weight means tied embeddings, present biases
    mean biases. The caller adds rope_frequency_divisors when the file has rope_freqs.weight.
    Raises ModelFileError, and UnsupportedModelError for an architecture key nobody knows here.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise ModelFileError(f"GGUF: general.architecture is {_short(arch)}; allowed: the name of an architecture")
    prefix = f"{arch}."
    found = {key[len(prefix) :]: _scalar(key, value) for key, value in metadata.items() if key.startswith(prefix)}
    for key, value in found.items():
        if key not in GGUF_KEYS and key not in GGUF_SPECIAL and key not in GGUF_HARMLESS and value not in (0, False):
            raise UnsupportedModelError(f"GGUF: {prefix}{key} is {_short(value)}, which is not implemented")
    config: Config = {name: found[key] for key, name in GGUF_KEYS.items() if key in found}
    config["model_type"] = arch
    tokens = metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in config and isinstance(tokens, (list, tuple)):
        config["vocab_size"] = len(tokens)
    names = set(tensor_names)
    config["tie_word_embeddings"] = "output.weight" not in names
    config["attention_bias"] = True if "blk.0.attn_q.bias" in names else None
    config["mlp_bias"] = True if "blk.0.ffn_up.bias" in names else None
    return config | _gguf_head_dim(arch, found) | _gguf_layer_types(prefix, found) | _gguf_rope_scaling(prefix, found)


def _scalar(key: str, value: Any) -> Any:
    """GGUF may state a number once per layer; layers that differ stay a list, which no typed read accepts."""
    is_number_list = isinstance(value, (list, tuple)) and len(value) > 0 and not isinstance(value[0], bool)
    if is_number_list and all(item == value[0] for item in value) and not key.endswith("sliding_window_pattern"):
        return value[0]
    return value


def _gguf_head_dim(arch: str, found: Mapping[str, Any]) -> Config:
    c = ConfigReader(found, f"{arch}.")
    hidden, heads = c.integer("embedding_length"), c.integer("attention.head_count")
    head_dim = c.integer("attention.key_length", max(hidden // heads, 1))
    for key in ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"):
        if c.integer(key, head_dim) != head_dim:
            raise UnsupportedModelError(f"GGUF: {arch}.{key} is {found[key]}; allowed: the key length {head_dim}")
    if not c.flag("attention.causal", True):
        raise UnsupportedModelError(f"GGUF: {arch}.attention.causal is false; allowed: true")
    rotary = c.integer("rope.dimension_count", head_dim)
    if c.integer("rope.dimension_count_swa", rotary) != rotary:
        raise UnsupportedModelError(f"GGUF: {arch}.rope.dimension_count_swa differs from rope.dimension_count")
    return {"head_dim": head_dim, "partial_rotary_factor": rotary / head_dim}


def _gguf_layer_types(prefix: str, found: Mapping[str, Any]) -> Config:
    pattern = found.get("attention.sliding_window_pattern")
    if pattern is None:
        return {}
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        return {"sliding_window_pattern": pattern}
    if isinstance(pattern, (list, tuple)) and all(item in (0, 1) for item in pattern):
        return {"layer_types": ["sliding_attention" if is_local else "full_attention" for is_local in pattern]}
    raise ModelFileError(
        f"GGUF: {prefix}attention.sliding_window_pattern is {_short(pattern)}; allowed: an integer or one flag a layer"
    )


def _gguf_rope_scaling(prefix: str, found: Mapping[str, Any]) -> Config:
    """llama.cpp's scaling keys. Its yarn attn_factor multiplies YaRN's own factor, which config.json states whole."""
    if (scale := found.get("rope.scale_linear")) is not None:
        return {"rope_scaling": {"rope_type": "linear", "factor": scale}}
    kind = found.get("rope.scaling.type")
    if kind in (None, "none"):
        return {}
    for key, neutral in (("yarn_ext_factor", 1), ("yarn_log_multiplier", 0), ("yarn_attn_factor", 1)):
        value = found.get(f"rope.scaling.{key}", neutral)
        if value != neutral:
            raise UnsupportedModelError(f"GGUF: {prefix}rope.scaling.{key} is {_short(value)}; allowed: {neutral}")
    names = {
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
        "attn_factor": "attention_factor",
    }
    scaling = {hf: found[f"rope.scaling.{key}"] for key, hf in names.items() if f"rope.scaling.{key}" in found}
    if kind == "linear":
        scaling.pop("original_max_position_embeddings", None)
    if kind != "longrope" and scaling.pop("attention_factor", 1) != 1:
        raise UnsupportedModelError(f"GGUF: {prefix}rope.scaling.attn_factor is not implemented for {kind}; allowed: 1")
    return {"rope_scaling": {"rope_type": kind, **scaling}}
