"""Ten times what a server can do: who was accepted is answered, the rest is told at once, and the work goes on.

    python -m benchmarks.serve.overload MODEL [--seconds 60] [--rounds 20] [--slice 2] [--factor 10] [--save NAME]

`overload`: asks arrive evenly, --factor times as many per second as the peak ended, whoever is still waiting: for
--seconds, in which refusals are timed and answers looked at.

Then goodput beside the peak, in --rounds of three slices of --slice seconds each, every second round in reverse, as
machines drift. The engine is full all the while; the first second of each slice is left out:

- `free`: as many clients as run at once, and as many who wait, ask without pause: the peak.
- `beside`: the same, and the overload's refused asks go, by the same client, to a listener that refuses them as cheaply
  as a process can (stub.py). Client and listener run on the server's cores: what they take is no server's to use.
- `overload`: as above.

goodput_to_peak is of the second, goodput_to_free_peak of the first; an error is that of a mean over rounds. Tokens are
counted where they are read. computed_to_peak counts prompts, too, as their first token comes: what was computed for
answers that were whole in the end. Prompts are of one length, so that slices differ little in it; answers are not, as
their prompts would all be computed at once, in one slice or another. Processor seconds per token are the server's own;
percent are shares of all cores. `work` is what the engine did, as /metrics tells it; running and waiting are those at
the slices' ends.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks import machine
from benchmarks.serve.client import Address, Reply, ask, percentiles_ms, post, run
from benchmarks.serve.load import PATH
from benchmarks.serve.processes import Server, metrics, spent, threads_cpu_s, tuili_server
from benchmarks.serve.prompts import Ask, asks

MAX_NUM_SEQS = 32
NUM_CLIENTS = 2 * MAX_NUM_SEQS
MAX_QUEUED = 8  # beside those whom the engine has
PROMPT_WORDS = 20
MAX_TOKENS = (16, 48)
FILLING_S = 1.0
NUM_CORES = len(os.sched_getaffinity(0))
SLICES = ("free", "beside", "overload")
COUNTED = {
    "steps": "tuili:engine_steps_total",
    "computed": "tuili:engine_tokens_computed_total",
    "chosen": "vllm:generation_tokens_total",
    "drafted": "vllm:spec_decode_num_draft_tokens_total",
}
STANDING = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
}


def workload(seed: int) -> Iterator[bytes]:
    """Requests without end."""
    for more in itertools.count(seed):
        wanted: Sequence[Ask] = asks(
            256, seed=more, prompt_words=(PROMPT_WORDS,) * 2, max_tokens=MAX_TOKENS, temperature=0.8
        )
        for one in wanted:
            yield post(PATH, one.body(return_token_ids=True))


@dataclass(frozen=True)
class Slice:
    """Some time under one load."""

    load: str
    from_s: float
    until_s: float
    used: dict[str, float]  # processor seconds meanwhile, by process
    counted: dict[str, float]  # meanwhile, by COUNTED's names
    standing: dict[str, float]  # at its end, by STANDING's names

    @property
    def seconds(self) -> float:
        return self.until_s - self.from_s


@dataclass
class Run:
    """One server, what it is asked, and all that came back."""

    server: Server
    stub_pid: int
    stub_address: Address
    factor: float
    slices: list[Slice] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)  # the server's
    _requests: Iterator[bytes] = field(default_factory=lambda: workload(1000))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _num_open: int = 0  # asks of the server that are not answered
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def per_s(self) -> float:
        """Asks of an overload."""
        free = [one for one in self.slices if one.load == "free"]
        ended = sum(r.is_whole and any(s.from_s <= r.ended_s < s.until_s for s in free) for r in self.replies)
        return self.factor * ended / sum(one.seconds for one in free)

    async def slice(self, load: str, seconds: float) -> None:
        """That load for so long, once the engine is full of it."""
        until_s = time.perf_counter() + FILLING_S + seconds
        if load == "overload":
            asking = [self._ask_evenly(self.server.address, self.per_s, until_s)]
        else:
            asking = [self._keep_asking(until_s)]
        if load == "beside":  # as many as the server would refuse
            asking.append(self._ask_evenly(self.stub_address, (1 - 1 / self.factor) * self.per_s, until_s))
        tasks = [asyncio.create_task(one) for one in asking]
        await asyncio.sleep(FILLING_S)
        counted_before = await self._told(COUNTED)
        from_s, before = time.perf_counter(), self._cpu_s()
        await asyncio.sleep(until_s - 0.1 - time.perf_counter())
        found = await self._told(COUNTED | STANDING)  # while it is still asked
        await asyncio.gather(*tasks)
        counted = {name: found[name] - count for name, count in counted_before.items()}
        standing = {name: found[name] for name in STANDING}
        used = spent(before, self._cpu_s())
        self.slices.append(Slice(load, from_s, time.perf_counter(), used, counted, standing))

    async def finished(self) -> None:
        """Returns when all is answered."""
        await asyncio.gather(*self._tasks)

    async def _told(self, names: Mapping[str, str]) -> dict[str, float]:
        found = await metrics(self.server)
        return {name: found[metric] for name, metric in names.items()}

    def _cpu_s(self) -> dict[str, float]:
        pids = {**self.server.pids(), "stub": self.stub_pid}
        return {**{who: threads_cpu_s(pid) for who, pid in pids.items()}, "client": time.process_time()}

    async def _keep_asking(self, until_s: float) -> None:
        """Whenever one of the clients has its answer, it asks again."""
        while (left_s := until_s - time.perf_counter()) > 0:
            while self._num_open < NUM_CLIENTS:
                self._begin(self.server.address, next(self._requests))
            self._answered.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._answered.wait(), left_s)

    async def _ask_evenly(self, address: Address, per_s: float, until_s: float) -> None:
        """So many a second, whatever becomes of them."""
        start_s, count = time.perf_counter(), 0
        while (now_s := time.perf_counter()) < until_s:
            for _ in range(int((now_s - start_s) * per_s) - count):
                self._begin(address, next(self._requests))
                count += 1
            await asyncio.sleep(0.005)

    def _begin(self, address: Address, request: bytes) -> None:
        self._num_open += address == self.server.address
        task = asyncio.create_task(self._ask(address, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, address: Address, request: bytes) -> None:
        reply = await ask(address, request)
        if address == self.server.address:
            self.replies.append(reply)
            self._num_open -= 1
            self._answered.set()


@contextmanager
def stub_process() -> Iterator[tuple[int, Address]]:
    command = [sys.executable, "-m", "benchmarks.serve.stub"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, ("127.0.0.1", int(process.stdout.readline()))
        finally:
            process.kill()


def refusals(replies: Sequence[Reply]) -> dict[str, Any]:
    """What became of an overload's asks."""
    refused = [reply for reply in replies if reply.status == 429]
    accepted = [reply for reply in replies if reply.status == 200]
    return {
        "measure": "refusals",
        "asks": len(replies),
        "accepted": len(accepted),
        "accepted_not_whole": sum(not reply.is_whole for reply in accepted),
        "refused": len(refused),
        "refused_without_retry_after": sum("retry-after" not in reply.headers for reply in refused),
        "others": len(replies) - len(accepted) - len(refused),
        **percentiles_ms([reply.seconds for reply in refused], "refused"),
    }


def goodput(slices: Sequence[Slice], replies: Sequence[Reply]) -> dict[str, Any]:
    """The loads beside each other."""
    rates: dict[str, list[float]] = {name: [] for name in SLICES}
    computed: dict[str, list[float]] = {name: [] for name in SLICES}
    used: dict[str, dict[str, float]] = {name: {} for name in SLICES}
    whole = [reply for reply in replies if reply.is_whole]
    for one in slices:
        num_tokens = sum(reply.num_tokens_between(one.from_s, one.until_s) for reply in whole)
        rates[one.load].append(num_tokens / one.seconds)
        num_prompt = sum(r.num_prompt_tokens for r in whole if one.from_s <= r.sent_s + r.ttft_s < one.until_s)
        computed[one.load].append((num_tokens + num_prompt) / one.seconds)
        for process, seconds in one.used.items():
            used[one.load][process] = used[one.load].get(process, 0.0) + seconds / one.seconds
    means = {name: statistics.mean(found) for name, found in rates.items()}
    num_refused_per_s = sum(
        reply.status == 429 and any(s.from_s <= reply.ended_s < s.until_s for s in slices) for reply in replies
    ) / sum(s.seconds for s in slices if s.load == "overload")
    share = {name: {who: s / len(rates[name]) for who, s in by.items()} for name, by in used.items()}
    for_answers = share["beside"]["http"] * means["overload"] / means["beside"]
    return {
        "measure": "goodput",
        **{f"{name}_tokens_per_s": round(mean, 1) for name, mean in means.items()},
        "goodput_to_peak": round(means["overload"] / means["beside"], 3),
        "goodput_to_peak_error": round(_error(rates["overload"], rates["beside"]), 3),
        "computed_to_peak": round(sum(computed["overload"]) / sum(computed["beside"]), 3),
        "computed_to_peak_error": round(_error(computed["overload"], computed["beside"]), 3),
        "goodput_to_free_peak": round(means["overload"] / means["free"], 3),
        "refused_per_s": round(num_refused_per_s, 1),
        "http_us_per_refusal": round((share["overload"]["http"] - for_answers) / num_refused_per_s * 1e6),
        "cpu_us_per_token": {
            name: round((share[name]["http"] + share[name]["engine"]) / means[name] * 1e6) for name in SLICES
        },
        "work": {name: work([s for s in slices if s.load == name], means[name]) for name in SLICES},
        "percent": {name: {who: round(100 * s / NUM_CORES, 1) for who, s in share[name].items()} for name in SLICES},
        "rounds": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
    }


def work(slices: Sequence[Slice], tokens_per_s: float) -> dict[str, float]:
    """What the engine computed under one load."""
    steps, computed, chosen, drafted = (sum(one.counted[name] for one in slices) for name in COUNTED)
    return {
        **{name: round(statistics.mean(one.standing[name] for one in slices), 1) for name in STANDING},
        "tokens_per_step": round(chosen / steps, 2),
        "computed_per_token": round(computed / chosen, 3),
        "drafted_per_token": round(drafted / chosen, 3),
        "step_ms": round(chosen / steps / tokens_per_s * 1e3, 1),
    }


def _error(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the ratio of their means, from that of each round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0


async def measured(run: Run, arguments: argparse.Namespace) -> Sequence[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    await run.slice("free", 8)
    if arguments.seconds:
        first = len(run.replies)
        await run.slice("overload", arguments.seconds - FILLING_S)
        await run.finished()
        rows.append({**refusals(run.replies[first:]), "own_kib": run.server.own_kib()})
        print(json.dumps(rows[-1]), flush=True)
    run.slices[1:] = []
    for number in range(arguments.rounds):
        for load in SLICES if number % 2 == 0 else reversed(SLICES):
            await run.slice(load, arguments.slice)
    await run.finished()
    if arguments.rounds:
        rows.append(goodput(run.slices[1:], run.replies))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=60, help="of the overload whose refusals are timed; 0: none")
    parser.add_argument("--rounds", type=int, default=20, help="of slices, for the goodput; 0: none")
    parser.add_argument("--slice", type=float, default=2, help="seconds")
    parser.add_argument("--factor", type=float, default=10)
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    flags = ["--max-num-seqs", str(MAX_NUM_SEQS), "--max-model-len", "1024", "--max-queued-requests", str(MAX_QUEUED)]
    with stub_process() as (stub_pid, stub_address), tuili_server(arguments.model, *flags) as server:
        load = Run(server, stub_pid, stub_address, arguments.factor)
        rows = run(measured(load, arguments))
    if arguments.save:
        print(machine.save(arguments.save, {k: str(v) for k, v in vars(arguments).items()}, rows))


if __name__ == "__main__":
    main()
