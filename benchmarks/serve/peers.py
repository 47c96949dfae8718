"""Side by side with llama.cpp's or vLLM's server: the same model, the same asks, the same client, in turns.

    python -m benchmarks.serve.peers MODEL --llama-server BINARY [--clients 1 8 16 32 64] [--rounds 3] [--save NAME]
    python -m benchmarks.serve.peers MODEL --vllm PYTHON --vllm-model DIRECTORY [--vllm-dtype float32]

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
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import machine
from benchmarks.serve.client import Reply, ask, percentiles_ms, post, run
from benchmarks.serve.load import PATH
from benchmarks.serve.processes import Server, llama_server, spent, tuili_server, vllm_server
from benchmarks.serve.prompts import asks

CONTEXT_LEN = 512
OURS = "tuili"
_AT_REST_S = 0.02  # of processor time in half a second
Opener: TypeAlias = Callable[[int], AbstractContextManager[Server]]


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


@contextmanager
def opened_peer(arguments: argparse.Namespace) -> Iterator[tuple[str, Opener]]:
    """The peer's name, and what gives its server for so many clients: llama.cpp's anew, vLLM's the same each time."""
    if arguments.llama_server:
        model = arguments.llama_model or arguments.model
        yield (
            "llama-server",
            lambda num: llama_server(arguments.llama_server, model, num, CONTEXT_LEN, arguments.threads),
        )
        return
    directory, most = arguments.vllm_model, max(arguments.clients)
    with vllm_server(arguments.vllm, directory, arguments.vllm_dtype, most, CONTEXT_LEN, arguments.threads) as server:
        yield "vllm", lambda num: nullcontext(server)


def wait_for_rest(servers: Collection[Server]) -> None:
    """Until none of them works any more: some spin for a while after their last answer, on the cores of who is next.

    Raises TimeoutError after a minute.
    """
    for _ in range(120):
        before = [server.cpu_s() for server in servers]
        time.sleep(0.5)
        used = [spent(first, server.cpu_s()) for first, server in zip(before, servers, strict=True)]
        if sum(sum(one.values()) for one in used) < _AT_REST_S:
            return
    raise TimeoutError("a server works with nothing to do")


def level(arguments: argparse.Namespace, num_clients: int, peer: str, open_peer: Opener) -> dict[str, Any]:
    """All rounds with so many clients; servers have answered once."""
    rounds: list[dict[str, dict[str, float]]] = []
    with ExitStack() as stack:
        threads, seqs = str(arguments.threads), str(max(num_clients, 2))
        flags = ["--num-threads", threads, "--max-num-seqs", seqs, "--max-model-len", str(CONTEXT_LEN)]
        servers = {
            OURS: stack.enter_context(tuili_server(arguments.model, *flags)),
            peer: stack.enter_context(open_peer(num_clients)),
        }
        for server in servers.values():
            run(turn(server, 1, 1, 0))
        for index in range(arguments.rounds):
            found = {}
            for name, server in list(servers.items())[:: 1 if index % 2 == 0 else -1]:
                wait_for_rest(servers.values())
                found[name] = run(turn(server, num_clients, arguments.asks, index + 1))
            rounds.append(found)
    return {"clients": num_clients, **_summary(rounds, peer), "rounds": rounds}


def _summary(rounds: Sequence[dict[str, dict[str, float]]], peer: str) -> dict[str, Any]:
    names = list(rounds[0][OURS])
    medians = {
        who: {name: round(statistics.median(r[who][name] for r in rounds), 2) for name in names} for who in (OURS, peer)
    }
    ratios = {
        name: round(statistics.median(r[OURS][name] / r[peer][name] for r in rounds), 3)
        for name in names
        if all(r[peer][name] for r in rounds)
    }
    return {**medians, "ratios": ratios}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--llama-server", type=Path, help="the binary")
    peer.add_argument("--vllm", type=Path, metavar="PYTHON", help="interpreter of the environment that has it")
    parser.add_argument("--llama-model", help="another file for it, such as a re-quantization that suits it better")
    parser.add_argument("--vllm-model", type=Path, help="the same weights as a Hugging Face directory")
    parser.add_argument("--vllm-dtype", default="bfloat16")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--asks", type=int, default=4, help="of each client, in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    if arguments.vllm and not arguments.vllm_model:
        parser.error("--vllm needs --vllm-model")
    return arguments


def main() -> None:
    arguments = _arguments()
    rows = []
    with opened_peer(arguments) as (peer, open_peer):
        for num_clients in arguments.clients:
            rows.append(level(arguments, num_clients, peer, open_peer))
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "rounds"}), flush=True)
    if arguments.save:
        print(machine.save(arguments.save, {k: str(v) for k, v in vars(arguments).items()}, rows))


if __name__ == "__main__":
    main()
