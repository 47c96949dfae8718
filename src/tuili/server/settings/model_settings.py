"""Settings of a server's models and of their engines; ServeSettings adds the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from tuili.config import BACKENDS, BLOCK_SIZES, DTYPES, MAX_NUM_SEQS, MAX_PARALLEL_SIZE, KvCacheDtype
from tuili.errors import InvalidRequestError
from tuili.runtime.front.sampling_defaults import sampling_defaults
from tuili.sampling_params import SamplingParams
from tuili.server.settings.setting import ENGINE, MODELS, setting
from tuili.server.settings.setting_kinds import (
    Choice,
    Count,
    Duration,
    JsonObject,
    Many,
    Number,
    RecipeName,
    Size,
    Switch,
    Text,
)

if TYPE_CHECKING:  # slow to import: the command line shows help without
    from tuili.runtime.loading.loading import LoadOptions
    from tuili.runtime.pool.settings import NamedModel, PoolSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """Which models, and how they are loaded. Raises InvalidRequestError naming the setting."""

    models: tuple[str, ...] = setting(
        (),
        MODELS,
        Many(Text()),
        "Models to load at once: stored or known names, paths. Others that are stored follow when they are asked for.",
    )
    served_model_name: tuple[str, ...] = setting(
        (),
        MODELS,
        Many(Text(max_chars=200), ","),
        "Names that clients use: all for the one model, or one for each model.",
        "--model-name",
    )
    only_named: bool = setting(False, MODELS, Switch(), "Serve no model but those named here.")
    pin: bool = setting(False, MODELS, Switch(), "Never unload the models named here.")
    keep_alive_s: float = setting(
        300.0,
        MODELS,
        Duration(can_be_endless=True),
        "Unload a model that came on demand when idle for so long; 0 at once, negative never.",
        name="keep_alive",
        ollama="OLLAMA_KEEP_ALIVE",
    )
    max_loaded_models: int | None = setting(
        None,
        MODELS,
        Count(1, 1000),
        "Most models loaded at once; by default as many as fit into memory.",
        ollama="OLLAMA_MAX_LOADED_MODELS",
    )
    gpu_memory_utilization: float = setting(
        0.9,
        MODELS,
        Number(0, 1),
        "Share of the memory free at start, and of a GPU's whole memory, that all models together may take.",
        "--memory-utilization",
    )
    load_timeout_s: float = setting(
        300.0,
        MODELS,
        Duration(low=1),
        "How long a request waits for its model.",
        name="load_timeout",
        ollama="OLLAMA_LOAD_TIMEOUT",
    )
    hang_timeout_s: float = setting(
        60.0,
        MODELS,
        Duration(low=1),
        "Restart an engine that has requests and does nothing for so long; one at work may take 30 times as long.",
        name="hang_timeout",
    )
    allow_pull: bool = setting(False, MODELS, Switch(), "Fetch a known model that is asked for and not stored.")
    max_pulls: int = setting(
        4, MODELS, Count(1, 64), "Models fetched at once, for clients who share each fetch; further ones get 429."
    )
    max_model_len: int | None = setting(
        None,
        ENGINE,
        Count(automatic=("auto", "-1", -1)),
        "Longest context in tokens; by default what the model allows and memory holds.",
        "--session-len",
        ollama="OLLAMA_CONTEXT_LENGTH",
    )
    max_num_seqs: int = setting(
        32,
        ENGINE,
        Count(1, MAX_NUM_SEQS),
        "Sequences computed at once.",
        "--max-batch-size",
        ollama="OLLAMA_NUM_PARALLEL",
    )
    max_num_batched_tokens: int | None = setting(
        None,
        ENGINE,
        Count(automatic=("auto", "-1", -1)),
        "Most tokens of a step; 512 by default, 8192 on a GPU.",
        "--max-prefill-token-num",
    )
    kv_cache_dtype: str = setting(
        "auto", ENGINE, Choice(get_args(KvCacheDtype)), "int8 takes half the memory; fp8 needs torch."
    )
    kv_cache_memory_bytes: int | None = setting(
        None,
        ENGINE,
        Size(),
        "KV cache of each model; by default what max_num_seqs contexts need, or what there is.",
    )
    swap_space: float = setting(
        0.0,
        ENGINE,
        Number(0, includes_low=True),
        "Of torch: GiB of host memory for what each model's preempted answers have computed.",
    )
    gpu_layers: int | None = setting(
        None,
        ENGINE,
        Count(0, automatic=("auto", "-1", -1)),
        "Layers on the GPU, the others on the CPU; by default all, or as many as fit.",
        "--n-gpu-layers",
        "-ngl",
    )
    cpu_offload_gb: float = setting(
        0.0, ENGINE, Number(0, includes_low=True), "GiB of each model's layers to keep on the CPU at least."
    )
    block_size: int = setting(
        64, ENGINE, Count(only=BLOCK_SIZES), "Tokens of a cache block: 16, 32, 64, 128 or 256.", "--cache-block-seq-len"
    )
    enable_prefix_caching: bool = setting(True, ENGINE, Switch(), "Compute what prompts have in common once.")
    quantization: str | None = setting(
        None,
        ENGINE,
        RecipeName(),
        "Run float weights narrower: q8_0, q4_k_m and others.",
        "--quantize",
        "-q",
    )
    num_threads: int = setting(0, ENGINE, Count(0, 1024), "Threads of each engine; 0 chooses.")
    backend: str | None = setting(None, ENGINE, Choice(BACKENDS), "What computes; torch where it sees a GPU.")
    device: str | None = setting(None, ENGINE, Text(), "Of torch: cuda, cuda:1, xpu, mps, cpu.")
    dtype: str = setting("auto", ENGINE, Choice(DTYPES), "Of torch: of weights and activations.")
    deterministic: bool = setting(
        False, ENGINE, Switch(), "Of torch: answers do not depend on what else is computed at the time."
    )
    enforce_eager: bool = setting(False, ENGINE, Switch(), "Of torch: replay no steps as CUDA graphs.", "--eager-mode")
    tensor_parallel_size: int = setting(
        1, ENGINE, Count(1, MAX_PARALLEL_SIZE), "Of torch: GPUs that share every layer of a model.", "--tp", "-tp"
    )
    pipeline_parallel_size: int = setting(
        1, ENGINE, Count(1, MAX_PARALLEL_SIZE), "Of torch: times as many GPUs, each with some layers.", "--pp", "-pp"
    )
    data_parallel_size: int = setting(
        1, ENGINE, Count(1, MAX_PARALLEL_SIZE), "Engines of each model, which share its requests.", "--dp", "-dp"
    )
    max_slowdown: float = setting(
        2.0,
        ENGINE,
        Number(1),
        "How many times longer a step may take because it also computes prompts of others; drafts add half as much.",
    )
    speculative_config: Mapping[str, Any] | None = setting(
        {},
        ENGINE,
        JsonObject(none="none"),
        'Drafts, as {"num_speculative_tokens": 15} or {"model": "smollm2:135m"}.',
        "-sc",
    )
    tokenizer: str | None = setting(None, ENGINE, Text(), "Take the tokenizer from these files.")
    seed: int | None = setting(
        None,
        ENGINE,
        Count(0),
        "Draw the seeds of requests that have none from this one, instead of by chance.",
    )
    generation_config: str = setting(
        "auto",
        ENGINE,
        Choice(("auto", "vllm")),
        "vllm: sampling defaults are the library's, not the model's.",
    )
    override_generation_config: Mapping[str, Any] = setting(
        {},
        ENGINE,
        JsonObject(),
        "Sampling defaults of every model, as in generation_config.json.",
    )
    chat_template: str | None = setting(
        None, ENGINE, Text(max_chars=1 << 20, may_have_lines=True), "Jinja source, or the path of a file with it."
    )
    default_chat_template_kwargs: Mapping[str, Any] = setting(
        {},
        ENGINE,
        JsonObject(),
        'What templates are told unless a request says otherwise, as {"enable_thinking": false}.',
    )

    def __post_init__(self) -> None:
        if self.served_model_name and not self.models:
            raise InvalidRequestError("served_model_name needs a model to name", param="served_model_name")
        if self.served_model_name and len(self.models) > 1 and len(self.models) != len(self.served_model_name):
            raise InvalidRequestError(
                f"served_model_name must be one name for each of {len(self.models)} models, "
                f"got {len(self.served_model_name)}",
                param="served_model_name",
            )
        if (self.only_named or self.pin) and not self.models:
            name = "only_named" if self.only_named else "pin"
            raise InvalidRequestError(f"{name} needs a model to be named", param=name)
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidRequestError(
                f"max_num_batched_tokens must be >= max_num_seqs = {self.max_num_seqs}, "
                f"got {self.max_num_batched_tokens}",
                param="max_num_batched_tokens",
            )
        self._check_sampling()
        self.load_options()

    def _check_sampling(self) -> None:
        try:
            SamplingParams(**sampling_defaults(self.override_generation_config))
        except InvalidRequestError as error:
            name = "override_generation_config"
            raise InvalidRequestError(f"{name}: {error}", param=name) from None

    def load_options(self) -> LoadOptions:
        """How every model is loaded."""
        from tuili.runtime.loading.loading import LoadOptions

        return LoadOptions.of(self)

    def without_effect(self) -> tuple[str, ...]:
        """What was asked for that nothing comes of on a CPU, each with the reason."""
        from tuili.backends import expected_backend

        if expected_backend(self.backend, self.device) == "torch":
            return ()
        asked = {"swap_space": self.swap_space, "gpu_layers": self.gpu_layers, "cpu_offload_gb": self.cpu_offload_gb}
        reason = "it has no effect on a CPU, where the KV cache is in host memory anyway"
        notes = [f"{name} ({reason})" for name, value in asked.items() if value not in (None, 0.0)]
        if self.enforce_eager:
            notes.append("enforce_eager (there are no CUDA graphs on a CPU)")
        return tuple(notes)

    def pool(self) -> PoolSettings:
        """What the pool of models needs of them."""
        from tuili.runtime.pool.settings import PoolSettings

        return PoolSettings(
            models=self._named_models(),
            load=self.load_options(),
            num_replicas=self.data_parallel_size,
            max_loaded_models=self.max_loaded_models,
            memory_share=self.gpu_memory_utilization,
            keep_alive_s=self.keep_alive_s,
            load_timeout_s=self.load_timeout_s,
            hang_timeout_s=self.hang_timeout_s,
            is_pinned=self.pin,
            allow_pull=self.allow_pull,
            max_pulls=self.max_pulls,
            only_named=self.only_named,
            seed=self.seed,
            generation_config=self.generation_config,
            override_generation_config=self.override_generation_config,
            default_template_args=self.default_chat_template_kwargs,
        )

    def _named_models(self) -> tuple[NamedModel, ...]:
        from tuili.runtime.pool.settings import NamedModel

        if len(self.models) == 1:
            return (NamedModel(self.models[0], self.served_model_name),)
        names = self.served_model_name or [""] * len(self.models)
        return tuple(NamedModel(model, (name,) if name else ()) for model, name in zip(self.models, names, strict=True))
