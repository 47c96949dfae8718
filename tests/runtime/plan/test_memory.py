"""A plan against what a process of its own then really takes, and the backend's own sizes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest

from support import tiny_models
from tuili.backend import BackendOptions
from tuili.backends.cpu.backend import load
from tuili.errors import InvalidRequestError, ModelFileError
from tuili.machine import process_memory
from tuili.runtime.plan.outline import Outline, open_outline
from tuili.runtime.plan.plan import Plan, PlanOptions, make_plan
from tuili.runtime.plan.python_side import PythonSide, measure_python_side
from tuili.store.store import Store
from tuili.weights.checkpoint import open_checkpoint
from tuili.weights.quantizing import quantize_tensor, quantized_weights
from tuili.weights.recipes import find_recipe

WORK = """
import sys
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.types import GenerateRequest, SamplingParams
ctx, parallel = int(sys.argv[2]), int(sys.argv[3])
sampling = SamplingParams(max_tokens=2, ignore_eos=True, seed=1)
with open_model(sys.argv[1], LoadOptions(max_num_seqs=parallel, max_model_len=ctx)) as model:
    prompts = [tuple(1000 + (17 * i + 31 * j) % 9000 for i in range(ctx - 2)) for j in range(parallel)]
    asked = [GenerateRequest(request_id=str(j), sampling=sampling, prompt_token_ids=p) for j, p in enumerate(prompts)]
    print(sum(1 for _ in model.run(asked)))
"""


@pytest.fixture(scope="module")
def side(smollm2_gguf: Path) -> PythonSide:
    return measure_python_side(smollm2_gguf, 0)


@pytest.fixture
def known_side(side: PythonSide, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2's, measured once for all tests."""
    monkeypatch.setattr("tuili.runtime.plan.plan.measure_python_side", lambda *_: side)


def plan(path: Path, **options: object) -> Plan:
    return make_plan(str(path), PlanOptions(probe_s=0.0, **options), lambda _: None)  # type: ignore[arg-type]


def peak_memory(command: list[str]) -> tuple[int, int]:
    """The most of its own and of mapped files that a process had until it printed a line."""
    own = mapped = 0
    lines: list[str] = []

    def read(stream: IO[str]) -> None:
        lines.append(stream.readline())

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=read, args=(process.stdout,))
        reader.start()
        while reader.is_alive():
            now = process_memory(process_id=process.pid)
            own, mapped = max(own, now[0]), max(mapped, now[1])
            reader.join(0.001)
    assert process.returncode == 0
    assert int(lines[0]) > 0
    return own, mapped


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
@pytest.mark.parametrize(("model", "ctx", "parallel"), [("smollm2_gguf", 256, 8), ("gemma3_gguf", 64, 1)])
def test_the_predicted_peak_is_within_five_percent(
    request: pytest.FixtureRequest, model: str, ctx: int, parallel: int
) -> None:
    path: Path = request.getfixturevalue(model)
    need = plan(path, ctx=ctx, parallel=parallel).need
    own = mapped = 0
    for _ in range(3):  # a busy machine may hold back who looks, and the peak is missed
        found = peak_memory([sys.executable, "-c", WORK, str(path), str(ctx), str(parallel)])
        own, mapped = max(own, found[0]), max(mapped, found[1])
        if own > 0.95 * need.peak_own_bytes and mapped > 0.95 * need.peak_mapped_bytes:
            break
    assert need.peak_own_bytes == pytest.approx(own, rel=0.05)
    assert need.peak_mapped_bytes == pytest.approx(mapped, rel=0.05)


def outline(path: Path) -> Outline:
    with open_outline(str(path), Store(Path("none"))) as found:
        return found


@pytest.mark.parametrize("model", ["smollm2_gguf", "gemma3_gguf"])
def test_sizes_are_the_backends_own(request: pytest.FixtureRequest, model: str) -> None:
    from tuili.backends.cpu.footprint import cache_groups, weight_bytes

    path: Path = request.getfixturevalue(model)
    checkpoint = open_checkpoint(path)
    backend = load(checkpoint.spec, checkpoint.weights, BackendOptions(max_model_len=128, kv_cache_dtype="int8"))
    assert weight_bytes(outline(path).stored) == backend.weight_bytes  # type: ignore[attr-defined]
    assert cache_groups(checkpoint.spec, "int8", 64) == backend.cache_groups(64)
    backend.close()


@pytest.mark.usefixtures("known_side")
def test_the_most_that_fits_fits_and_no_more(smollm2_gguf: Path) -> None:
    found = plan(smollm2_gguf, parallel=3, free_bytes=400 << 20)
    assert found.fits
    assert 0 < found.ctx < found.max_ctx
    assert found.ctx == found.largest_ctx
    assert not plan(smollm2_gguf, parallel=3, ctx=found.ctx + 64, free_bytes=400 << 20).fits
    assert found.largest_parallel >= 3
    assert not plan(smollm2_gguf, parallel=found.largest_parallel + 1, ctx=found.ctx, free_bytes=400 << 20).fits


@pytest.mark.usefixtures("known_side")
def test_every_change_offered_helps(smollm2_gguf: Path) -> None:
    asked = {"ctx": 4096, "parallel": 2, "free_bytes": 400 << 20}
    found = plan(smollm2_gguf, **asked)
    assert not found.fits
    changes = dict(change.change.rsplit(" ", 1) for change in found.alternatives)
    assert set(changes) == {"--kv-cache-dtype", "--parallel", "--ctx"}
    assert plan(smollm2_gguf, **{**asked, "kv_cache_dtype": changes["--kv-cache-dtype"]}).fits
    assert plan(smollm2_gguf, **{**asked, "parallel": int(changes["--parallel"])}).fits
    assert plan(smollm2_gguf, **{**asked, "ctx": int(changes["--ctx"])}).fits
    assert plan(smollm2_gguf, **{**asked, "free_bytes": 50 << 20}).alternatives == ()


@pytest.mark.usefixtures("known_side")
def test_a_recipe_is_planned_as_it_is_loaded_and_advised_where_it_helps(tmp_path: Path) -> None:
    tiny_models.build("llama", hidden_size=256, tie_word_embeddings=True).save_pretrained(tmp_path)
    checkpoint, recipe = open_checkpoint(tmp_path), find_recipe("q4_k_m")
    weights = quantized_weights(checkpoint.weights, checkpoint.spec, recipe, quantize_tensor)
    backend = load(checkpoint.spec, weights, BackendOptions(max_model_len=64))
    narrow = plan(tmp_path, ctx=64, quantization="q4_k_m")
    assert narrow.need.weight_bytes == backend.weight_bytes  # type: ignore[attr-defined]
    backend.close()
    found = plan(tmp_path, ctx=64, free_bytes=narrow.need.peak_own_bytes)
    assert not found.fits
    assert [a.change for a in found.alternatives if a.change.startswith("--quantize")] == ["--quantize q4_k_m"]
    assert plan(tmp_path, ctx=64, quantization="q4_k_m", free_bytes=narrow.need.peak_own_bytes).fits


@pytest.mark.usefixtures("known_side")
def test_a_recipe_that_makes_nothing_smaller_is_refused(smollm2_gguf: Path) -> None:
    with pytest.raises(InvalidRequestError, match="only wider floats can be quantized"):
        plan(smollm2_gguf, quantization="q8_0")
    with pytest.raises(InvalidRequestError, match="quantization must be one of"):
        plan(smollm2_gguf, quantization="q4")


@pytest.mark.usefixtures("known_side")
def test_a_plan_is_plain_values(smollm2_gguf: Path) -> None:
    values = json.loads(json.dumps(plan(smollm2_gguf, ctx=128).as_dict()))
    assert values["fits"] is True
    assert values["kv_token_bytes"] == 30 * 2 * 3 * 64 * 2
    assert values["need"]["weight_bytes"] > 90_000_000
    assert values["expected"]["decode_tokens_per_s"] > values["expected"]["decode_full_tokens_per_s"] > 0
    assert values["expected"]["machine"]["read_bytes"] > 0


def test_an_estimated_tokenizer_is_near_the_measured_one(side: PythonSide) -> None:
    estimated = measure_python_side(None, 49152)
    assert (side.is_measured, estimated.is_measured) == (True, False)
    assert estimated.own_bytes == pytest.approx(side.own_bytes, rel=0.2)
    assert estimated.peak_own_bytes == pytest.approx(side.peak_own_bytes, rel=0.2)


def test_a_tokenizer_that_cannot_be_made_is_the_answer(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match=r"m\.gguf: "):
        measure_python_side(tmp_path / "m.gguf", 0)
