"""One bench run from a model's name to its report: loads the model and the peer, measures both in turns."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tuili
from tuili.errors import InvalidRequestError
from tuili.runtime.bench.against import check_peer, is_url, open_peer
from tuili.runtime.bench.peers.endpoint import Endpoint
from tuili.runtime.bench.pipeline_meter import PipelineMeter
from tuili.runtime.bench.report import BenchReport, engine_report, memory_report, run_workloads
from tuili.runtime.bench.target import PeerFlags, PeerTarget
from tuili.runtime.bench.workload import Contender, Workload
from tuili.runtime.loading.fetching import find_model
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.runtime.loading.pipeline import Pipeline

_SPARE_TOKENS = 64  # of context beyond the longest workload


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """What to measure, and beside what; prefill_len 0 measures no prefill of its own."""

    batch_sizes: Sequence[int] = (1,)
    prompt_len: int = 32
    output_len: int = 64
    prefill_len: int = 512
    num_rounds: int = 3
    num_threads: int = 0
    quantization: str | None = None
    backend: str | None = None
    device: str | None = None
    dtype: str = "auto"
    seed: int = 0
    against: str | None = None
    peer_path: Path | None = None
    peer_model: str | None = None
    api_key: str | None = None

    def workloads(self) -> list[Workload]:
        """Prefill first, then one decode for each batch size."""
        decode = [
            Workload(num_seqs=n, prompt_len=self.prompt_len, output_len=self.output_len) for n in self.batch_sizes
        ]
        return [Workload(prompt_len=self.prefill_len, output_len=0), *decode] if self.prefill_len else decode


def run_bench(model: str, options: BenchOptions, report: Callable[[str], None]) -> BenchReport:
    """`report` hears what is being measured. Of a model that is a server's URL only that server is measured.

    Raises what open_model raises, InvalidRequestError for options and PeerError for a peer that fails.
    """
    if is_url(model):
        return _run_on_server(model, options, report)
    _check_peer(options)
    workloads = options.workloads()
    max_len = max(w.prompt_len + w.max_tokens for w in workloads) + _SPARE_TOKENS
    max_num_seqs = max(w.num_seqs for w in workloads)
    load_options = LoadOptions(
        num_threads=options.num_threads,
        quantization=options.quantization,
        backend=options.backend,
        device=options.device,
        dtype=options.dtype,
        owns_process=True,
        max_model_len=max_len,
        max_num_seqs=max_num_seqs,
        speculative=None,  # no peer drafts here, and repetitive answers would flatter
    )
    with ExitStack() as stack:
        report(f"loading {model}")
        pipeline = stack.enter_context(_opened(model, load_options, options))
        ours = PipelineMeter(pipeline, random.Random(options.seed))
        peer = None
        if options.against is not None:
            report(f"starting {options.against}")
            target = _peer_target(model, options, pipeline, max_len, max_num_seqs)
            peer = stack.enter_context(closing(open_peer(options.against, target)))
        rows = run_workloads(ours, peer, workloads, options.num_rounds, report)
        stats = pipeline.loop.stats()
        return BenchReport(
            model=model,
            load_s=pipeline.load_s,
            rows=rows,
            memory=memory_report(pipeline, load_options.block_size),
            num_prefix_queries=stats.num_prefix_queries,
            num_prefix_hits=stats.num_prefix_hits,
            engine=engine_report(pipeline.own_backend, options.num_threads),
            versions=_versions(),
            peer=_peer_facts(peer),
        )


def _opened(model: str, load_options: LoadOptions, options: BenchOptions) -> Pipeline:
    """Raises what open_model raises, and names our lengths where a context of our making is refused."""
    try:
        return open_model(model, load_options)
    except InvalidRequestError as error:
        if error.param != "max_model_len":
            raise
        raise InvalidRequestError(
            f"prompt_len {options.prompt_len}, output_len {options.output_len} and prefill_len {options.prefill_len} "
            f"do not fit with {_SPARE_TOKENS} tokens to spare: {error}",
            param="prompt_len",
        ) from error


def _check_peer(options: BenchOptions) -> None:
    for name in ("peer_path", "peer_model", "api_key"):
        if options.against is None and getattr(options, name):
            raise InvalidRequestError(f"{name} says how to reach a peer, and there is none: add --against", param=name)
    if options.against is not None:
        flags = PeerFlags(peer_model=options.peer_model, peer_path=options.peer_path, api_key=options.api_key)
        check_peer(options.against, flags)


def _run_on_server(url: str, options: BenchOptions, report: Callable[[str], None]) -> BenchReport:
    """Only what can be seen from outside: rates and latency."""
    for name in ("num_threads", "quantization", "backend", "device", "against", "peer_path"):
        if getattr(options, name):
            raise InvalidRequestError(f"{name} has no place where a server is measured: {url} decides", param=name)
    report(f"asking {url}")
    with closing(Endpoint(url, options.peer_model, options.api_key, random.Random(options.seed))) as server:
        rows = run_workloads(server, None, options.workloads(), options.num_rounds, report)
    return BenchReport(model=url, rows=rows, versions=_versions())


def _versions() -> dict[str, str]:
    return {"tuili": tuili.__version__, "numpy": np.__version__, "python": platform.python_version()}


def _peer_target(model: str, options: BenchOptions, pipeline: Pipeline, max_len: int, max_num_seqs: int) -> PeerTarget:
    """The same file and the same threads as ours."""
    return PeerTarget(
        model=find_model(model),
        peer_model=options.peer_model,
        peer_path=options.peer_path,
        api_key=options.api_key,
        num_threads=engine_report(pipeline.own_backend, options.num_threads)["num_threads"],
        max_num_seqs=max_num_seqs,
        max_len=max_len,
        vocab_size=pipeline.spec.vocab_size,
        seed=options.seed,
    )


def _peer_facts(peer: Contender | None) -> dict[str, str]:
    if peer is None:
        return {}
    version = getattr(peer, "version", None)
    return {"name": peer.name} | ({} if version is None else {"version": version})
