"""Ten times what a server can do: who was accepted is answered, the rest is told at once, and the work goes on.

    python -m benchmarks.serve.overload MODEL [--seconds 60] [--factor 10] [--save NAME]

First the peak: as many clients as run at once ask without pause. Then asks of the same kind arrive evenly, --factor
times as many per second as the peak ended, whoever is still waiting. Goodput is tokens of answers over the time until
the last of them had come, as the peak is. client and http percent are shares of all cores during the overload.

The client that asks so much runs on the server's cores, and what it takes no server could use: with a client elsewhere
it would be there for answers. So the peak is measured once more behind the overload, beside a client that spends as
much processor time as the overload's, evenly. goodput_to_peak is of that peak, goodput_to_free_peak of the first. All
three take equally long, as each begins and ends with an engine that is not full.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import machine
from benchmarks.serve.client import Reply, ask, percentiles_ms, post, run
from benchmarks.serve.load import PATH
from benchmarks.serve.processes import Server, spent, tuili_server
from benchmarks.serve.prompts import Ask, asks

MAX_NUM_SEQS = 32
MAX_TOKENS = 32
NUM_CORES = len(os.sched_getaffinity(0))


def workload(seed: int) -> Iterator[bytes]:
    """Requests without end."""
    for more in itertools.count(seed):
        wanted: Sequence[Ask] = asks(
            256, seed=more, prompt_words=(8, 32), max_tokens=(MAX_TOKENS,) * 2, temperature=0.8
        )
        for one in wanted:
            yield post(PATH, one.body())


async def spend(share: float, seconds: float) -> None:
    """Has this process use that share of one core for so long, in small pieces."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    while (now_s := time.perf_counter() - start_s) < seconds:
        while time.process_time() - start_cpu_s < share * now_s:
            pass
        await asyncio.sleep(0.005)


async def peak(server: Server, seconds: float, seed: int, client_share: float = 0.0) -> dict[str, float]:
    """Answers and tokens per second with twice as many clients as sequences run at once.

    This process takes at least client_share of a core.
    """
    requests = workload(seed)
    replies: list[Reply] = []
    start_s = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - start_s < seconds:
            replies.append(await ask(server.address, next(requests)))

    await asyncio.gather(spend(client_share, seconds), *(client() for _ in range(2 * MAX_NUM_SEQS)))
    wall_s = time.perf_counter() - start_s
    return {
        "answers_per_s": sum(reply.is_whole for reply in replies) / wall_s,
        "tokens_per_s": sum(reply.num_tokens for reply in replies) / wall_s,
    }


async def overload(server: Server, per_s: float, seconds: float) -> dict[str, Any]:
    """Asks that arrive evenly; what became of them."""
    requests = iter(
        list(itertools.islice(workload(2000), int(per_s * (seconds + 10))))
    )  # made before, as that takes time
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    before, memory = server.cpu_s(), [server.own_kib()]
    tasks = []
    while (now_s := time.perf_counter() - start_s) < seconds:
        while len(tasks) < now_s * per_s:
            tasks.append(asyncio.create_task(ask(server.address, next(requests))))
        if now_s > seconds * len(memory) / 4:
            memory.append(server.own_kib())
        await asyncio.sleep(0.005)
    busy_s, client_cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    used = spent(before, server.cpu_s())
    replies = await asyncio.gather(*tasks)
    memory.append(server.own_kib())
    refused = [reply for reply in replies if reply.status == 429]
    accepted = [reply for reply in replies if reply.status == 200]
    working_s = max(reply.ended_s for reply in accepted) - start_s
    return {
        "offered_per_s": round(len(replies) / busy_s, 1),
        "asks": len(replies),
        "accepted": len(accepted),
        "accepted_not_whole": sum(not reply.is_whole for reply in accepted),
        "refused": len(refused),
        "refused_without_retry_after": sum("retry-after" not in reply.headers for reply in refused),
        "others": len(replies) - len(accepted) - len(refused),
        **percentiles_ms([reply.seconds for reply in refused], "refused"),
        "goodput_tokens_per_s": round(sum(reply.num_tokens for reply in accepted) / working_s, 1),
        "client_percent": round(100 * client_cpu_s / busy_s / NUM_CORES, 1),
        "http_percent": round(100 * used["http"] / busy_s / NUM_CORES, 1),
        "own_kib": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--factor", type=float, default=10)
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    flags = ["--max-num-seqs", str(MAX_NUM_SEQS), "--max-model-len", "1024", "--max-queued-requests", "64"]
    with tuili_server(arguments.model, *flags) as server:
        run(peak(server, 2, 1000))
        free = run(peak(server, arguments.seconds, 3000))
        row = run(overload(server, free["answers_per_s"] * arguments.factor, arguments.seconds))
        client_share = row["client_percent"] / 100 * NUM_CORES
        best = run(peak(server, arguments.seconds, 4000, client_share))
    row |= {f"{name}_tokens_per_s": round(p["tokens_per_s"], 1) for name, p in (("free_peak", free), ("peak", best))}
    row["goodput_to_free_peak"] = round(row["goodput_tokens_per_s"] / free["tokens_per_s"], 3)
    row["goodput_to_peak"] = round(row["goodput_tokens_per_s"] / best["tokens_per_s"], 3)
    print(json.dumps(row))
    if arguments.save:
        print(machine.save(arguments.save, {k: str(v) for k, v in vars(arguments).items()}, [row]))


if __name__ == "__main__":
    main()
