"""A Modelfile wherever a command takes a model."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from support.fake_pipeline import FakePipeline
from support.serve_process import serve_process
from tuili.runtime.front.modelfile_settings import Preamble

from .conftest import Cli

BODY = """
PARAMETER temperature 0
PARAMETER num_predict 4
PARAMETER num_ctx 256
PARAMETER num_gpu 7
SYSTEM Answer in one word.
MESSAGE user 1+1?
MESSAGE assistant Two.
LICENSE My own
"""
BEGINNING = (
    "<|im_start|>system\nAnswer in one word.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
    "<|im_start|>assistant\nTwo.<|im_end|>\n"
)


@pytest.fixture
def modelfile(tmp_path: Path, smollm2_gguf: Path) -> Path:
    (tmp_path / "m.gguf").symlink_to(smollm2_gguf)
    (tmp_path / "Modelfile").write_text(f"FROM ./m.gguf\n{BODY}")
    return tmp_path / "Modelfile"


def test_show(cli: Cli, modelfile: Path) -> None:
    lines = [line.split("  ", 1) for line in cli("show", "Modelfile").out.replace("\n  ", "\n.").splitlines()]
    told = {label: text.strip() for label, text in lines}
    assert told["made from"] == "./m.gguf, by this Modelfile"
    assert (told[".num_ctx"], told[".system"], told[".user"]) == ("256", "Answer in one word.", "1+1?")
    assert told[".no effect"].startswith("PARAMETER num_gpu: ")
    assert told["sampling"] == "temperature 0.0 (modelfile), max_tokens 4 (modelfile)"
    told_json = json.loads(cli("show", "./Modelfile", "--json").out)
    assert told_json["sampling"]["max_tokens"] == {"value": 4, "source": "modelfile"}
    assert told_json["modelfile"]["messages"] == [["user", "1+1?"], ["assistant", "Two."]]
    assert cli("show", "Modelfile", "--rendered").out.startswith(BEGINNING)
    assert cli("show", "Modelfile", "--system").out == "Answer in one word.\n"
    assert cli("show", "Modelfile", "--license").out == "My own\n"
    assert cli("show", "Modelfile", "--path").out == "m.gguf\n"
    assert [line.split() for line in cli("show", "Modelfile", "--parameters").out.splitlines()] == [
        ["temperature", "0.0"],
        ["num_predict", "4"],
        ["num_ctx", "256"],
    ]


def test_what_show_prints_as_a_modelfile_is_one(cli: Cli, modelfile: Path, tmp_path: Path) -> None:
    written = cli("show", "Modelfile", "--modelfile").out
    (tmp_path / "again.modelfile").write_text(written)
    assert cli("show", "again.modelfile", "--modelfile").out == written
    for view in ("--rendered", "--parameters", "--license", "--template"):
        assert cli("show", "again.modelfile", view).out == cli("show", "Modelfile", view).out


def test_what_a_model_without_a_modelfile_has_not(cli: Cli, smollm2_gguf: Path) -> None:
    assert cli("show", str(smollm2_gguf), "--system").err == f"error: {smollm2_gguf} has no system text\n"
    assert cli("show", str(smollm2_gguf), "--modelfile").out.startswith(f"FROM {smollm2_gguf}\nTEMPLATE ")
    assert cli("show", str(smollm2_gguf), "--modelfile", "--path").code == 2


def test_run_and_generate(cli: Cli, modelfile: Path) -> None:
    ran = cli("run", "Modelfile", "2+2?", "--verbose", "--num-threads", "1")
    assert (ran.code, ran.out != "") == (0, True), ran.err
    assert "temperature 0.0 (modelfile)" in ran.err
    assert "generation  4 tokens" in ran.err or "ended by    stop" in ran.err
    rows = cli("generate", "Modelfile", "--count", "1", "--prompt", "2+2?", "--quiet", "--num-threads", "1")
    assert json.loads(rows.out)["text"].strip() == ran.out.strip()


def test_explain_plan_and_bench(cli: Cli, modelfile: Path) -> None:
    explained = json.loads(cli("explain", "Modelfile", "2+2?", "--json", "--no-inside", "--max-tokens", "1").out)
    assert explained["rendered"].startswith(BEGINNING)
    assert json.loads(cli("plan", "Modelfile", "--json").out)["ctx"] == 256
    arguments = ("--batch", "1", "--prompt-len", "4", "--output-len", "2", "--prefill-len", "0", "--rounds", "1")
    assert cli("bench", "Modelfile", *arguments, "--num-threads", "1", "--json").code == 0


def test_a_changed_modelfile_is_another_model_to_a_job(cli: Cli, modelfile: Path, tmp_path: Path) -> None:
    arguments = ("generate", "Modelfile", "--count", "1", "--prompt", "2+2?", "--output", "out.jsonl")
    assert cli(*arguments).code == 0
    modelfile.write_text(modelfile.read_text().replace("one word", "two words"))
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert "model" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        *(("show", "Modelfile"), ("run", "Modelfile", "x"), ("plan", "Modelfile"), ("explain", "Modelfile", "x")),
        *(("bench", "Modelfile"), ("generate", "Modelfile", "--count", "1", "--prompt", "x")),
    ],
)
def test_what_is_wrong_in_it_is_one_line(cli: Cli, modelfile: Path, arguments: tuple[str, ...]) -> None:
    modelfile.write_text("FROM ./m.gguf\nPARAMETER top_k many\n")
    outcome = cli(*arguments)
    wrong = "error: Modelfile, line 2, column 11: found PARAMETER top_k 'many'; allowed: an integer\n"
    assert (outcome.code, outcome.out, outcome.err) == (2, "", wrong)


def test_a_base_that_is_missing_is_asked_for_by_its_own_name(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text("FROM no/such\n")
    outcome = cli("show", "Modelfile")
    assert outcome.err == "error: model 'no/such' is not stored: fetch it with `tuili pull no/such`\n"


def test_the_chat_shows_where_things_are_from(cli: Cli, pipeline: FakePipeline) -> None:
    pipeline.preamble = Preamble("Be brief.", ({"role": "user", "content": "Hi"},))
    said = b"/show system\n/show messages\n/system mine\n/show system\n/system\n/show\n"
    out = cli("run", "m.gguf", stdin=said, is_terminal=True).out
    assert "Be brief. (from the Modelfile)\n" in out
    assert "(from the Modelfile, user) Hi\n" in out
    assert "system text set\n>>> mine\n" in out
    assert "system text is the Modelfile's again\n" in out
    assert "system    Be brief. (from the Modelfile)\n" in out


def test_serve(modelfile: Path, tmp_path: Path) -> None:
    arguments = (str(modelfile), "--served-model-name", "mario", "--num-threads", "1")
    with serve_process(*arguments, home=tmp_path / "home") as server:
        shown = httpx.post(f"{server.url}/api/show", json={"model": "mario"}, timeout=240).json()
        body = {"model": "mario", "messages": [{"role": "user", "content": "2+2?"}]}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=240).json()
        other = [{"role": "system", "content": "x"}, *body["messages"]]
        replaced = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "messages": other}, timeout=240).json()
        longer = httpx.post(f"{server.url}/api/chat", json={**body, "stream": False}, timeout=240).json()
    assert (shown["system"], shown["context_length"]) == ("Answer in one word.", 256)
    assert shown["messages"] == [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "Two."}]
    assert ["modelfile", {"temperature": 0.0, "max_tokens": 4}] in shown["sampling_layers"]
    assert shown["license"] == "My own"
    assert answer["usage"]["completion_tokens"] <= 4
    assert replaced["usage"]["prompt_tokens"] < answer["usage"]["prompt_tokens"]
    assert longer["prompt_eval_count"] == answer["usage"]["prompt_tokens"]
