"""Whether a long prompt stalls those who are reading: time between tokens of running streams, before and beside it.

    python benchmarks/cpu/latency.py MODEL.gguf [--streams 8] [--prompt 8000] [--max-slowdown 2 | 0] [--save NAME]

`streams` answers run, each after a short prompt; then one long prompt arrives. Prints the median and
the 99th percentile of the time between two tokens of a stream while nothing else happens and while
the prompt is computed, and how long that took. --max-slowdown 0 sets no limit.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tuili.engine.loop import EngineLoop
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.types import SamplingParams, TokenDelta, TokenRequest

sys.path.insert(0, str(Path(__file__).parent.parent))
import machine

IDLE_TOKENS = 64  # of each stream, between its start and the arrival of the prompt


class Streams:
    """Running answers, the times of their tokens, and a prompt that arrives when all have their first tokens."""

    def __init__(self, loop: EngineLoop, vocab_size: int, num_streams: int, prompt_len: int, max_len: int) -> None:
        self._loop = loop
        self._rng = random.Random(0)
        self._vocab_size = vocab_size
        self._times: dict[str, list[float]] = {}
        self._ready = 0
        self._num_streams = num_streams
        self._prompt_len = prompt_len
        self._max_len = max_len
        self.arrived_s = self.answered_s = 0.0

    def run(self) -> None:
        """Returns when the prompt has been answered."""
        for i in range(self._num_streams):
            self._submit(f"stream {i}", 32, self._max_len - 32, self._note)
        while not self.answered_s:
            time.sleep(0.1)  # of the reader's thread: the deltas are timed in the engine's

    def gaps(self, start: float, stop: float) -> Any:
        """Milliseconds between neighbouring tokens within a span of time."""
        spans = [np.array([t for t in times if start <= t <= stop]) for times in self._times.values()]
        return np.concatenate([np.diff(span) for span in spans]) * 1e3

    def idle_since(self) -> float:
        """When the last stream had its second token."""
        return max(times[1] for times in self._times.values())

    def _submit(self, name: str, prompt_len: int, max_tokens: int, sink: Any) -> None:
        ids = tuple(self._rng.randrange(self._vocab_size // 100, self._vocab_size) for _ in range(prompt_len))
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        self._loop.submit(TokenRequest(request_id=name, prompt_token_ids=ids, sampling=params, seed=0), sink)

    def _note(self, delta: TokenDelta) -> None:
        times = self._times.setdefault(delta.request_id, [])
        times += [time.perf_counter()] * len(delta.token_ids)
        self._ready += len(times) == IDLE_TOKENS
        if self._ready == self._num_streams and not self.arrived_s:
            self.arrived_s = time.perf_counter()
            self._submit("prompt", self._prompt_len, 1, self._answered)

    def _answered(self, delta: TokenDelta) -> None:
        self.answered_s = time.perf_counter()
        for i in range(self._num_streams):
            self._loop.abort(f"stream {i}")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One row of results."""
    options = LoadOptions(
        speculative=None,
        num_threads=arguments.threads,
        max_num_seqs=arguments.streams + 1,
        max_slowdown=arguments.max_slowdown or None,
        enable_prefix_caching=False,
    )
    with open_model(str(arguments.model), options) as model:
        prompt_len = min(arguments.prompt, model.max_model_len - 1)
        streams = Streams(model.loop, model.spec.vocab_size, arguments.streams, prompt_len, model.max_model_len)
        streams.run()
    idle = streams.gaps(streams.idle_since(), streams.arrived_s)
    busy = streams.gaps(streams.arrived_s, streams.answered_s)
    row: dict[str, Any] = {"streams": arguments.streams, "prompt_len": prompt_len, "max_slowdown": options.max_slowdown}
    for name, gaps in (("idle", idle), ("beside_prompt", busy)):
        row |= {f"{name}_p{q}_ms": round(float(np.percentile(gaps, q)), 2) for q in (50, 99)}
    row["p99_to_idle_p50"] = round(row["beside_prompt_p99_ms"] / row["idle_p50_ms"], 2)
    row["p99_to_idle_p99"] = round(row["beside_prompt_p99_ms"] / row["idle_p99_ms"], 2)
    row["prompt_s"] = round(streams.answered_s - streams.arrived_s, 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=8000)
    parser.add_argument("--max-slowdown", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    row = measure(arguments)
    print(json.dumps(row))
    if arguments.save:
        print(machine.save(arguments.save, {k: str(v) for k, v in vars(arguments).items()}, [row]))


if __name__ == "__main__":
    main()
