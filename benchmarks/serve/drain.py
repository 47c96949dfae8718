"""SIGTERM under load: what runs ends as it should, nothing new is taken, the process exits with 0.

    python -m benchmarks.serve.drain MODEL [--streams 32] [--times 5] [--save NAME]

Each time a server is started, --streams clients are sent half their text, and the server is told to stop. `cut` are
streams that did not end whole; `late` asks came after the signal, and were all refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

from benchmarks import machine
from benchmarks.serve.client import Exchange, Reply, ask, begin, post, run
from benchmarks.serve.load import PATH
from benchmarks.serve.processes import Server, tuili_server
from benchmarks.serve.prompts import asks

_EXIT_S = 60.0


async def streams_under(server: Server, count: int) -> dict[str, Any]:
    """Begins the streams, stops the server amid them, and waits for all to end."""
    wanted = asks(count, seed=3, prompt_words=(8, 32), max_tokens=(64, 96), temperature=0.8)
    exchanges: list[Exchange] = [await begin(server.address, post(PATH, one.body())) for one in wanted]
    while any(len(exchange.pieces) < 8 for exchange in exchanges):
        await asyncio.sleep(0.01)
    told_s = time.perf_counter()
    server.terminate()
    await asyncio.sleep(0.05)  # until the signal has come through
    late = [await ask(server.address, post(PATH, one.body())) for one in wanted[:8]]
    await asyncio.gather(*(exchange.ended for exchange in exchanges))
    replies = [Reply(e.sent_s, e.ended_s, e.pieces) for e in exchanges]
    ended_s = time.perf_counter()
    exit_code = await asyncio.to_thread(server.process.wait, _EXIT_S)
    return {
        "streams": count,
        "cut": sum(
            not reply.is_whole or reply.num_tokens != one.max_tokens for one, reply in zip(wanted, replies, strict=True)
        ),
        "late": len(late),
        "late_answered": sum(reply.status not in (0, 503) for reply in late),
        "drain_s": round(ended_s - told_s, 2),
        "exit_s": round(time.perf_counter() - ended_s, 2),
        "exit_code": exit_code,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    rows = []
    for _ in range(arguments.times):
        with tuili_server(
            arguments.model, "--max-num-seqs", str(arguments.streams), "--max-model-len", "1024"
        ) as server:
            rows.append(run(streams_under(server, arguments.streams)))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.save:
        print(machine.save(arguments.save, {k: str(v) for k, v in vars(arguments).items()}, rows))


if __name__ == "__main__":
    main()
