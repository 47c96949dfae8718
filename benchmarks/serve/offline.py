"""The same engine without a server, in a process of its own: `LLM.generate`, and the time to a first token.

    python -m benchmarks.serve.offline MODEL MAX_NUM_SEQS

reads a line of JSON for each measurement and answers with one.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from benchmarks.serve.prompts import Ask

from tuili import LLM, SamplingParams
from tuili.engine.client import InProcess
from tuili.types import GenerateRequest, TextDelta


def _params(ask: Sequence[Any]) -> SamplingParams:
    _, max_tokens, seed, temperature = ask
    return SamplingParams(max_tokens=max_tokens, seed=seed, temperature=temperature, ignore_eos=True)


def generate(llm: LLM, asks: Sequence[Sequence[Any]]) -> dict[str, float]:
    """All at once; processor and wall time, and tokens that came."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    outputs = llm.generate([ask[0] for ask in asks], [_params(ask) for ask in asks], use_tqdm=False)
    return {
        "cpu_s": time.process_time() - start_cpu_s,
        "wall_s": time.perf_counter() - start_s,
        "num_tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
    }


async def first_token(llm: LLM, client: InProcess, ask: Sequence[Any]) -> dict[str, float]:
    """Seconds from the request to the first text, for someone in the engine's own process."""
    start_s = time.perf_counter()
    request = GenerateRequest(request_id=f"{start_s}", prompt=ask[0], sampling=_params(ask))
    first_s = 0.0
    async with aclosing(llm._pipeline.front.answer(request, client)) as steps:
        async for events in steps:
            if not first_s and any(isinstance(event, TextDelta) and event.text for event in events):
                first_s = time.perf_counter()
    if not first_s:
        raise RuntimeError("an answer without text")
    return {"ttft_s": first_s - start_s}


def main() -> None:
    model, max_num_seqs = sys.argv[1:]
    with LLM(model, max_num_seqs=int(max_num_seqs)) as llm, asyncio.Runner() as runner:
        client = InProcess(llm._pipeline.loop)
        print("ready", flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            if "generate" in order:
                answer = generate(llm, order["generate"])
            else:
                answer = runner.run(first_token(llm, client, order["first_token"]))
            print(json.dumps(answer), flush=True)


class Offline:
    """The other end of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def generate(self, asks: Sequence[Ask]) -> dict[str, float]:
        return self._told({"generate": [_fields(ask) for ask in asks]})

    def first_token_s(self, ask: Ask) -> float:
        return self._told({"first_token": _fields(ask)})["ttft_s"]

    def _told(self, order: dict[str, Any]) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        told: dict[str, float] = json.loads(self._process.stdout.readline())
        return told


def _fields(ask: Ask) -> list[Any]:
    return [ask.prompt, ask.max_tokens, ask.seed, ask.temperature]


@contextmanager
def offline(model: str, max_num_seqs: int) -> Iterator[Offline]:
    """A process with the model loaded."""
    command = [sys.executable, "-m", "benchmarks.serve.offline", model, str(max_num_seqs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the model could not be loaded")
        try:
            yield Offline(process)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
