"""What a batch job costs beside the engine alone: the same requests, in turns.

    python benchmarks/cpu/batch_job.py MODEL [--rows 200] [--batch 32] [--max-tokens 32] [--rounds 1] [--job-first]

The engine alone gets every request at once, as token ids, and its answers are counted, not read. The job reads a
file, fills in a prompt, renders the chat template, makes text of the tokens, journals every answer and writes the
output: all that `tuili generate` does once the model is there. Seeds are those of the job, so that both make the same
tokens. No prefix cache, no drafts. Steps are the engine's; reader_ms_per_row is the processor time of everything but
the engine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tuili.backend import Batch, StepHandle
from tuili.runtime.jobs.durable_job import Target, open_durable
from tuili.runtime.jobs.job import Job, JobSettings, open_job
from tuili.runtime.jobs.rows import FileRows
from tuili.runtime.jobs.runner import JobProgress, RowRunner
from tuili.runtime.jobs.task import Served
from tuili.runtime.loading import LoadOptions, open_model
from tuili.runtime.pipeline import Pipeline
from tuili.types import TokenDelta

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
        prompt="Write {num:2-9} sentences about {topic}, for reader number {n}.",
        sampling={"max_tokens": max_tokens, "temperature": 0.8},
    )
    return open_job(FileRows(rows), settings)


def engine_seconds(model: Pipeline, job: Job) -> tuple[float, int]:
    """Seconds and output tokens of the engine alone."""
    served = Served(has_chat_template=model.has_chat_template, default_sampling=model.default_sampling)
    requests = [model.token_request(job.task.request(row, SEED, served))[1] for row in job.rows()]
    num_left, num_tokens, is_done = len(requests), 0, threading.Event()

    def sink(delta: TokenDelta) -> None:
        nonlocal num_left, num_tokens
        num_tokens += len(delta.token_ids)
        num_left -= delta.finish_reason is not None
        if not num_left:
            is_done.set()

    start = time.perf_counter()
    for request in requests:
        model.loop.submit(request, sink)
    is_done.wait()
    return time.perf_counter() - start, num_tokens


def job_seconds(model: Pipeline, job: Job, folder: Path) -> tuple[float, int]:
    """Seconds and output tokens of the job, journal and output included."""
    progress = JobProgress(job.num_rows)
    start = time.perf_counter()
    with open_durable(job, Target(path=folder / "out.jsonl", is_folder=False), SEED, restart=True) as durable:
        RowRunner(job.task, SEED, model, durable.keep, progress, lambda *_: None).run(durable.pending())
        durable.publish()
    return time.perf_counter() - start, progress.num_output_tokens


def measure(model: Pipeline, job: Job, folder: Path, *, job_first: bool) -> dict[str, float]:
    """Both, in turns."""
    backend: Any = model.backend
    execute = backend.execute
    seconds, tokens, steps, reader = {}, {}, {"engine": 0, "job": 0}, {}
    for side in ("job", "engine") if job_first else ("engine", "job"):

        def counted(batch: Batch, side: str = side) -> StepHandle:
            steps[side] += 1
            handle: StepHandle = execute(batch)
            return handle

        backend.execute = counted
        start = time.thread_time()
        run = (lambda: engine_seconds(model, job)) if side == "engine" else (lambda: job_seconds(model, job, folder))
        seconds[side], tokens[side] = run()
        reader[side] = time.thread_time() - start
    backend.execute = execute
    assert tokens["job"] == tokens["engine"], "the same seeds make the same tokens"
    return {
        "tokens": tokens["job"],
        "engine_steps": steps["engine"],
        "job_steps": steps["job"],
        "engine_tokens_s": round(tokens["job"] / seconds["engine"], 1),
        "job_tokens_s": round(tokens["job"] / seconds["job"], 1),
        "ratio": round(seconds["engine"] / seconds["job"], 4),
        "reader_ms_per_row": round(1e3 * reader["job"] / job.num_rows, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--job-first", action="store_true", help="begin with the job; else with the engine alone")
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
        engine_seconds(model, make_job(arguments.model, rows, 2))  # touches every page of the weights
        write_rows(rows, arguments.rows)
        job = make_job(arguments.model, rows, arguments.max_tokens)
        results = [
            measure(model, job, Path(name), job_first=arguments.job_first != bool(i % 2))
            for i in range(arguments.rounds)
        ]
    for row in results:
        print(json.dumps(row))
    print(f"median ratio {statistics.median(row['ratio'] for row in results):.3f}")
    if arguments.save:
        print(machine.save(arguments.save, {k: str(v) for k, v in vars(arguments).items()}, results))


if __name__ == "__main__":
    main()
