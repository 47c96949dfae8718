"""The arguments of LLM and AsyncLLM: vLLM's names, checked, and what they mean on this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tuili.checks import check_choice, check_count, check_optional_count, check_optional_mapping
from tuili.config import MAX_PARALLEL_SIZE
from tuili.errors import InvalidRequestError
from tuili.runtime.api.vllm_arguments import split_arguments
from tuili.runtime.front.sampling_defaults import SamplingDefaults, configured_sampling, sampling_defaults
from tuili.runtime.loading.loading import LoadOptions
from tuili.types import SamplingParams

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LLMArguments:
    """Sizes default to what the model allows and the memory holds.

    max_slowdown is how many times longer a step may take because it also computes prompts of others, or drafts; None,
    for the most tokens per second, does not care. AsyncLLM's default keeps running streams steady.

    generation_config "vllm" starts from the library's sampling defaults instead of the model's, a Modelfile counts
    all the same; override_generation_config changes single ones. vLLM's further arguments are checked, and those
    without effect on a CPU named in a warning (vllm_arguments.py).
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
    speculative_config: Mapping[str, Any] | None = field(default_factory=dict)
    chat_template: str | None = None
    seed: int | None = 0
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    quantization: str | None = None
    tokenizer: str | None = None
    generation_config: str = "auto"
    override_generation_config: Mapping[str, Any] | None = None

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> LLMArguments:
        """Checks names and ranges. Raises InvalidRequestError naming the argument."""
        remaining, notes = split_arguments(arguments)
        known = {f.name for f in fields(cls)}
        for name in remaining:
            if name not in known:
                allowed = ", ".join(sorted(known))
                raise InvalidRequestError(f"unknown argument {name!r}; known are {allowed}", param=name)
        parsed = cls(**remaining)
        parsed._check()
        if notes:
            _log.warning("without effect on a CPU: %s", "; ".join(notes))
        return parsed

    def _check(self) -> None:
        check_choice("generation_config", self.generation_config, ("auto", "vllm"))
        check_count("data_parallel_size", self.data_parallel_size, 1, MAX_PARALLEL_SIZE)
        check_optional_count("seed", self.seed, 0)
        check_optional_mapping("speculative_config", self.speculative_config)
        check_optional_mapping("override_generation_config", self.override_generation_config)
        SamplingParams(**sampling_defaults(self.override_generation_config or {}))
        self.load_options()

    def default_sampling(self, of_the_model: Mapping[str, Any]) -> SamplingDefaults:
        """The sampling parameters that requests without their own start from."""
        return configured_sampling(of_the_model, self.generation_config, self.override_generation_config or {})

    def load_options(self) -> LoadOptions:
        """What loading needs of them."""
        return LoadOptions.of(self)
