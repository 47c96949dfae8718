"""Jobs that are refused: nothing is left of them, and the command that is right needs no --restart."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tuili.errors import InsufficientMemoryError
from tuili.runtime.jobs.journal import Journal
from tuili.runtime.loading.pipeline import Pipeline

from .conftest import Generate

TARGETS = [("-o", "out/answers.jsonl"), ("--output-dir", "out", "--name", "{i}.txt")]


def _entries() -> set[str]:
    return {str(path) for path in Path().rglob("*") if "home" not in path.parts}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-o", "taken.jsonl"), "'taken.jsonl' is there already"),
        (("--output-dir", ".", "--name", "taken.jsonl"), "the file 'taken.jsonl' is there already"),
        *(((*target, "--backend", "nosuch"), "backend must be one of") for target in TARGETS),
        *(((*target, "--max-model-len", "0"), "max_model_len must be") for target in TARGETS),
        *(((*target, "--num-threads", "-1"), "num_threads must be") for target in TARGETS),
        *(((*target, "--max-num-seqs", "99999999"), "max_num_seqs must be") for target in TARGETS),
        *(((*target, "--kv-cache-dtype", "fp3"), "kv_cache_dtype must be") for target in TARGETS),
    ],
)
def test_a_refused_job_leaves_nothing(
    generate: Generate, loaded: list[Pipeline], flags: tuple[str, ...], words: str
) -> None:
    Path("taken.jsonl").write_text("mine")
    before = _entries()
    outcome = generate("--count", "1", "-p", "hi", *flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err
    assert _entries() == before
    assert loaded == []


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_that_does_not_load_leaves_nothing(
    generate: Generate, loaded: list[Pipeline], monkeypatch: pytest.MonkeyPatch, target: tuple[str, ...]
) -> None:
    before = _entries()
    with monkeypatch.context() as patch:
        patch.setattr("tuili.runtime.loading.loading.open_model", _no_memory)
        assert generate("--count", "2", "-p", "hi", *target, "--max-model-len", "128").code == 1
    assert _entries() == before
    assert generate("--count", "2", "-p", "hi", *target, "--max-model-len", "64").code == 0


def _no_memory(*_: Any) -> Pipeline:
    raise InsufficientMemoryError("the model does not fit")


@pytest.mark.parametrize("target", TARGETS)
def test_a_job_killed_before_its_first_answer_may_be_asked_otherwise(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, target: tuple[str, ...]
) -> None:
    """There is nothing that --restart could drop; files that no job wrote stay out of reach all the same."""
    child = os.fork()
    if child == 0:
        monkeypatch.setattr("tuili.runtime.loading.loading.open_model", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        generate("--count", "2", "-p", "hi", *target)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (folder,) = Path("out").glob("*.job")
    with Journal(folder) as journal:
        assert not journal.entries
    taken = Path("out", "0.md" if "--name" in target else "answers.jsonl")
    if "--name" in target:
        taken.write_text("mine")
        refused = generate("--count", "2", "-p", "ho", "--output-dir", "out", "--name", "{i}.md")
        assert "the file '0.md' is there already" in refused.err
        assert taken.read_text() == "mine"
    assert generate("--count", "3", "-p", "hello", *target).code == 0


def test_dropped_answers_are_not_the_price_of_a_wrong_flag(generate: Generate) -> None:
    flags = ("--count", "2", "-p", "hi", "-o", "out.jsonl")
    assert generate(*flags).code == 0
    assert generate(*flags, "--restart", "--backend", "nosuch").code == 2
    with Journal(Path("out.jsonl.job")) as journal:
        assert len(journal.entries) == 2
