"""What a Modelfile changes of a model: where each sampling value comes from, what conversations begin with."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import huggingface_folder
from tuili import LLM, SamplingParams
from tuili.errors import InvalidRequestError
from tuili.ollama_terms import SAMPLING_FIELDS
from tuili.runtime.front.modelfile_settings import Preamble
from tuili.runtime.front.modelfile_view import modelfile_text
from tuili.runtime.front.sampling_defaults import configured_sampling, effective_sampling
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.runtime.loading.pipeline import Pipeline
from tuili.runtime.openai.requests import completion_defaults
from tuili.store.modelfile import parse_modelfile
from tuili.store.store import Store
from tuili.types import GenerateRequest

GENERATION_CONFIG = {
    "temperature": 0.1,
    "top_p": 0.11,
    "top_k": 12,
    "min_p": 0.13,
    "typical_p": 0.14,
    "repetition_penalty": 1.15,
    "max_new_tokens": 16,
}
LOWEST = {**GENERATION_CONFIG, "max_tokens": 16}
OWN = {  # option -> (as written, value)
    "temperature": ("0.2", 0.2),
    "top_p": ("0.21", 0.21),
    "top_k": ("22", 22),
    "min_p": ("0.23", 0.23),
    "typical_p": ("0.24", 0.24),
    "repeat_penalty": ("1.25", 1.25),
    "num_predict": ("26", 26),
    "presence_penalty": ("0.27", 0.27),
    "frequency_penalty": ("0.28", 0.28),
    "seed": ("29", 29),
    "stop": ("<|30|>", ("<|30|>",)),
    "mirostat": ("1", 1),
    "mirostat_tau": ("3.2", 3.2),
    "mirostat_eta": ("0.33", 0.33),
    "repeat_last_n": ("34", 34),
}
REQUESTED: dict[str, Any] = {
    "temperature": 0.3,
    "top_p": 0.31,
    "top_k": 32,
    "min_p": 0.33,
    "typical_p": 0.34,
    "repeat_penalty": 1.35,
    "num_predict": 36,
    "presence_penalty": 0.37,
    "frequency_penalty": 0.38,
    "seed": 39,
    "stop": ("<|40|>",),
    "mirostat": 2,
    "mirostat_tau": 4.2,
    "mirostat_eta": 0.43,
    "repeat_last_n": 44,
}
FIELDS = {**SAMPLING_FIELDS, "num_predict": "max_tokens"}
Open = Callable[..., Pipeline]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A model's folder by whether it has a generation_config.json."""
    root = tmp_path_factory.mktemp("models")
    for has_config in (False, True):
        huggingface_folder.save(root / str(has_config), "llama")
        (root / str(has_config) / "generation_config.json").unlink(missing_ok=True)
    (root / "True" / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG))
    return {has_config: root / str(has_config) for has_config in (False, True)}


@pytest.fixture
def opened(folders: dict[bool, Path], tmp_path: Path) -> Iterator[Open]:
    pipelines = []

    def open_with(lines: str | None = None, *, has_config: bool = True, **options: Any) -> Pipeline:
        name = str(folders[has_config])
        if lines is not None:
            (tmp_path / "Modelfile").write_text(f"FROM {name}\n{lines}\n")
            name = str(tmp_path / "Modelfile")
        pipelines.append(open_model(name, LoadOptions(num_threads=1, **options)))
        return pipelines[-1]

    yield open_with
    for pipeline in pipelines:
        pipeline.close()


def test_every_sampling_value_comes_from_the_highest_of_four_layers(opened: Open) -> None:
    """Request, Modelfile, generation_config.json, library: each field with every set of layers that has it."""
    assert OWN.keys() == REQUESTED.keys() == FIELDS.keys()
    lines = "\n".join(f"PARAMETER {option} {written}" for option, (written, _) in OWN.items())
    library = SamplingParams(max_tokens=None)
    for has_config in (False, True):
        for has_own in (False, True):
            defaults = opened(lines if has_own else None, has_config=has_config).default_sampling
            for option, (_, own) in OWN.items():
                field = FIELDS[option]
                below = (LOWEST[field], "generation_config") if has_config and field in LOWEST else None
                expected = (own, "modelfile") if has_own else below or (getattr(library, field), "library")
                for given in ({}, {field: REQUESTED[option]}):
                    params = SamplingParams(**{"max_tokens": None, **defaults, **given})
                    found = {v.name: (v.value, v.source) for v in effective_sampling(params, defaults, given)}
                    assert found[field] == ((REQUESTED[option], "request") if given else expected), option


def test_a_modelfile_takes_back_what_a_generation_config_limits(opened: Open) -> None:
    assert opened("PARAMETER num_predict -1").default_sampling["max_tokens"] is None


def test_generation_config_vllm_leaves_a_modelfile_its_say(opened: Open) -> None:
    sampling = opened("PARAMETER temperature 0.2").default_sampling
    assert dict(configured_sampling(sampling, "vllm", {})) == {"temperature": 0.2}
    assert dict(configured_sampling(sampling, "vllm", {"temperature": 0.9})) == {"temperature": 0.9}
    assert configured_sampling(sampling, "auto", {"top_k": 7})["top_k"] == 7
    assert configured_sampling({"top_k": 3}, "auto", {}).layer_of("top_k") == "model"


def test_a_completion_has_openai_s_limit_unless_a_modelfile_says_another(opened: Open) -> None:
    assert completion_defaults(opened().default_sampling)["max_tokens"] == 16
    assert completion_defaults(opened("PARAMETER num_predict 40").default_sampling)["max_tokens"] == 40


def test_llm_takes_a_modelfile(folders: dict[bool, Path], tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(
        f"FROM {folders[True]}\nPARAMETER temperature 0\nPARAMETER num_predict 3\nPARAMETER num_ctx 64\n"
        "SYSTEM Be brief.\nMESSAGE user Hi\nMESSAGE assistant Yes?\n"
    )
    with LLM(str(tmp_path / "Modelfile"), num_threads=1) as llm:
        params = llm.get_default_sampling_params()
        assert (params.temperature, params.max_tokens, params.top_k) == (0.0, 3, 12)
        assert [(v.value, v.source) for v in llm.effective_sampling() if v.name == "max_tokens"] == [(3, "modelfile")]
        (answer,) = llm.chat([{"role": "user", "content": "one"}], use_tqdm=False)
        said = "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Yes?<|end|><|user|>one<|end|><|assistant|>"
        assert answer.prompt == said
        assert len(answer.outputs[0].token_ids) <= 3
        (plain,) = llm.generate("one", use_tqdm=False)
        assert plain.prompt == "one"


@pytest.mark.parametrize(
    ("own", "messages", "expected"),
    [
        (Preamble(), ["u"], ["u"]),
        (Preamble("S"), ["u"], ["S", "u"]),
        (Preamble("S"), ["s", "u"], ["s", "u"]),
        (Preamble("S"), ["d", "u"], ["d", "u"]),
        (Preamble("S"), ["u", "s", "u"], ["u", "s", "u"]),
        (Preamble(None, ({"role": "user", "content": "U"},)), ["u"], ["U", "u"]),
        (Preamble("S", ({"role": "user", "content": "U"},)), ["u"], ["S", "U", "u"]),
        (Preamble("S", ({"role": "user", "content": "U"},)), ["s", "u"], ["s", "U", "u"]),
        (
            Preamble(None, ({"role": "system", "content": "T"}, {"role": "user", "content": "U"})),
            ["u"],
            ["T", "U", "u"],
        ),
        (Preamble("S", ({"role": "system", "content": "T"}, {"role": "user", "content": "U"})), ["s"], ["s", "U"]),
    ],
)
def test_what_a_conversation_begins_with(own: Preamble, messages: list[str], expected: list[str]) -> None:
    roles = {"u": "user", "s": "system", "d": "developer"}
    found = own.before([{"role": roles[message], "content": message} for message in messages])
    assert [message["content"] for message in found] == expected


def test_a_template_of_its_own_is_used_unless_the_caller_gives_another(opened: Open) -> None:
    def prompt(pipeline: Pipeline, **fields: Any) -> str:
        return str(pipeline.render(_asking(**fields)))

    own = 'TEMPLATE """own {{ messages[-1].content }}"""'
    assert prompt(opened(own)) == "own x"
    assert prompt(opened(own), chat_template="asked {{ messages[-1].content }}") == "asked x"
    assert prompt(opened(own, chat_template="flag {{ messages[-1].content }}")) == "flag x"


def test_a_template_that_is_wrong_is_refused_where_it_stands(opened: Open) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"Modelfile, line 3, column 10: found TEMPLATE with an error \(chat t"
    ):
        opened('PARAMETER top_k 1\nTEMPLATE """{% if %}"""')
    pipeline = opened('TEMPLATE """{{ messages.__class__.__mro__ }}"""')
    with pytest.raises(InvalidRequestError, match="chat template: "):
        pipeline.render(_asking())


def _asking(**fields: Any) -> GenerateRequest:
    message = {"role": "user", "content": "x"}
    return GenerateRequest(request_id="r", sampling=SamplingParams(), messages=(message,), **fields)


def test_a_context_is_as_long_as_asked_for_and_the_model_allows(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    longest = opened().max_model_len
    assert opened("PARAMETER num_ctx 64").max_model_len == 64
    assert opened("PARAMETER num_ctx 64", max_model_len=32).max_model_len == 32
    with caplog.at_level(logging.WARNING):
        assert opened("PARAMETER num_ctx 99999\nPARAMETER num_gpu 1").max_model_len == longest
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [
        " PARAMETER num_gpu has no effect",
        f" PARAMETER num_ctx beyond {longest} has no effect",
    ]


@pytest.mark.parametrize("line", ["SYSTEM x", "MESSAGE user x"])
def test_a_model_without_a_template_has_no_use_for_messages(
    line: str, folders: dict[bool, Path], tmp_path: Path
) -> None:
    huggingface_folder.save(tmp_path / "plain", "llama")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    (tmp_path / "Modelfile").write_text(f"FROM ./plain\n{line}\n")
    with pytest.raises(InvalidRequestError, match=f"line 1, column 6: found a model without .*{line.split()[0]} needs"):
        open_model(str(tmp_path / "Modelfile"))


def test_what_is_written_of_a_model_is_that_model(opened: Open, tmp_path: Path) -> None:
    pipeline = opened('PARAMETER stop "a b"\nPARAMETER repeat_last_n -1\nPARAMETER num_keep 3\nSYSTEM """a\nb"""')
    store = Store(tmp_path / "home", {})
    modelfile = store.modelfile(pipeline.name)
    assert modelfile is not None
    assert pipeline.chat_template is not None
    text = modelfile_text(modelfile.base, pipeline.chat_template.source, pipeline.default_sampling, modelfile)
    again = parse_modelfile(text.encode(), "Modelfile")
    assert dict(again.options.sampling) == dict(pipeline.default_sampling)
    assert (again.base, again.system, again.options.num_keep) == (modelfile.base, "a\nb", 3)
    assert again.template == pipeline.chat_template.source
    assert (tmp_path / "home").exists() is False


def test_a_template_that_no_modelfile_can_hold_stays_the_bases() -> None:
    template = '{% if a == "b"\n or c %}\n"""\n{% endif %}'
    text = modelfile_text("m", template, {"temperature": 0.5})
    made = parse_modelfile(text.encode(), "Modelfile")
    assert (made.base, made.template, made.options.sampling) == ("m", None, {"temperature": 0.5})
    assert "# TEMPLATE" in text
