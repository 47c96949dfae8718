"""The torch backend in an engine process, as a server runs it, and in LLM."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
import torch

from support.gguf_models import seeds
from tuili import LLM
from tuili.backends.torch import backend
from tuili.engine.child_process import ChildProcess
from tuili.engine.wire import Load
from tuili.errors import DeviceFailureError, InvalidRequestError
from tuili.runtime.loading.loading import LoadOptions, open_engine
from tuili.types import SamplingParams, TokenRequest

COMMAND = [sys.executable, "-P", "-m", "tuili.runtime.supervision.engine_process"]
PROMPT = (1, 5, 9, 3)
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    return path


def written(model: Path, **options: object) -> list[int]:
    with LLM(str(model), max_num_seqs=2, **options) as llm:
        (output,) = llm.generate({"prompt_token_ids": list(PROMPT)}, GREEDY, use_tqdm=False)
    return list(output.outputs[0].token_ids)


async def test_an_engine_process_writes_what_the_reference_writes(model: Path) -> None:
    options = LoadOptions(backend="torch", device="cpu", num_threads=1, max_num_seqs=2)
    child = await ChildProcess.start(COMMAND, Load(str(model), msgspec.Raw(msgspec.msgpack.encode(options)), None))
    tokens: list[int] = []
    request = TokenRequest(request_id="r", prompt_token_ids=PROMPT, sampling=GREEDY, seed=1)
    async for deltas in child.generate(request):
        for delta in deltas:
            tokens += delta.token_ids
    facts = child.facts
    assert (facts.num_threads, facts.kv_cache_dtype, facts.isa) == (1, "auto", None)
    assert facts.weight_bytes > 0
    await child.aclose()
    assert tokens == written(model, backend="reference")
    assert tokens == written(model, backend="torch", device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "torch", "num_threads": 2}, "num_threads must be 0 with torch, whose threads are the whole"),
        ({"backend": "cpu", "device": "cuda"}, "device must be cpu for the cpu backend, got 'cuda'"),
        ({"backend": "cpu", "kv_cache_dtype": "fp8"}, "kv_cache_dtype must be one of auto, bfloat16, int8 without"),
        ({"backend": "cpu", "tensor_parallel_size": 2}, "tensor_parallel_size must be 1 for the cpu backend, got 2"),
        (
            {"backend": "torch", "device": "cpu", "tensor_parallel_size": 2, "gpu_layers": 1},
            "tensor_parallel_size must be 1 for a model with layers on the CPU",
        ),
        (
            {"backend": "cpu", "pipeline_parallel_size": 2},
            "pipeline_parallel_size must be 1 for the cpu backend, got 2",
        ),
        (
            {"backend": "torch", "device": "cpu", "pipeline_parallel_size": 2, "cpu_offload_gb": 1},
            "pipeline_parallel_size must be 1 for a model with layers on the CPU .* got 2",
        ),
        (
            {"backend": "torch", "device": "cpu", "tensor_parallel_size": 2, "pipeline_parallel_size": 64},
            "tensor_parallel_size times pipeline_parallel_size must be at most 64, got 128",
        ),
        (
            {"backend": "torch", "device": "cpu", "pipeline_parallel_size": 63},
            "pipeline_parallel_size must be at most 2, as the model has 2 layers, got 63",
        ),
        ({"device": "gpu"}, "device must be auto, cpu, cuda, cuda:N"),
    ],
)
def test_what_a_backend_does_not_take_is_refused(model: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        written(model, **arguments)


def test_a_dtype_without_effect_is_told(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(written(model, backend="cpu", dtype="float16")) == 8
    assert "without effect on the cpu backend: dtype" in caplog.text


def test_a_device_that_fails_is_said_and_the_model_can_still_be_closed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(backend, "run_rows", fail)
    with LLM(str(model), max_num_seqs=2, backend="torch", device="cpu") as llm:
        for _ in range(2):
            with pytest.raises(DeviceFailureError, match=r"assert triggered\. .* load the model in a new process"):
                llm.generate({"prompt_token_ids": list(PROMPT)}, GREEDY, use_tqdm=False)


def test_a_gpu_takes_more_tokens_at_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "BATCHED_TOKENS", {"cpu": 2048})
    sizes = []
    for name, wanted in (("reference", None), ("torch", None), ("torch", 64)):
        running = open_engine(
            model, LoadOptions(backend=name, device="cpu", max_num_seqs=2, max_num_batched_tokens=wanted)
        )
        sizes.append(running.engine.config.max_num_batched_tokens)
        running.close()
    assert sizes == [512, 2048, 64]
