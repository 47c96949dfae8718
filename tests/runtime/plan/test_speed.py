"""Expected speeds against measured ones, both from recorded rounds: the machine's probes and the engine's tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tuili.backend import CacheGroup
from tuili.backends.cpu.footprint import cache_groups, weight_bytes
from tuili.cli.plan_display import _accuracy
from tuili.runtime.plan import speed
from tuili.runtime.plan.outline import outline_of
from tuili.runtime.plan.plan import Expected
from tuili.runtime.plan.speed import TOLERANCE, MachineSpeed, ModelWork
from tuili.weights.checkpoint import open_checkpoint

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
FLOAT_SHARE = 0.31  # of the integer peak: what the recorded processor's float probe reads
PROMPT_LEN = 32


def rounds(name: str) -> list[dict[str, Any]]:
    """Each a measure, two probes and the tokens per second of every contender."""
    found: list[dict[str, Any]] = json.loads((RESULTS / f"cpu_{name}.json").read_text())["rows"]
    return [r for r in found if "4096" not in r["measure"]]


def machine(recorded: dict[str, Any]) -> MachineSpeed:
    peak = recorded["peak_int8_ops"]
    return MachineSpeed(
        num_threads=2,
        read_bytes=recorded["bandwidth_gb_s"] * 1e9,
        int8_operations=peak,
        float32_operations=peak * FLOAT_SHARE,
    )


def ratios(work: ModelWork, name: str) -> Iterator[tuple[str, float]]:
    """Measure -> expected over measured."""
    for recorded in rounds(name):
        measure, now = recorded["measure"], machine(recorded)
        if measure == "prefill 512":
            expected = work.prefill_tokens_per_s(now, 4096)
        else:
            (batch_size,) = map(int, re.findall(r"B=(\d+)", measure))
            expected = work.decode_tokens_per_s(now, batch_size, 2 * PROMPT_LEN)
        yield measure, expected / recorded["tokens_per_s"]["tuili"]


def work_of(path: Path) -> ModelWork:
    found = outline_of(path.name, open_checkpoint(path))
    return ModelWork.of(
        found.spec, found.stored, weight_bytes(found.stored), cache_groups(found.spec, "bfloat16", PROMPT_LEN)
    )


@pytest.mark.parametrize(("model", "name"), [("smollm2_gguf", "smollm2"), ("gemma3_gguf", "gemma3")])
def test_recorded_runs_are_within_the_tolerance(request: pytest.FixtureRequest, model: str, name: str) -> None:
    found = dict(ratios(work_of(request.getfixturevalue(model)), name))
    assert set(found) >= {"prefill 512", "decode B=1", "decode B=16"}
    assert found == {measure: pytest.approx(1.0, abs=TOLERANCE) for measure in found}


def test_a_larger_model_is_within_the_tolerance() -> None:
    """Qwen3-1.7B's shape, all but its tied head in the layers."""
    cost = json.loads((RESULTS / "cpu_qwen3-q4_k_m.json").read_text())["facts"]["cost"]
    num_layers, kv_bytes = len(cost["windows"]), sum(cost["kv_bytes_per_token"])
    work = ModelWork(
        layer_weights={False: cost["body_parameters"]},
        head_weights={False: 151936 * 2048},
        read_bytes=cost["weight_bytes"],
        num_layers=num_layers,
        attention=tuple((width, None) for width in cost["attention_width"]),
        cache_groups=(CacheGroup(kind="full", block_bytes=kv_bytes * 16, block_size=16, window=None),),
    )
    found = dict(ratios(work, "qwen3-q4_k_m"))
    assert found == {measure: pytest.approx(1.0, abs=TOLERANCE) for measure in ("prefill 512", "decode B=1")}


def test_the_probe_tells_how_much_of_the_processors_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"perf_counter": 0.0, "process_time": 0.0}

    def probe(wall_s: float, cpu_s: float) -> None:
        clock["perf_counter"] += wall_s
        clock["process_time"] += cpu_s

    def peak_ops(num_threads: int, _: float) -> dict[str, float]:
        probe(1.0, num_threads * 0.5)
        return {"int8": 4e11, "float32": 1e11}

    def read_bandwidth(num_threads: int, _size: int, _seconds: float) -> float:
        probe(1.0, num_threads * 0.7)
        return 1e10

    for name in clock:
        monkeypatch.setattr(speed, name, lambda name=name: clock[name])
    monkeypatch.setattr(speed._native, "peak_ops", peak_ops)
    monkeypatch.setattr(speed._native, "read_bandwidth", read_bandwidth)
    found = MachineSpeed.measure(4)
    assert found.cpu_share == pytest.approx(0.6)
    assert not found.is_quiet
    expected = Expected(
        prefill_tokens_per_s=1.0,
        decode_tokens_per_s=1.0,
        decode_full_tokens_per_s=1.0,
        tolerance=TOLERANCE,
        machine=found,
    )
    words = "within 20%, where nothing else works; now other work took 40% of the processors: plan again without it"
    assert _accuracy(expected) == words
