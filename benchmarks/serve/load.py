"""Many streams at once: does each say what it says alone, how long do readers wait, what does a token cost?

    python -m benchmarks.serve.load MODEL [--streams 64] [--minutes 10] [--rounds 5] [--idle 10] [--save NAME]

`exact`: every ask is first answered alone; then as many clients as --streams ask without pause until the time is over,
and every answer is compared, token for token. `cost`: the same asks of greedy decoding, all at once, in turns by the
server and by LLM.generate; processor seconds per token of both, the client's not among them. `first_token`: one short
request at a time, in turns by the server and in the engine's own process, over a connection that stays and over a new
one for each. `idle`: processor time of a server that has
served and has nothing to do.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import uvloop
from benchmarks import machine
from benchmarks.serve.client import Connection, Reply, ask, percentiles_ms, post, run
from benchmarks.serve.offline import Offline, offline
from benchmarks.serve.processes import Server, spent, threads_cpu_s, tuili_server
from benchmarks.serve.prompts import Ask, asks

PATH = "/v1/completions"


async def answers(server: Server, wanted: Sequence[Ask], **fields: Any) -> list[Reply]:
    """All at once."""
    return list(await asyncio.gather(*(ask(server.address, post(PATH, a.body(**fields))) for a in wanted)))


async def exact(server: Server, num_streams: int, seconds: float) -> dict[str, Any]:
    """Streams without pause, each compared with the same ask answered alone."""
    wanted = asks(num_streams, seed=1, prompt_words=(8, 96), max_tokens=(16, 64), temperature=0.8)
    alone = {}
    for one in wanted:
        (reply,) = await answers(server, [one], return_token_ids=True)
        if not reply.is_whole:
            raise RuntimeError(f"not answered: {reply.status} {reply.body[:500]!r}")
        alone[one] = (reply.text, reply.token_ids)
    replies: list[tuple[Ask, Reply]] = []
    turns = itertools.cycle(wanted)
    until_s = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < until_s:
            one = next(turns)
            replies.append((one, await ask(server.address, post(PATH, one.body(return_token_ids=True)))))

    start_s, before = time.perf_counter(), server.cpu_s()
    await asyncio.gather(*(client() for _ in range(num_streams)))
    wall_s, used = time.perf_counter() - start_s, spent(before, server.cpu_s())
    whole = [(one, reply) for one, reply in replies if reply.is_whole]
    num_tokens = sum(len(reply.token_ids) for _, reply in whole)
    return {
        "measure": "exact",
        "streams": num_streams,
        "seconds": round(wall_s, 1),
        "answers": len(replies),
        "failed": len(replies) - len(whole),
        "different": sum((reply.text, reply.token_ids) != alone[one] for one, reply in whole),
        "tokens_per_s": round(num_tokens / wall_s, 1),
        **percentiles_ms([reply.ttft_s for _, reply in whole], "ttft"),
        **percentiles_ms([gap for _, reply in whole for gap in reply.gaps_s], "gap"),
        **{f"{name}_cpu_us_per_token": round(s / num_tokens * 1e6, 1) for name, s in used.items()},
    }


def cost(server: Server, alone: Offline, num_streams: int, num_rounds: int, max_tokens: int) -> dict[str, Any]:
    """Processor time per token, of the server's processes and of LLM.generate."""
    rounds = []
    for index in range(num_rounds + 1):
        wanted = asks(
            num_streams, seed=100 + index, prompt_words=(16, 24), max_tokens=(max_tokens,) * 2, temperature=0.0
        )
        before, start_s = server.cpu_s(), time.perf_counter()
        replies = run(answers(server, wanted))
        wall_s, used = time.perf_counter() - start_s, spent(before, server.cpu_s())
        count = sum(reply.num_tokens for reply in replies)
        ours = alone.generate(wanted)
        if not all(reply.is_whole for reply in replies) or count != ours["num_tokens"]:
            raise RuntimeError("the server answered less than LLM.generate")
        row = {f"{name}_us": s / count * 1e6 for name, s in used.items()}
        row |= {"offline_us": ours["cpu_s"] / count * 1e6, "server_s": wall_s, "offline_s": ours["wall_s"]}
        row["ratio"] = sum(used.values()) / ours["cpu_s"]
        rounds.append(row)
    middle = {key: statistics.median(row[key] for row in rounds[1:]) for key in rounds[0]}  # without the first
    return {
        "measure": "cost",
        "streams": num_streams,
        "max_tokens": max_tokens,
        "rounds": num_rounds,
        **{f"{name}_per_token": round(middle[name], 1) for name in ("http_us", "engine_us", "offline_us")},
        "cpu_to_offline": round(middle["ratio"], 3),
        "wall_to_offline": round(middle["server_s"] / middle["offline_s"], 3),
    }


def first_token(server: Server, alone: Offline, count: int) -> list[dict[str, Any]]:
    """Time to the first token of one who asks alone: of the server, and in the engine's own process.

    Asked over a connection that stays, as API clients do, and over a new one each time.
    """
    times: dict[str, list[tuple[float, float]]] = {"kept": [], "new": []}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection = runner.run(Connection.to(server.address))

        async def asked(one: Ask, how: str) -> Reply:
            if how == "new":
                return await ask(server.address, post(PATH, one.body()))
            return await connection.ask(post(PATH, one.body(), {"Connection": "keep-alive"}))

        for one, how in zip(_first_asks(2 * count + 6), itertools.cycle(times), strict=False):
            times[how].append((runner.run(asked(one, how)).ttft_s, alone.first_token_s(one)))
        connection.close()
    return [_overhead(how, pairs[3:]) for how, pairs in times.items()]


def _first_asks(count: int) -> Sequence[Ask]:
    return asks(count, seed=2, prompt_words=(12, 16), max_tokens=(4, 4), temperature=0.0)


def _overhead(connection: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    theirs, ours = zip(*pairs, strict=True)
    return {
        "measure": "first_token",
        "connection": connection,
        "asks": len(pairs),
        "server_ms": round(statistics.median(theirs) * 1e3, 2),
        "in_process_ms": round(statistics.median(ours) * 1e3, 2),
        "overhead_ms": round(statistics.median(a - b for a, b in pairs) * 1e3, 2),
    }


def idle(server: Server, seconds: float) -> dict[str, Any]:
    """Share of a core that a server takes while nobody asks."""
    time.sleep(1)
    pids = server.pids()
    before, start_s = {name: threads_cpu_s(pid) for name, pid in pids.items()}, time.perf_counter()
    time.sleep(seconds)
    used = spent(before, {name: threads_cpu_s(pid) for name, pid in pids.items()})
    wall_s = time.perf_counter() - start_s
    shares = {f"{name}_percent": round(100 * s / wall_s, 3) for name, s in used.items()}
    return {"measure": "idle", "seconds": seconds, **shares}


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    flags = ["--max-num-seqs", str(arguments.streams), "--max-model-len", "1024"]
    with tuili_server(arguments.model, *flags) as server:
        if arguments.minutes:
            yield run(exact(server, arguments.streams, arguments.minutes * 60))
        if arguments.rounds or arguments.first_tokens:
            with offline(arguments.model, arguments.streams) as alone:
                if arguments.rounds:
                    yield cost(server, alone, arguments.streams, arguments.rounds, arguments.max_tokens)
                if arguments.first_tokens:
                    yield from first_token(server, alone, arguments.first_tokens)
        if arguments.idle:
            yield idle(server, arguments.idle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10, help="of `exact`; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=5, help="of `cost`; 0 leaves it out")
    parser.add_argument("--max-tokens", type=int, default=96, help="of each answer in `cost`")
    parser.add_argument(
        "--first-tokens",
        type=int,
        default=30,
        help="asks of `first_token`, of each kind; 0: none",
    )
    parser.add_argument("--idle", type=float, default=10, help="seconds; 0 leaves it out")
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    rows = []
    for row in measured(arguments):
        print(json.dumps(row), flush=True)
        rows.append(row)
    if arguments.save:
        print(machine.save(arguments.save, {k: str(v) for k, v in vars(arguments).items()}, rows))


if __name__ == "__main__":
    main()
