"""How to load a model, as values that are checked, and what they mean once a backend is chosen. Opens nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, get_args

from tuili.backends import BACKENDS, choose_backend, expected_backend
from tuili.checks import (
    check_amount,
    check_choice,
    check_count,
    check_flag,
    check_optional_count,
    check_optional_factor,
    check_optional_share,
    check_optional_text,
    refusal,
)
from tuili.config import (
    BLOCK_SIZES,
    DTYPES,
    KV_CACHE_DTYPES,
    MAX_NUM_SEQS,
    MAX_PARALLEL_SIZE,
    KvCacheDtype,
    SpeculativeConfig,
    check_device,
)
from tuili.machine import thread_limits
from tuili.weights.recipes import find_recipe

# Of a GPU, with what asks for nothing.
_FOR_GPUS = {"gpu_memory_utilization": None, "gpu_layers": None, "cpu_offload_gb": 0.0, "enforce_eager": False}
_log = logging.getLogger(__name__)


class LoadArguments(Protocol):
    """What people write: LoadOptions' fields, and speculative_config for what is parsed there."""

    @property
    def speculative_config(self) -> Mapping[str, Any] | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """How to load. None lets the model and the machine decide.

    max_slowdown is EngineConfig's: None is for the most tokens per second, a number for steady streams.
    gpu_memory_utilization, swap_space, gpu_layers and cpu_offload_gb divide memory between a GPU and its host
    (docs/torch.md).
    backend None is torch where that sees a GPU and runs the model, else cpu; device, dtype, deterministic and
    enforce_eager, which does without CUDA graphs, are for torch (docs/torch.md). kv_cache_dtype is auto, bfloat16 or
    int8, or fp8 with torch.
    chat_template is Jinja source or the path of a file with it; tokenizer names other files to take the tokenizer
    from. owns_process says that nothing else in this process uses torch, whose threads are set for all of it, and that
    it loads one model: what is there once it is loaded is never collected.
    quantization is a recipe of weights.recipes that float weights are quantized by as they are loaded; "gguf",
    for a GGUF file, is the format it has. tensor_parallel_size processes, for torch, share every layer, each with a GPU
    of its own; pipeline_parallel_size as many such groups have some of the layers each. A draft model runs on the first
    process's GPU alone.
    """

    backend: str | None = None
    device: str | None = None
    dtype: str = "auto"
    deterministic: bool = False
    enforce_eager: bool = False
    num_threads: int = 0
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int | None = None
    block_size: int = 64
    kv_cache_memory_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float | None = None
    swap_space: float = 0.0
    gpu_layers: int | None = None
    cpu_offload_gb: float = 0.0
    enable_prefix_caching: bool = True
    max_slowdown: float | None = None
    speculative: SpeculativeConfig | None = field(default_factory=SpeculativeConfig)
    chat_template: str | None = None
    tokenizer: str | None = None
    quantization: str | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    owns_process: bool = False

    @classmethod
    def of(cls, given: LoadArguments) -> LoadOptions:
        """From LLM's arguments or a server's settings, which have these fields by the same names.

        Raises InvalidRequestError.
        """
        own = {f.name: getattr(given, f.name) for f in fields(cls) if f.name not in ("speculative", "owns_process")}
        drafts = given.speculative_config
        return cls(**own, speculative=None if drafts is None else SpeculativeConfig.parse(drafts))

    @property
    def num_ranks(self) -> int:
        """Processes that one model is loaded into."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def __post_init__(self) -> None:
        """Raises InvalidRequestError naming the field. What depends on the model is checked when it is loaded."""
        check_choice("backend", self.backend, (None, *BACKENDS))
        check_device("device", self.device)
        check_choice("dtype", self.dtype, DTYPES)
        check_flag("deterministic", self.deterministic)
        check_flag("enforce_eager", self.enforce_eager)
        check_count("num_threads", self.num_threads, 0)
        check_optional_count("max_model_len", self.max_model_len)
        check_count("max_num_seqs", self.max_num_seqs, 1, MAX_NUM_SEQS)
        check_optional_count("max_num_batched_tokens", self.max_num_batched_tokens)
        check_choice("block_size", self.block_size, BLOCK_SIZES)
        check_optional_count("kv_cache_memory_bytes", self.kv_cache_memory_bytes)
        check_choice("kv_cache_dtype", self.kv_cache_dtype, get_args(KvCacheDtype))
        check_optional_share("gpu_memory_utilization", self.gpu_memory_utilization)
        check_amount("swap_space", self.swap_space)
        check_optional_count("gpu_layers", self.gpu_layers, 0)
        check_amount("cpu_offload_gb", self.cpu_offload_gb)
        check_flag("enable_prefix_caching", self.enable_prefix_caching)
        check_count("tensor_parallel_size", self.tensor_parallel_size, 1, MAX_PARALLEL_SIZE)
        check_count("pipeline_parallel_size", self.pipeline_parallel_size, 1, MAX_PARALLEL_SIZE)
        check_flag("owns_process", self.owns_process)
        check_optional_factor("max_slowdown", self.max_slowdown)
        if not isinstance(self.speculative, SpeculativeConfig | None):
            raise refusal("speculative", self.speculative, "a SpeculativeConfig or None")
        check_optional_text("chat_template", self.chat_template)
        check_optional_text("tokenizer", self.tokenizer)
        check_optional_text("quantization", self.quantization)
        if self.quantization not in (None, "gguf"):
            find_recipe(self.quantization)
        _check_parallel(self, expected_backend(self.backend, self.device))


def resolved(options: LoadOptions) -> LoadOptions:
    """With the backend chosen, and what depends on it. Raises InvalidRequestError for what that one does not take."""
    backend = choose_backend(options.backend, options.device)
    if backend != "torch" or options.device == "cpu":
        _tell_without_effect(options, backend)
    if backend == "torch":
        if options.num_threads and not options.owns_process:
            return _without_torch(options)
        num_threads = thread_limits(options.num_threads).num_threads if options.owns_process else 0
        return replace(options, backend=backend, num_threads=num_threads)
    _check_parallel(options, backend)
    if options.device not in (None, "auto", "cpu"):
        raise refusal("device", options.device, f"cpu for the {backend} backend")
    if options.dtype != "auto":
        _log.warning(
            "without effect on the %s backend: dtype (weights stay in their file's format, arithmetic between them is "
            "float32)",
            backend,
        )
    return replace(options, backend=backend, kv_cache_dtype=cpu_cache_dtype(options.kv_cache_dtype))


def _without_torch(options: LoadOptions) -> LoadOptions:
    """For threads that torch cannot have to itself."""
    allowed = "0 with torch, whose threads are the whole process's"
    if not is_automatic(options):
        raise refusal("num_threads", options.num_threads, allowed)
    _log.warning("the cpu backend computes, not the GPU: num_threads must be %s, not %d", allowed, options.num_threads)
    return resolved(replace(options, backend="cpu"))


def is_automatic(options: LoadOptions) -> bool:
    """Whether the backend is for the machine and the model to decide."""
    return options.backend is None and options.device in (None, "auto")


def _tell_without_effect(options: LoadOptions, backend: str) -> None:
    """A server tells it where it reads its settings."""
    names = [name for name, nothing in _FOR_GPUS.items() if getattr(options, name) != nothing]
    if options.swap_space and backend != "torch":
        names.append("swap_space")
    if names and not options.owns_process:
        _log.warning("without effect on a CPU: %s", ", ".join(names))


def _check_parallel(options: LoadOptions, backend: str) -> None:
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if getattr(options, name) > 1 and backend != "torch":
            raise refusal(name, getattr(options, name), f"1 for the {backend} backend")


def cpu_cache_dtype(name: str) -> KvCacheDtype:
    """What a LoadOptions.kv_cache_dtype is where torch does not compute. Raises InvalidRequestError."""
    if name not in KV_CACHE_DTYPES:
        raise refusal("kv_cache_dtype", name, f"one of {', '.join(KV_CACHE_DTYPES)} without torch")
    return KV_CACHE_DTYPES[name]
