"""benchmarks/gpu at tiny sizes on the CPU, so that it runs where there is a GPU: every stage, and what holds them."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from two, and wait for both on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recorder(tmp_path: Path) -> Any:
    from benchmarks.gpu.records import Recorder

    return Recorder(tmp_path / "stage.jsonl")


def found_in(recorder: Any) -> list[dict[str, Any]]:
    from benchmarks.gpu.records import read_records

    assert recorder.num_failures == 0
    return read_records(recorder.path)


def test_a_stage_that_fails_or_hangs_keeps_none_from_running(tmp_path: Path) -> None:
    from benchmarks.gpu.__main__ import Stage, run_stages
    from benchmarks.gpu.records import read_records

    def command(code: str) -> tuple[tuple[str, ...]]:
        return ((sys.executable, "-c", code),)

    well = 'import sys; open(sys.argv[2], \'a\').write(\'{"name": "x", "value": 2, "unit": "s"}\\n{"cut\')'
    stages = [
        Stage("failing", command("print('said'); raise SystemExit(3)"), 60),
        Stage("hanging", command("import time; time.sleep(600)"), 0.5),
        Stage("well", command(well), 60),
    ]
    assert run_stages(stages, tmp_path, [], 600) == 1
    codes = [read_records(tmp_path / f"{name}.jsonl")[-1]["exit_codes"] for name in ("failing", "hanging")]
    assert codes == [[3], [-9]]
    assert "said" in (tmp_path / "log.txt").read_text()
    summary = (tmp_path / "summary.md").read_text()
    assert "| x | 2 s |" in summary
    assert "| Qwen3-1.7B decode B=1 | >= 60.0% of the limit |  | not measured |" in summary
    assert run_stages(stages[:1], tmp_path, [], 1) == 1
    assert "failed: failing: no time was left" in (tmp_path / "summary.md").read_text()


def test_processes_side_by_side_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu.__main__ import Stage, run_stage

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])"
    assert run_stage(Stage("two", ((sys.executable, "-c", code),) * 2, 60), tmp_path, [], 60)
    assert (tmp_path / "log.txt").read_text().split() == ["4"] * 4


def test_a_stage_of_which_nothing_came_is_run_again_another_way(tmp_path: Path) -> None:
    from benchmarks.gpu.__main__ import Stage, run_stages
    from benchmarks.gpu.records import read_records

    code = """
import json, sys
if "--eager" not in sys.argv:
    raise SystemExit(3)
found = {"name": "Qwen3-1.7B decode B=1", "value": 2, "unit": "tokens/s", "share_of_limit": 0.61, "limit": "bytes"}
with open(sys.argv[2], "a") as file:
    print(json.dumps(found), file=file)
"""
    stage = Stage("engine", ((sys.executable, "-c", code),), 60, ("--eager",))
    assert run_stages([stage], tmp_path, [], 600) == 1
    records = read_records(tmp_path / "engine.jsonl")
    assert [record["exit_codes"] for record in records if "exit_codes" in record] == [[3], [0]]
    summary = (tmp_path / "summary.md").read_text()
    assert "| Qwen3-1.7B decode B=1 | >= 60.0% of the limit | 61.0% of the limit | reached |" in summary
    assert "| Q4_K 24576x4096 tokens 1 | >= 70.0% of the limit |  | not measured |" in summary


def test_the_machine_is_told(recorder: Any) -> None:
    import torch
    from benchmarks.gpu.environment import machine

    recorder.attempt("machine", lambda: machine(torch.device("cpu")))
    (record,) = found_in(recorder)
    assert record["torch"].startswith(torch.__version__.split("+")[0])


def test_the_backend_is_checked(recorder: Any) -> None:
    import torch
    from benchmarks.gpu.correctness import run

    run(recorder, torch.device("cpu"), True)
    assert len([r for r in found_in(recorder) if r.get("ok")]) == 13


def test_a_wait_is_told_from_what_else_torch_warns_of() -> None:
    """Both texts are torch's."""
    from benchmarks.gpu.on_device import waits_told

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warnings.warn("Synchronization debug mode does not yet detect all synchronizing operations", stacklevel=1)
        assert waits_told(warned) == []
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    (told,) = waits_told(warned)
    assert told.startswith("test_gpu_benchmark.py:")


def test_memory_is_limited_on_a_device_of_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from benchmarks.gpu.memory import MemoryChecks

    for name, found in (("is_available", True), ("device_count", 2), ("current_device", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    assert MemoryChecks("cuda", True).device == torch.device("cuda", 1)  # torch refuses "cuda" alone there


def test_engine_and_peer_are_measured(recorder: Any, tmp_path: Path) -> None:
    import torch
    from benchmarks.gpu.engine import Comparison
    from benchmarks.gpu.measures import SMOKE, decode_orders, measure_all
    from benchmarks.gpu.report import write_report
    from benchmarks.gpu.start import first_token

    comparison = Comparison("tiny", tmp_path / "model", torch.device("cpu"), SMOKE)
    measure_all(recorder, comparison.model)
    recorder.attempt("decode_orders", partial(decode_orders, comparison.model))
    for compare in (comparison.alone, comparison.programs):
        recorder.attempt(compare.__name__, compare)
    records = found_in(recorder)
    assert len(records) == 10
    alike = next(r for r in records if "same_tokens_at_first" in r)
    assert alike["same_tokens_at_first"] == alike["of"] == SMOKE.peer_tokens
    recorder.add({"name": "copy, read and written", "value": 1.0, "unit": "GB/s"})
    recorder.add({"name": "bfloat16 product", "value": 1.0, "unit": "TFLOP/s"})
    write_report(tmp_path, ["stage"])
    assert "| tiny decode B=1 |" in (tmp_path / "summary.md").read_text()
    assert 0 < first_token(tmp_path / "model", "cpu", time.time())["load_s"] < 60


def test_packed_models_are_measured(recorder: Any) -> None:
    import torch
    from benchmarks.gpu.large import run

    run(recorder, torch.device("cpu"), True)
    assert len(found_in(recorder)) == 5


def test_kernels_are_checked_and_timed(recorder: Any) -> None:
    pytest.importorskip("triton")
    import torch
    from benchmarks.gpu import kernels

    bench = kernels.Bench(torch.device("cpu"), (5, 6))
    kernels.check(recorder, bench)
    recorder.attempt("attention", lambda: kernels.time_attention(bench, 1e9, 1e9))
    recorder.attempt("rows", lambda: kernels.time_rows(bench, 1e9))
    recorder.attempt("dense", lambda: kernels.time_dense(bench, 16, 64, 1e9))
    recorder.attempt("packed", lambda: kernels.time_packed(bench, "Q4_0", 16, 64, 1e9, 1e9))
    assert len(found_in(recorder)) > 10


def test_the_costs_are_those_of_the_shape() -> None:
    from benchmarks.gpu.shapes import decode_cost, model_spec, prefill_cost

    spec = model_spec("Qwen3-1.7B")
    weight_bytes = 2 * 1_720_574_976
    alone = decode_cost(spec, weight_bytes, 1, 0)
    assert alone.num_bytes == weight_bytes
    assert decode_cost(spec, weight_bytes, 64, 1024).num_bytes - weight_bytes == 64 * 1024 * 28 * 2 * 8 * 128 * 2
    assert alone.operations == pytest.approx(2 * 1_720_574_976)
    layers = 2 * (1_720_574_976 - 151936 * 2048)
    assert prefill_cost(spec, weight_bytes, 8, 2048).operations == pytest.approx(
        8 * (2048 * layers + 2 * 151936 * 2048 + 28 * 4 * 16 * 128 * 2048 * 2049 / 2)
    )
