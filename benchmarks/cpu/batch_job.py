"""What a batch job costs beside the engine alone: the same requests, in turns.

    python benchmarks/cpu/batch_job.py MODEL [--rows 200] [--batch 32] [--max-tokens 32] [--rounds 4]

The engine alone gets every request at once, as token ids, and its answers are counted, not read. The job reads a
file, fills in a prompt, renders the chat template, makes text of the tokens, journals every answer and writes the
output: all that `tuili generate` does once the model is there. Seeds are those of the job, so that both make the same
tokens. No prefix cache, no drafts. The ratio is of sums over the parts of a round, each part at its fastest over the
rounds: steps of the engine, what comes before the first, and what comes after the last. reader_ms_per_row is the
processor time of everything but the engine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tuili.backend import Batch, StepHandle
from tuili.runtime.jobs.durable_job import Target, open_durable
from tuili.runtime.jobs.job import Job, JobSettings, open_job
from tuili.runtime.jobs.rows import FileRows
from tuili.runtime.jobs.runner import JobProgress, RowRunner
from tuili.runtime.jobs.task import Served
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.runtime.loading.pipeline import Pipeline
from tuili.types import TokenDelta, TokenRequest

sys.path.insert(0, str(Path(__file__).parent.parent))
import machine

SEED = 1
_TOPICS = ("rivers", "bread", "clocks", "whales", "glass", "trains", "moss", "ink")


def write_rows(path: Path, count: int) -> None:
    """Rows of different lengths, no two alike."""
    rows = ({"topic": f"{_TOPICS[i % 8]} and {_TOPICS[i % 7]}" + " again" * (i % 11), "n": i} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_job(model: str, rows: Path, max_tokens: int) -> Job:
    settings = JobSettings(
        model=model,
        model_bytes=0,
        model_digest="",
        prompt="Write {num:2-9} sentences about {topic}, for reader number {n}.",
        sampling={"max_tokens": max_tokens, "temperature": 0.8},
    )
    return open_job(FileRows(rows), settings)


def token_requests(model: Pipeline, job: Job) -> list[TokenRequest]:
    """What the job asks of the engine."""
    served = Served(has_chat_template=model.has_chat_template, default_sampling=model.default_sampling)
    return [model.token_request(job.task.request(row, SEED, served))[1] for row in job.rows()]


def engine_tokens(model: Pipeline, requests: Sequence[TokenRequest]) -> int:
    """Output tokens of the engine alone."""
    num_left, num_tokens, is_done = len(requests), 0, threading.Event()

    def sink(delta: TokenDelta) -> None:
        nonlocal num_left, num_tokens
        num_tokens += len(delta.token_ids)
        num_left -= delta.finish_reason is not None
        if not num_left:
            is_done.set()

    for request in requests:
        model.loop.submit(request, sink)
    is_done.wait()
    return num_tokens


def job_tokens(model: Pipeline, job: Job, folder: Path) -> int:
    """Output tokens of the job, journal and output included."""
    progress = JobProgress(job.num_rows)
    with open_durable(job, Target(path=folder / "out.jsonl", is_folder=False), SEED, restart=True) as durable:
        RowRunner(job.task, SEED, model, durable.keep, progress, lambda *_: None).run(durable.pending())
        durable.publish()
    return progress.num_output_tokens


@dataclass
class Timed:
    """One side's rounds: when it began, when each step began, when it was done."""

    moments: list[list[float]] = field(default_factory=list)
    reader_s: float = 0.0

    def run(self, backend: Any, side: Callable[[], int]) -> int:
        """Another round; gives its output tokens."""
        execute, moments = backend.execute, [time.perf_counter()]

        def timed(batch: Batch) -> StepHandle:
            moments.append(time.perf_counter())
            handle: StepHandle = execute(batch)
            return handle

        backend.execute = timed
        start = time.thread_time()
        num_tokens = side()
        self.reader_s += time.thread_time() - start
        backend.execute = execute
        self.moments.append([*moments, time.perf_counter()])
        return num_tokens

    def num_steps(self) -> list[int]:
        return [len(moments) - 2 for moments in self.moments]

    def best_s(self) -> float:
        """Every part of a round at its fastest, so that what else the machine did in some rounds does not count."""
        parts = np.array([np.diff(moments) for moments in self.moments if len(moments) - 2 == min(self.num_steps())])
        return float(parts.min(axis=0).sum())


def measure(model: Pipeline, job: Job, folder: Path, rounds: int) -> dict[str, Any]:
    """Both, in turns."""
    requests = token_requests(model, job)
    sides: dict[str, Callable[[], int]] = {
        "engine": lambda: engine_tokens(model, requests),
        "job": lambda: job_tokens(model, job, folder),
    }
    timed = {name: Timed() for name in sides}
    tokens = set()
    for i in range(rounds):
        for name in sorted(sides, reverse=bool(i % 2)):
            tokens.add(timed[name].run(model.backend, sides[name]))
    (num_tokens,) = tokens  # the same seeds make the same tokens
    engine, ours = timed["engine"], timed["job"]
    return {
        "rows": job.num_rows,
        "tokens": num_tokens,
        "engine_steps": engine.num_steps(),
        "job_steps": ours.num_steps(),
        "engine_s": [round(moments[-1] - moments[0], 2) for moments in engine.moments],
        "job_s": [round(moments[-1] - moments[0], 2) for moments in ours.moments],
        "best_engine_s": round(engine.best_s(), 3),
        "best_job_s": round(ours.best_s(), 3),
        "ratio": round(engine.best_s() / ours.best_s(), 4),
        "reader_ms_per_row": round(1e3 * ours.reader_s / (rounds * job.num_rows), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    options = LoadOptions(
        speculative=None,
        num_threads=arguments.threads,
        max_model_len=512,
        max_num_seqs=arguments.batch,
        enable_prefix_caching=False,
    )
    with tempfile.TemporaryDirectory() as name, open_model(arguments.model, options) as model:
        rows = Path(name) / "rows.jsonl"
        write_rows(rows, arguments.batch)
        engine_tokens(
            model, token_requests(model, make_job(arguments.model, rows, 2))
        )  # touches every page of the weights
        write_rows(rows, arguments.rows)
        job = make_job(arguments.model, rows, arguments.max_tokens)
        result = measure(model, job, Path(name), arguments.rounds)
    print(json.dumps(result))
    if arguments.save:
        print(machine.save(arguments.save, {k: str(v) for k, v in vars(arguments).items()}, [result]))


if __name__ == "__main__":
    main()
