"""The team of threads as seen from outside: idle when idle, alive after a fork, without the interpreter's lock."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from support.batches import Driver, Work
from support.random_models import decoder, random_weights
from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend

TEXT = list(range(60))


def loaded(num_threads: int = 3) -> Backend:
    spec = decoder()
    options = BackendOptions(max_model_len=64, num_threads=num_threads)
    return load_backend("cpu", spec, random_weights(spec, "Q8_0"), options)


TASKS = Path("/proc/self/task")


def ticks(tasks: set[str]) -> int:
    """Processor time of these threads alone, in clock ticks; other libraries have threads of their own."""
    fields = [(TASKS / task / "stat").read_text().rpartition(")")[2].split() for task in tasks]
    return sum(int(field[11]) + int(field[12]) for field in fields)


@pytest.mark.skipif(not TASKS.is_dir(), reason="this system does not list threads")
def test_idle_threads_use_no_processor_time() -> None:
    before = {path.name for path in TASKS.iterdir()}
    backend = loaded()
    Driver(backend).logits(TEXT)
    team = {path.name for path in TASKS.iterdir()} - before
    assert len(team) == 2  # the caller is the third
    pause = threading.Event()
    pause.wait(0.05)  # spinning ends long before
    start = ticks(team)
    pause.wait(0.5)
    assert ticks(team) - start <= 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    backend = loaded()
    expected = Driver(backend).logits(TEXT)
    child = os.fork()
    if child == 0:
        is_same = np.array_equal(Driver(backend).logits(TEXT), expected)
        backend.close()
        os._exit(0 if is_same else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.array_equal(Driver(backend).logits(TEXT), expected)


def test_other_python_threads_run_during_a_step() -> None:
    """A step must let go of the interpreter's lock: another thread counts while steps run."""
    spec = decoder(hidden_size=512, vocab_size=4096)
    backend = load_backend("cpu", spec, random_weights(spec, "F32"), BackendOptions(max_model_len=512, num_threads=1))
    driver = Driver(backend, num_blocks=128)
    batch = driver.batch([Work(driver.text(), [1] * 512, 512)], want_logits=False)
    counts, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counts[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    try:
        for _ in range(20):  # on a busy machine the other may get no processor meanwhile
            before = counts[0]
            backend.execute(batch)  # far longer than the interpreter's switch interval, in one call
            if counts[0] - before > 1000:
                break
        assert counts[0] - before > 1000
    finally:
        stop.set()
        counter.join()


def test_many_backends_at_once() -> None:
    backends = [loaded(num_threads=2) for _ in range(4)]
    logits = [Driver(backend).logits(TEXT) for backend in backends]
    assert all(np.array_equal(rows, logits[0]) for rows in logits)
    for backend in backends:
        backend.close()
