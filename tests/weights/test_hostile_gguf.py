"""Models changed in ways that know their structure: each is read and answers, or is refused in one line, in bounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.gguf_models import seeds
from support.gguf_mutants import mutants

TESTS = Path(__file__).parents[1]
SEED, NUM_MUTANTS, NUM_ANSWERS = 1, 5000, 200
MAX_SECONDS, MAX_GROWTH_BYTES = 2.0, 128 << 20


def test_mutants_are_read_or_refused() -> None:
    """In a child whose memory is bounded: one that dies, raises anything else or leaves files fails."""
    numbers = map(str, (SEED, NUM_MUTANTS, NUM_ANSWERS))
    command = [sys.executable, "-W", "ignore", "-m", "support.hostile_child", *numbers]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["left"] == []
    assert report["slowest_s"] < MAX_SECONDS
    assert report["grown_bytes"] < MAX_GROWTH_BYTES
    assert report["read"] > 300, "mutants that nobody reads test little"
    assert report["refused"] > 1000
    assert report["answered"] > 100


def test_the_same_seed_gives_the_same_mutants() -> None:
    models = seeds()
    assert list(mutants(models, 5, 20)) == list(mutants(models, 5, 20))
    assert len({content for _, content in mutants(models, 5, 200)}) > 180
