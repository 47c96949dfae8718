"""Engine limits and where things live on disk. Knows the environment's variables; opens nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from tuili.checks import (
    check_choice,
    check_count,
    check_flag,
    check_optional_count,
    check_optional_factor,
    refusal,
    shown,
)
from tuili.errors import InvalidRequestError

KvCacheDtype = Literal["auto", "bfloat16", "int8", "fp8"]
KV_CACHE_DTYPES: Mapping[str, KvCacheDtype] = {"auto": "bfloat16", "bfloat16": "bfloat16", "int8": "int8"}
BACKENDS = ("cpu", "reference", "torch")
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d{1,4})?")
DTYPES = ("auto", "bfloat16", "float16", "half", "float32", "float")
BLOCK_SIZES = (16, 32, 64, 128, 256)
MAX_NUM_SEQS = 16_384
GPU_MEMORY_UTILIZATION = 0.9  # of a GPU's whole memory: what everything on it may take, unless told otherwise
MAX_PARALLEL_SIZE = 64
SPECULATIVE_METHODS = ("ngram", "draft_model")
MAX_SPECULATIVE_TOKENS = 64
MAX_PROMPT_LOOKUP = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculativeConfig:
    """How drafts are made, under vLLM's names (docs/speculation.md).

    method "ngram" looks up where the text occurred before: prompt_lookup_min and prompt_lookup_max bound the
    length, in tokens, of its recurring end. "draft_model" asks a smaller `model`, a name or a path, with the same
    vocabulary. num_speculative_tokens is the longest draft: measured costs decide how much of it is tried.
    Raises InvalidRequestError naming the field.
    """

    method: str = "ngram"
    model: str | None = None
    num_speculative_tokens: int = 15
    prompt_lookup_min: int = 2
    prompt_lookup_max: int = 32

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> SpeculativeConfig:
        """Reads vLLM's speculative_config, where a model alone says the method too.

        Raises InvalidRequestError for a key that is not known here.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise InvalidRequestError(
                    f"speculative_config: {shown(name)} is not implemented; known are {', '.join(known)}",
                    param="speculative_config",
                )
        implied = {"method": "draft_model"} if values.get("model") is not None else {}
        return cls(**implied | dict(values))  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.method not in SPECULATIVE_METHODS:
            allowed = " or ".join(map(repr, SPECULATIVE_METHODS))
            raise InvalidRequestError(
                f"speculative_config: method must be {allowed}, got {shown(self.method)}", param="speculative_config"
            )
        if (self.method == "draft_model") != (isinstance(self.model, str) and self.model != ""):
            raise InvalidRequestError(
                f"speculative_config: model names the draft model of method 'draft_model', got {shown(self.model)} "
                f"with method {shown(self.method)}",
                param="speculative_config",
            )
        self._check_range("num_speculative_tokens", 1, MAX_SPECULATIVE_TOKENS)
        self._check_range("prompt_lookup_max", 1, MAX_PROMPT_LOOKUP)
        self._check_range("prompt_lookup_min", 1, self.prompt_lookup_max)

    def _check_range(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidRequestError(
                f"speculative_config: {name} must be an integer in [{low}, {high}], got {shown(value)}",
                param="speculative_config",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Limits of one engine, named as vLLM names them.

    max_num_batched_tokens is the token budget of a step. kv_cache_memory_bytes None lets the runtime size
    the cache. block_size is the unit of allocation and of prefix reuse. kv_cache_dtype is what the backend was
    loaded with. speculative None drafts nothing. swap_bytes of host memory keep what preempted sequences have computed.
    max_slowdown is how many times longer a step may take because it also computes prompts of others, or, for half of
    that time, drafts, measured as it goes against a step of all who run or are about to; None gives prompts the whole
    budget and drafts what pays, for the most tokens per second.
    Raises InvalidRequestError naming the field.
    """

    max_model_len: int
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    block_size: int = 64
    kv_cache_memory_bytes: int | None = None
    enable_prefix_caching: bool = True
    kv_cache_dtype: KvCacheDtype = "bfloat16"
    speculative: SpeculativeConfig | None = None
    max_slowdown: float | None = None
    swap_bytes: int = 0

    def __post_init__(self) -> None:
        check_count("max_model_len", self.max_model_len)
        check_count("max_num_seqs", self.max_num_seqs, 1, MAX_NUM_SEQS)
        check_count("max_num_batched_tokens", self.max_num_batched_tokens)
        check_choice("block_size", self.block_size, BLOCK_SIZES)
        check_optional_count("kv_cache_memory_bytes", self.kv_cache_memory_bytes)
        check_choice("kv_cache_dtype", self.kv_cache_dtype, get_args(KvCacheDtype))
        check_flag("enable_prefix_caching", self.enable_prefix_caching)
        check_optional_factor("max_slowdown", self.max_slowdown)
        check_count("swap_bytes", self.swap_bytes, 0)
        if not isinstance(self.speculative, SpeculativeConfig | None):
            raise refusal("speculative", self.speculative, "a SpeculativeConfig or None")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidRequestError(
                f"max_num_batched_tokens must be >= max_num_seqs = {self.max_num_seqs}, "
                f"got {self.max_num_batched_tokens}",
                param="max_num_batched_tokens",
            )


def check_device(name: str, value: object) -> None:
    """A device's name, or None; whether there is one of that name only torch can tell."""
    if value is not None and not (isinstance(value, str) and _DEVICE.fullmatch(value)):
        raise refusal(name, value, "auto, cpu, cuda, cuda:N, xpu, xpu:N, mps or None")


def store_dir() -> Path:
    """Where models are kept: TUILI_HOME, else the platform's user data directory.

    Raises InvalidRequestError when TUILI_HOME names no place where a folder is or could be.
    """
    home = os.environ.get("TUILI_HOME")
    if not home:
        import platformdirs  # backends, which know this file's words, need nothing but their arrays

        return Path(platformdirs.user_data_dir("tuili", appauthor=False))
    try:
        path = Path(home).expanduser()
    except RuntimeError:
        raise InvalidRequestError(
            f"TUILI_HOME must name a folder, {home!r} has no such user", param="TUILI_HOME"
        ) from None
    nearest = next((place for place in (path, *path.parents) if os.path.lexists(place)), None)
    if nearest is not None and not nearest.is_dir():
        raise InvalidRequestError(f"TUILI_HOME must name a folder, {str(nearest)!r} is none", param="TUILI_HOME")
    return path
