"""F1 for a model in several processes: kill -9 of any of them. All start anew, streams go on, none is left over."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

from support.faults import take_all
from support.gguf_models import seeds
from tuili.runtime.loading.loading import LoadOptions
from tuili.runtime.supervision.engine_start import start_engine
from tuili.runtime.supervision.supervised_engine import RestartPolicy
from tuili.types import SamplingParams, TokenDelta, TokenRequest

PATIENT = RestartPolicy(silence_s=120, hang_timeout_s=240)
OPTIONS = LoadOptions(
    backend="torch", device="cpu", num_threads=1, max_num_seqs=4, max_model_len=64, tensor_parallel_size=2
)


def ranks_of(engine_process: int) -> list[int]:
    return [child.pid for child in psutil.Process(engine_process).children()]


async def gone(process_ids: Sequence[int]) -> None:
    async with asyncio.timeout(240):
        while any(psutil.pid_exists(i) and psutil.Process(i).status() != psutil.STATUS_ZOMBIE for i in process_ids):
            await asyncio.sleep(0.01)


async def test_streams_survive_the_end_of_a_rank_and_of_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    engine = await start_engine(path, OPTIONS, policy=PATIENT)
    requests = [
        TokenRequest(
            request_id=f"r{i}",
            prompt_token_ids=(1, 5, 9 + i),
            sampling=SamplingParams(max_tokens=40, temperature=0.9 * i, ignore_eos=True),
            seed=i,
        )
        for i in range(2)
    ]
    uncut = await take_all(engine, requests)
    first = engine.facts.process_id
    (rank,) = ranks_of(first)
    left = 20

    def kill(deltas: Sequence[TokenDelta]) -> None:
        nonlocal left
        left -= len(deltas)
        if left <= 0 and engine.facts.process_id == first:
            left = 1_000_000
            os.kill(rank, signal.SIGKILL)

    cut = await take_all(engine, requests, kill)
    for request, before, after in zip(requests, uncut, cut, strict=True):
        assert after.tokens(request.request_id) == before.tokens(request.request_id)
    async with asyncio.timeout(240):
        while (engine.health.num_restarts, engine.health.is_ready) != (1, True):
            await asyncio.sleep(0.01)
    second = engine.facts.process_id
    (other,) = ranks_of(second)
    engine.close()  # kills the process without a word
    await gone([first, rank, second, other])
    await engine.aclose()  # its end is waited for here, too
