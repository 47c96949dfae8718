"""Fixtures for what tests do not make themselves: real models, published vocabularies, reference text."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support import assets

# Threads of BLAS and OpenMP that wait for each other are slow beside other processes, of which each has one processor.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

# Triton makes of its own functions what runs in its interpreter, or what does not, when anybody first imports it.
os.environ["TRITON_INTERPRET"] = "1"

# The same examples each time, however long a busy machine takes over one.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """What tests of a file left open is found with them, not by whatever test runs when the collector comes by."""
    yield
    gc.collect()


def _missing(reason: str) -> None:
    """Skips for want of data; on CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _fetched(fetch: Callable[[], Path]) -> Path:
    try:
        return fetch()
    except assets.AssetUnavailableError as error:
        _missing(str(error))
        raise


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1 with a Q8_0 tied head."""
    return _fetched(lambda: assets.model("smollm2:135m"))


@pytest.fixture(scope="session")
def gemma3_gguf() -> Path:
    """Gemma 3 270M base: Q5_0, Q8_0, Q4_K and Q6_K."""
    return _fetched(lambda: assets.model("gemma3:270m"))


@pytest.fixture(scope="session")
def llama_cpp_models() -> Path:
    """llama.cpp's vocabularies with their test vectors, and its collection of chat templates."""
    return _fetched(assets.llama_cpp_models)


@pytest.fixture(scope="session")
def node_clients() -> Path:
    """A folder with the clients from npm installed, for programs that are written into it."""
    return _fetched(assets.node_clients)


@pytest.fixture(scope="session")
def llama_cpp_source() -> Callable[[str], str]:
    """The text of a file of llama-cpp-python's sources, by its path there."""
    _fetched(assets.llama_cpp_archive)
    return assets.llama_cpp_source


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder TUILI_TEST_DATA names: wikitext2/test.txt and others too large to keep here."""
    folder = os.environ.get("TUILI_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        _missing("TUILI_TEST_DATA does not name a folder")
    return Path(str(folder))


@pytest.fixture(scope="session")
def wikitext(test_data: Path) -> str:
    """The WikiText-2 test text."""
    return (test_data / "wikitext2" / "test.txt").read_text(encoding="utf-8")
