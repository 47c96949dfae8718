"""vLLM's flags of `vllm serve` that are no settings here: without effect, or refused. Data; foreign_flags reads it.

The engine's own are runtime.api.vllm_arguments'; here is what only a server has.
"""

from __future__ import annotations

from collections.abc import Mapping

from tuili.runtime.api.vllm_arguments import Ignored

_LOG = "log_requests and log_file say what is logged"
_ONE_PROCESS = "one process runs the model"
_KERNELS = "the fastest kernels of this processor are used"
_IN_MEMORY = "on a CPU the KV cache is in host memory anyway"
_WITH_LORA = "it counts with enable_lora only"
_DRAFTS = "say it in speculative_config"
IGNORED: Mapping[str, Ignored] = {
    "uvicorn_log_level": Ignored("info", _LOG),
    "disable_uvicorn_access_log": Ignored(False, _LOG, (False, True)),
    "disable_access_log_for_endpoints": Ignored(None, _LOG),
    "enable_log_outputs": Ignored(False, "prompts and answers are never logged", (False, True)),
    "max_log_len": Ignored(None, "prompts and answers are never logged"),
    "allowed_methods": Ignored(None, "what each route takes is allowed"),
    "allowed_headers": Ignored(None, "what clients need is allowed"),
    "allow_credentials": Ignored(False, "keys are sent in headers", (False, True)),
    "enable_request_id_headers": Ignored(False, "", (False, True)),
    "enable_prompt_tokens_details": Ignored(False, "", (False, True)),
    "enable_server_load_tracking": Ignored(False, "", (False, True)),
    "enable_ssl_refresh": Ignored(False, "certificates are read at start", (False, True)),
    "disable_fastapi_docs": Ignored(False, "the document is at /openapi.json", (False, True)),
    "api_server_count": Ignored(1, "one process speaks HTTP", low=1),
    "chat_template_content_format": Ignored("auto", "the template says it", ("auto", "string", "openai")),
    "reasoning_parser": Ignored("", "the model's template says how it thinks"),
    "enable_reasoning": Ignored(False, "the model's template says how it thinks", (False, True)),
    "stream_interval": Ignored(1, "streams are sent as tokens come", low=1),
    "tool_call_parser": Ignored(None, "it counts with enable_auto_tool_choice only"),
    "enable_log_stats": Ignored(True, "", (False, True)),
    "show_hidden_metrics_for_version": Ignored(None, "none are hidden"),
    "logprobs_mode": Ignored("raw_logprobs", "", ("raw_logprobs",)),
    "model_impl": Ignored("auto", "", ("auto", "vllm")),
    "prefix_caching_hash_algo": Ignored("sha256", "blocks are known by their sha256", ("sha256", "sha256_cbor")),
    "attention_backend": Ignored(None, _KERNELS),
    "optimization_level": Ignored(None, _KERNELS),
    "performance_mode": Ignored(None, _KERNELS),
    "kv_offloading_backend": Ignored("native", _IN_MEMORY),
    "max_loras": Ignored(1, _WITH_LORA, low=1),
    "max_lora_rank": Ignored(16, _WITH_LORA, low=1),
    "max_cpu_loras": Ignored(None, _WITH_LORA),
    "fully_sharded_loras": Ignored(False, _WITH_LORA, (False, True)),
    "media_io_kwargs": Ignored(None, "models read text only"),
    "ignore_patterns": Ignored(None, "what is fetched is what is needed"),
    "tool_strict_level": Ignored(None, "it counts with enable_auto_tool_choice only"),
    "all2all_backend": Ignored(None, _ONE_PROCESS),
    "data_parallel_address": Ignored(None, _ONE_PROCESS),
    "data_parallel_rpc_port": Ignored(None, _ONE_PROCESS),
    "data_parallel_backend": Ignored("mp", _ONE_PROCESS),
    "master_addr": Ignored(None, _ONE_PROCESS),
    "node_rank": Ignored(0, _ONE_PROCESS, low=0),
}

_TOOLS = "tools do not exist yet"
REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    # name: (values that ask for nothing, why others are refused)
    "enable_auto_tool_choice": ((False,), _TOOLS),
    "tool_parser_plugin": ((None, ""), _TOOLS),
    "tool_server": ((None,), _TOOLS),
    "lora_modules": ((None,), "adapters are not loaded yet"),
    "prompt_adapters": ((None,), "adapters are not loaded yet"),
    "middleware": ((None,), "no code is loaded by name"),
    "grpc": ((False,), "HTTP is what is spoken"),
    "headless": ((False,), _ONE_PROCESS),
    "data_parallel_rank": ((None, 0), _ONE_PROCESS),
    "data_parallel_size_local": ((None, 1), _ONE_PROCESS),
    "enable_eplb": ((False,), _ONE_PROCESS),
    "kv_offloading_size": ((None, 0), _IN_MEMORY),
    "spec_method": ((None,), _DRAFTS),
    "spec_model": ((None,), _DRAFTS),
    "spec_tokens": ((None,), _DRAFTS),
    "nnodes": ((1,), "one machine runs the model"),
    "enable_tokenizer_info_endpoint": ((False,), "it does not exist"),
    "trust_request_chat_template": ((False,), "templates of requests run in the sandbox that all run in"),
}
