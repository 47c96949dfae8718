"""How long launches take on a device: on CUDA as a captured graph, so that launching costs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

Launch = Callable[[], object]
_ROUNDS = 5


@torch.inference_mode()  # as a backend's graphs are captured: beside those torch before 2.11 takes no others
def seconds_each(device: torch.device, launches: Sequence[Launch]) -> float:
    """The median over rounds of the mean time of one of the launches, which run in turn.

    Launches over copies of their data, larger together than the last cache, read from memory.
    """
    if device.type != "cuda":
        started = time.perf_counter()
        launches[0]()
        return time.perf_counter() - started
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for launch in launches[:2]:
            launch()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for launch in launches:
            launch()
    graph.replay()
    times = []
    for _ in range(_ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / len(launches))
    return sorted(times)[_ROUNDS // 2]


def copy_rate(device: torch.device, num_bytes: int) -> float:
    """Bytes read and written per second by torch's copy."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / seconds_each(device, [lambda: target.copy_(source)] * 4)


def matmul_rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """Operations per second of torch's square product of random numbers."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / seconds_each(device, [lambda: a @ b] * 4)
