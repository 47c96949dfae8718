"""`tuili plan`: the answer first, in words; the exit code says it too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Cli


def test_what_fits_is_said_first(cli: Cli, smollm2_gguf: Path) -> None:
    outcome = cli("plan", str(smollm2_gguf), "--ctx", "512", "--parallel", "2")
    assert outcome.code == 0, outcome.err
    first, *rest = outcome.out.splitlines()
    assert first.startswith(f"It fits: {smollm2_gguf} with 2 sequences of 512 tokens takes 1")
    assert rest[0] == ""
    facts = dict(line.strip().split("  ", 1) for line in rest[1:])
    assert facts["KV cache"].strip() == "22.5 MiB (bfloat16, 22.5 KiB a token)"
    assert facts["decode"].strip().startswith("about ")
    assert "int8" in facts["measured"]


def test_what_does_not_fit_is_said_with_what_to_change(
    cli: Cli, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuili.runtime.plan.plan.available_memory", lambda: 400 << 20)
    outcome = cli("plan", str(smollm2_gguf), "--ctx", "4096", "--parallel", "2")
    assert outcome.code == 1
    lines = outcome.out.split("\n\n")[0].splitlines()
    assert lines[0].endswith("takes 180.0 MiB of KV cache, which may have 160.0 MiB of the 400.0 MiB that are free.")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "It fits with --kv-cache-dtype int8",
        "It fits with --parallel 1",
        "It fits with --ctx 3584",
    ]
    outcome = cli("plan", str(smollm2_gguf), "--json", "--ctx", "4096", "--parallel", "2")
    assert (outcome.code, json.loads(outcome.out)["fits"]) == (1, False)


def test_a_shortened_context_is_named(cli: Cli, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuili.runtime.plan.plan.available_memory", lambda: 300 << 20)
    out = cli("plan", str(smollm2_gguf)).out.splitlines()
    assert out[0].startswith("It fits: ")
    assert out[1] == "That is the longest context that fits; the model knows 8192 tokens."
    monkeypatch.setattr("tuili.runtime.plan.plan.available_memory", lambda: 100 << 20)
    outcome = cli("plan", str(smollm2_gguf))
    assert outcome.code == 1
    assert outcome.out.splitlines()[1] == "No context fits: free some memory, or take a smaller model."


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--ctx", "100000"), 2, "error: ctx must be in [1, 8192] for this model, got 100000"),
        (("--kv-cache-dtype", "int4"), 2, "error: kv_cache_dtype must be one of auto, bfloat16, int8, got 'int4'"),
        (("--num-threads", "300"), 2, "error: num_threads must be an integer in [0, 256], got 300"),
        (("--parallel", "0"), 2, "error: Invalid value for '--parallel'"),
    ],
)
def test_wrong_options_are_one_line(
    cli: Cli, smollm2_gguf: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    outcome = cli("plan", str(smollm2_gguf), *arguments)
    assert outcome.code == code
    assert outcome.err.startswith(message)


def test_a_gpu_that_is_not_here(cli: Cli, smollm2_gguf: Path) -> None:
    asked = ("plan", str(smollm2_gguf), "--ctx", "4096", "--parallel", "8", "--device-memory", "8GiB")
    outcome = cli(*asked)
    assert outcome.code == 0, outcome.err
    first, *rest = outcome.out.splitlines()
    assert first.startswith(f"It fits: {smollm2_gguf} with 8 sequences of 4096 tokens takes ")
    assert first.endswith(" on a GPU of 8.0 GiB.")
    facts = dict(line.strip().split("  ", 1) for line in rest[1:])
    assert facts["KV cache"].strip() == "720.0 MiB (auto, 22.5 KiB a token)"
    staged = cli(*asked, "-pp", "2", "-tp", "3")
    assert " on each of 6 GPUs of 8.0 GiB." in staged.out
    facts = dict(line.strip().split("  ", 1) for line in staged.out.splitlines()[1:] if line)
    assert facts["stage 2"].strip().startswith("layers 15 to 29 on 3 GPUs, of each: weights ")
    split = cli(*asked, "--gpu-layers", "12")
    assert "with the first 18 of 30 layers on the CPU, which is slow." in split.out
    shared = json.loads(cli(*asked, "--tensor-parallel-size", "2", "--json").out)
    assert shared["tensor_parallel_size"] == 2
    assert shared["need"]["kv_cache_bytes"] == 480 << 20  # two of three heads
    none = cli("plan", str(smollm2_gguf), "--device-memory", "700MiB", "--gpu-layers", "99")
    assert none.code == 1
    assert none.out.startswith("It does not fit: ")
    for wrong, message in (
        (("--device-memory", "80apples"), "error: device_memory must be bytes >= 1"),
        (("--device", "cuda:9"), "error: device 'cuda:9': no NVIDIA driver tells of its memory here"),
        (("--tensor-parallel-size", "2", "--device", "cpu"), "error: tensor_parallel_size must be left out"),
    ):
        outcome = cli("plan", str(smollm2_gguf), *wrong)
        assert (outcome.code, outcome.err.startswith(message)) == (2, True), outcome.err


def test_an_address_that_is_none_is_one_line(cli: Cli) -> None:
    outcome = cli("plan", "http://[::1/x.gguf")
    assert outcome.code == 2
    assert outcome.err.startswith("error: model 'http://[::1/x.gguf' is no URL: ")
