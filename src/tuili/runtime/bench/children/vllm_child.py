"""vLLM on the CPU."""

from __future__ import annotations

import itertools
import time

import vllm
from serve import Run


def open_peer(directory: str, max_num_seqs: str, max_len: str) -> tuple[str, Run]:
    """A Hugging Face directory in bfloat16."""
    engine = vllm.LLM(
        model=directory,
        dtype="bfloat16",
        max_model_len=int(max_len),
        max_num_seqs=int(max_num_seqs),
        max_num_batched_tokens=max(2048, int(max_len)),
        enable_prefix_caching=False,
        disable_log_stats=True,
    ).llm_engine
    names = itertools.count()

    def run(prompts: list[list[int]], max_tokens: int) -> list[list[float]]:
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        times: dict[str, list[float]] = {}
        start = time.perf_counter()
        for prompt in prompts:
            name = str(next(names))
            engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
            times[name] = []
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter() - start
            for output in outputs:
                own = times[output.request_id.split("-")[0]]
                own += [now] * (len(output.outputs[0].token_ids) - len(own))
        return list(times.values())

    return vllm.__version__, run
