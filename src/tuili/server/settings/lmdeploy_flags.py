"""Flags of LMDeploy's `serve api_server` that are neither settings here nor vLLM's. Data; foreign_flags reads it."""

from __future__ import annotations

from collections.abc import Mapping

from tuili.runtime.api.vllm_arguments import Ignored

_ONE_PROCESS = "one process speaks HTTP, on one machine"
_DRAFTS = "say it in speculative_config"
IGNORED: Mapping[str, Ignored] = {
    "model_format": Ignored(None, "the model's files say how they are stored"),
    "dist_init_addr": Ignored(None, _ONE_PROCESS),
    "migration_backend": Ignored("DLSlime", _ONE_PROCESS),
    "communicator": Ignored("nccl", "GPUs exchange their sums by NCCL", ("nccl", "native", "cuda-ipc")),
    "enable_abort_handling": Ignored(False, "who leaves ends the answer", (False, True)),
    "allow_methods": Ignored(None, "what each route takes is allowed"),
    "allow_headers": Ignored(None, "what clients need is allowed"),
    "disable_metrics": Ignored(False, "/metrics is always there, behind the keys", (False, True)),
    "log_level": Ignored("WARNING", "log_requests and log_file say what is logged"),
}

REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    # name: (values that ask for nothing, why others are refused)
    "cache_max_entry_count": ((None, 0.8), "say it in gpu_memory_utilization, a share of the whole memory"),
    "quant_policy": ((None, 0, "none"), "say it in kv_cache_dtype"),
    "num_tokens_per_iter": ((None, 0), "say it in max_num_batched_tokens"),
    "max_concurrent_requests": ((None,), "say it in max_num_seqs and max_queued_requests"),
    "ssl": ((False,), "give ssl_keyfile and ssl_certfile"),
    "adapters": ((None,), "adapters are not loaded yet"),
    "ep": ((1,), "experts are not divided"),
    "cp": ((1,), "contexts are not divided"),
    "role": (("Hybrid",), "an engine computes prompts and answers"),
    "proxy_url": ((None,), "a proxy is told of this server, not by it"),
    "allow_terminate_by_client": ((False,), "no client ends the server"),
    "rope_scaling_factor": ((None, 0, 1), "the model's own positions count"),
    "speculative_algorithm": ((None,), _DRAFTS),
    "speculative_draft_model": ((None,), _DRAFTS),
    "speculative_num_draft_tokens": ((None, 1), _DRAFTS),
}
