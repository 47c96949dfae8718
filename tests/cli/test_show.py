"""`tuili show` and `tuili doctor` on real models and on this machine."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from support import tiny_models
from tuili.cli.commands import doctor
from tuili.cli.model_description import render_description
from tuili.cli.terminal import format_bytes
from tuili.errors import UnsupportedModelError

from .conftest import Cli


def test_show_describes_smollm2(cli: Cli, smollm2_gguf: Path) -> None:
    description = json.loads(cli("show", str(smollm2_gguf), "--json").out)
    assert description["num_parameters"] == 134_515_008
    assert description["spec"]["layers"] == [
        {"count": 30, "what": "attention 9 heads (3 kv) of 64, rope 100000; mlp 1536 silu gated"}
    ]
    assert {name: entry["num_tensors"] for name, entry in description["formats"].items()} == {
        "Q4_1": 210,
        "Q8_0": 1,
        "F32": 61,
    }
    lines = dict(line.split("  ", 1) for line in cli("show", str(smollm2_gguf)).out.splitlines() if line[0] != " ")
    assert lines["parameters"].strip() == "134.5M"
    assert lines["context"].strip() == "8192 tokens"
    own, mapped = (description["memory"][f"weights_{kind}_bytes"] for kind in ("own", "mapped"))
    assert mapped == smollm2_gguf.stat().st_size
    assert own == pytest.approx(sum(entry["num_bytes"] for entry in description["formats"].values()), rel=0.01)
    assert lines["memory"].strip() == (
        f"{format_bytes(own)} of its own for the weights; "
        f"{format_bytes(mapped)} mapped from files while loading, which the system may drop"
    )
    assert lines["template"].strip().startswith("sha256 ")


def test_show_tells_the_memory_of_a_model_quantized_while_it_is_loaded(cli: Cli, tmp_path: Path) -> None:
    tiny_models.build("llama", hidden_size=256, intermediate_size=512).bfloat16().save_pretrained(tmp_path)
    as_stored, narrower = (
        json.loads(cli("show", str(tmp_path), "--json", *options).out)["memory"]
        for options in ((), ("--quantize", "q8_0"))
    )
    assert as_stored["weights_mapped_bytes"] == narrower["weights_mapped_bytes"]
    assert narrower["weights_own_bytes"] == pytest.approx(as_stored["weights_own_bytes"] * 34 / 64, rel=0.02)


def test_show_says_why_the_memory_is_not_known(cli: Cli, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> int:
        raise UnsupportedModelError("embed_tokens.weight: no kernels for it")

    monkeypatch.setattr("tuili.backends.cpu.footprint.weight_bytes", refuse)
    assert "memory       not known: embed_tokens.weight: no kernels for it\n" in cli("show", str(smollm2_gguf)).out
    monkeypatch.setitem(sys.modules, "tuili.backends.cpu.footprint", None)
    described = json.loads(cli("show", str(smollm2_gguf), "--json").out)
    assert described["memory"] == {"refusal": "the native backend is not built"}


def test_show_describes_a_windowed_model_without_a_template(cli: Cli, gemma3_gguf: Path) -> None:
    out = cli("show", str(gemma3_gguf)).out
    assert "15 x attention 4 heads (1 kv) of 256, window 512, rope 10000; mlp 2048 gelu_tanh gated" in out
    assert "3 x attention 4 heads (1 kv) of 256, rope 1e+06; mlp 2048 gelu_tanh gated" in out
    assert "template     none: prompts are completed as they are" in out
    outcome = cli("show", str(gemma3_gguf), "--template")
    assert (outcome.code, outcome.err) == (2, f"error: {gemma3_gguf} has no chat template\n")


def test_show_renders_the_exact_prompt(cli: Cli, smollm2_gguf: Path) -> None:
    out = cli("show", str(smollm2_gguf), "--rendered").out
    assert out.endswith("<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n\n")
    template = cli("show", str(smollm2_gguf), "--template", "--json").out
    digest = hashlib.sha256(json.loads(template)["chat_template"].encode()).hexdigest()
    assert json.loads(cli("show", str(smollm2_gguf), "--json").out)["chat_template"] == digest


def test_show_cuts_a_text_into_tokens(cli: Cli, smollm2_gguf: Path) -> None:
    assert cli("show", str(smollm2_gguf), "--tokens", "Hello wörld 🎉").out.splitlines() == [
        "   19556  'Hello'",
        "     267  ' w'",
        "   29989  'ör'",
        "     400  'ld'",
        "   15107  b' \\xf0\\x9f'",
        "     232  b'\\x8e'",
        "     227  b'\\x89'",
        "7 tokens",
    ]
    assert json.loads(cli("show", str(smollm2_gguf), "--tokens", "", "--json").out) == []


def test_show_tells_the_path(cli: Cli, smollm2_gguf: Path) -> None:
    assert cli("show", str(smollm2_gguf), "--path").out == f"{smollm2_gguf}\n"


def test_show_refuses_what_is_no_model(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nonsense")
    outcome = cli("show", "x.gguf")
    assert outcome.code == 2
    assert outcome.err.startswith("error: x.gguf")
    assert cli("show", "smollm").err == "error: model 'smollm' is not known: did you mean 'smollm2:135m'?\n"


def test_doctor_reports_this_machine(cli: Cli) -> None:
    report = json.loads(cli("doctor", "--json").out)
    memory = report["memory"]
    assert 0 < memory["kv_cache_limit_bytes"] < memory["free_bytes"] <= memory["total_bytes"]
    assert memory["process_own_bytes"] > 2**20
    assert memory["free_by"] in ("the system", "control group")
    assert {"tuili", "numpy", "tokenizers"} <= report["versions"].keys()
    assert report["store"]["num_models"] == 0
    out = cli("doctor").out
    assert f"free, by {memory['free_by']} (in all {format_bytes(memory['total_bytes'])}, control group limit " in out
    assert " mapped from files, without a model\n" in out
    assert [line.split()[0] for line in out.splitlines()][-4:] == ["store", "versions", "python", "system"]
    if report["processor"] is not None:
        threads = report["processor"]["threads"]
        assert f"{threads['num_threads']}, by {threads['reason']} (affinity {threads['affinity']}, " in out


def test_doctor_works_without_the_native_backend(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_processor", lambda: None)
    assert cli("doctor").out.startswith("processor     the native backend is not built: reinstall tuili\n")


def test_show_names_what_is_left_out() -> None:
    """As of a model with eyes, whose text part alone runs."""
    names = [f"model.vision_tower.{i}.weight" for i in range(3)] + ["multi_modal_projector.weight"]
    description = {
        "name": "m",
        "source": "s",
        "modelfile": None,
        "sampling": {},
        "license": None,
        "size": 1,
        "num_parameters": 1,
        "formats": {},
        "memory": {"weights_own_bytes": 1, "weights_mapped_bytes": 1},
        "spec": {
            "family": "mistral3",
            "kind": "decoder",
            "max_position": 1,
            "vocab_size": 1,
            "hidden_size": 1,
            "tie_word_embeddings": False,
            "layers": [],
        },
        "generation_config": {},
        "eos_token_ids": [],
        "left_out": names,
        "chat_template": None,
    }
    assert "4 tensors: vision_tower, multi_modal_projector\n" in render_description(description)
    assert "left out" not in render_description(description | {"left_out": []})


@pytest.mark.parametrize("option", ["--template", "--rendered"])
def test_what_a_model_file_says_cannot_paint_a_terminal(
    cli: Cli, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    painted = "{{ '\x1b]0;title\x07' }}\x1b[2Jplain\n\tend"
    monkeypatch.setattr("tuili.runtime.front.text_parts.chat_template_source", lambda *_: painted)
    into_pipe = cli("show", str(smollm2_gguf), option).out
    assert "\x1b[2J" in into_pipe
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli("show", str(smollm2_gguf), option).out == into_pipe.replace("\x1b", "").replace("\x07", "")
