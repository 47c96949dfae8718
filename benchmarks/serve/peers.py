"""Side by side with llama.cpp's server: the same file, the same asks, the same client, in turns.

    python -m benchmarks.serve.peers MODEL --llama-server BINARY [--clients 1 8 16 32 64] [--rounds 3] [--save NAME]

Each client asks --asks times, one after another, so that prompts arrive while others are answered. Both run with two
threads and room for every client; all asks are new, so that no cache helps. Rates are tokens per second of all
clients together; a gap is what a reader waits between two pieces of text (tuili's may bring several tokens above
eight streams). Ratios are medians over rounds of pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.serve.client import Reply, ask, percentiles_ms, post, run
from benchmarks.serve.load import PATH
from benchmarks.serve.processes import Server, llama_server, spent, tuili_server
from benchmarks.serve.prompts import asks

CONTEXT_LEN = 512
OURS, PEER = "tuili", "llama-server"


async def turn(server: Server, num_clients: int, num_asks: int, seed: int) -> dict[str, float]:
    """One round of one server. Raises RuntimeError when an answer is not whole."""
    replies: list[Reply] = []

    async def client(number: int) -> None:
        wanted = asks(num_asks, seed=seed * 1000 + number, prompt_words=(16, 96), max_tokens=(32, 64), temperature=0.0)
        for one in wanted:
            replies.append(await ask(server.address, post(PATH, one.body(cache_prompt=False))))

    start_s, before = time.perf_counter(), server.cpu_s()
    await asyncio.gather(*(client(number) for number in range(num_clients)))
    wall_s, used = time.perf_counter() - start_s, spent(before, server.cpu_s())
    if not all(reply.is_whole for reply in replies):
        raise RuntimeError(f"not answered: {next(r.body[:500] for r in replies if not r.is_whole)!r}")
    num_tokens = sum(reply.num_tokens for reply in replies)
    return {
        "tokens_per_s": round(num_tokens / wall_s, 1),
        "cpu_us_per_token": round(sum(used.values()) / num_tokens * 1e6),
        **percentiles_ms([reply.ttft_s for reply in replies], "ttft"),
        **percentiles_ms([gap for reply in replies for gap in reply.gaps_s], "gap"),
    }


def level(arguments: argparse.Namespace, num_clients: int) -> dict[str, Any]:
    """All rounds with so many clients; servers are fresh, and have answered once."""
    rounds: list[dict[str, dict[str, float]]] = []
    with ExitStack() as stack:
        peer_model = arguments.llama_model or arguments.model
        threads, seqs = str(arguments.threads), str(max(num_clients, 2))
        flags = ["--num-threads", threads, "--max-num-seqs", seqs, "--max-model-len", str(CONTEXT_LEN)]
        servers = {
            OURS: stack.enter_context(tuili_server(arguments.model, *flags)),
            PEER: stack.enter_context(
                llama_server(arguments.llama_server, peer_model, num_clients, CONTEXT_LEN, arguments.threads)
            ),
        }
        for server in servers.values():
            run(turn(server, 1, 1, 0))
        for index in range(arguments.rounds):
            order = list(servers.items())[:: 1 if index % 2 == 0 else -1]
            rounds.append({n: run(turn(server, num_clients, arguments.asks, index + 1)) for n, server in order})
    return {"clients": num_clients, **_summary(rounds), "rounds": rounds}


def _summary(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    names = list(rounds[0][OURS])
    medians = {
        who: {name: round(statistics.median(r[who][name] for r in rounds), 2) for name in names} for who in (OURS, PEER)
    }
    ratios = {
        name: round(statistics.median(r[OURS][name] / r[PEER][name] for r in rounds), 3)
        for name in names
        if all(r[PEER][name] for r in rounds)
    }
    return {**medians, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--llama-model", help="another file for it, such as a re-quantization that suits it better")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--asks", type=int, default=4, help="of each client, in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    rows = []
    for num_clients in arguments.clients:
        rows.append(level(arguments, num_clients))
        print(json.dumps({key: value for key, value in rows[-1].items() if key != "rounds"}), flush=True)
    if arguments.save:
        print(machine.save(arguments.save, {k: str(v) for k, v in vars(arguments).items()}, rows))


if __name__ == "__main__":
    main()
