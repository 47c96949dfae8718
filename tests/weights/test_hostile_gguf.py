"""Models changed in ways that know their structure: each is read and answers, or is refused in one line, in bounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.gguf_family_seeds import family_seeds
from support.gguf_models import seeds
from support.gguf_mutants import mutants, split_mutants

TESTS = Path(__file__).parents[1]
SEED, NUM_ANSWERS = int(os.environ.get("TUILI_HOSTILE_SEED", "1")), 200
NUM_MUTANTS = int(os.environ.get("TUILI_HOSTILE_MUTANTS", "5000"))  # a fifth of them in several files
MAX_SECONDS, MAX_GROWTH_BYTES = 2.0, 128 << 20


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    """In a child whose memory is bounded: one that dies, raises anything else or leaves files fails."""
    for name, model in family_seeds().items():
        (tmp_path / f"{name}.gguf").write_bytes(model.encode())
    num_splits = NUM_MUTANTS // 5
    numbers = map(str, (SEED, NUM_MUTANTS - num_splits, num_splits, NUM_ANSWERS))
    command = [sys.executable, "-W", "ignore", "-m", "support.hostile_child", *numbers, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["left"] == []
    assert report["grown_bytes"] < MAX_GROWTH_BYTES
    for kind, share in (("single", 1), ("split", 4)):
        found = report[kind]
        assert found["failures"] == []
        assert found["slowest_s"] < MAX_SECONDS
        assert found["read"] > 240 // share, "mutants that nobody reads test little"
        assert found["refused"] > 800 // share
        assert found["answered"] > 100 // share


def test_the_same_seed_gives_the_same_mutants() -> None:
    models = seeds()
    assert list(mutants(models, 5, 20)) == list(mutants(models, 5, 20))
    assert len({content for _, content in mutants(models, 5, 200)}) > 180
    assert list(split_mutants(models, 5, 20)) == list(split_mutants(models, 5, 20))
