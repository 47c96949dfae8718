"""tuili beside llama.cpp on one GGUF file: prefill and single-stream decode, interleaved.

    python benchmarks/against_llama_cpp.py MODEL.gguf --llama-bench PATH [--rounds 5] [--threads 2] [--save NAME]

Both run in turns with the same number of threads; the ratio is the median over rounds. llama.cpp is
taken at the better of `--repack` on and off, when its build has the switch. Decode: 64 tokens after
a distinct 32-token prompt, prefill excluded; prefill: 512 random tokens, prefix cache off.
Perplexity, where a text is given with --text, is ours; llama-perplexity prints the peer's.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import uuid
from pathlib import Path
from typing import Any

import machine

from tuili.runtime.loading import LoadOptions, open_model
from tuili.runtime.outputs import RequestOutput, collect
from tuili.runtime.perplexity import perplexity
from tuili.runtime.pipeline import Pipeline
from tuili.types import GenerateRequest, SamplingParams

PREFILL_LEN, PROMPT_LEN, DECODE_LEN = 512, 32, 64


def measure_tuili(model: Pipeline, rng: random.Random) -> dict[str, float]:
    """Tokens per second of one prefill and one decode."""
    prefill = _answer(model, rng, PREFILL_LEN, 1)
    decode = _answer(model, rng, PROMPT_LEN, DECODE_LEN + 1)
    assert prefill.metrics is not None
    assert decode.metrics is not None
    return {
        "prefill": PREFILL_LEN / prefill.metrics.time_to_first_token_s,
        "decode": DECODE_LEN / decode.metrics.decode_s,
    }


def _answer(model: Pipeline, rng: random.Random, prompt_len: int, max_tokens: int) -> RequestOutput:
    ids = tuple(rng.randrange(100, model.spec.vocab_size - 100) for _ in range(prompt_len))
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    request = GenerateRequest(request_id=uuid.uuid4().hex, sampling=params, prompt_token_ids=ids)
    return collect(request.request_id, 1, model.stream(request))


def measure_llama_cpp(bench: Path, model: Path, threads: int) -> dict[str, float]:
    """Tokens per second by llama-bench's own count, best of its repack settings."""
    best = {"prefill": 0.0, "decode": 0.0}
    for extra in ([], ["--repack", "0"]) if _has_repack(bench) else ([],):
        command = [str(bench), "-m", str(model), "-t", str(threads), "-r", "1", "-o", "json"]
        command += ["-p", str(PREFILL_LEN), "-n", str(DECODE_LEN), *extra]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for row in json.loads(output):
            key = "prefill" if row["n_gen"] == 0 else "decode"
            best[key] = max(best[key], row["avg_ts"])
    return best


def _has_repack(bench: Path) -> bool:
    return "repack" in subprocess.run([str(bench), "--help"], capture_output=True, text=True, check=False).stdout


def rounds(arguments: argparse.Namespace, model: Pipeline) -> list[dict[str, Any]]:
    """One row per phase: medians of both, median of the ratios."""
    rng = random.Random(0)
    measure_tuili(model, rng)
    pairs = []
    for _ in range(arguments.rounds):
        bandwidth = machine.read_bandwidth_gb_s(128 << 20)
        pairs.append(
            (measure_tuili(model, rng), measure_llama_cpp(arguments.llama_bench, arguments.model, arguments.threads))
        )
        print(f"bandwidth {bandwidth:5.1f} GB/s  tuili {pairs[-1][0]}  llama.cpp {pairs[-1][1]}")
    return [
        {
            "phase": phase,
            "tuili_tok_s": round(statistics.median(ours[phase] for ours, _ in pairs), 1),
            "llama_cpp_tok_s": round(statistics.median(theirs[phase] for _, theirs in pairs), 1),
            "ratio": round(statistics.median(ours[phase] / theirs[phase] for ours, theirs in pairs), 2),
        }
        for phase in ("prefill", "decode")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--text", type=Path, help="a text to score")
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    options = LoadOptions(num_threads=arguments.threads, max_model_len=2048, enable_prefix_caching=False)
    with open_model(str(arguments.model), options) as model:
        rows = rounds(arguments, model)
        if arguments.text:
            score = perplexity(model, arguments.text.read_text(encoding="utf-8"), num_chunks=arguments.chunks)
            rows.append({"phase": "perplexity", "tuili": round(score.value, 3), "num_chunks": score.num_chunks})
    for row in rows:
        print(json.dumps(row))
    if arguments.save:
        settings = {"rounds": arguments.rounds, "threads": arguments.threads, "model": arguments.model.name}
        print(machine.save(arguments.save, settings, rows))


if __name__ == "__main__":
    main()
