"""`tuili.compat.llama_cpp`: llama-cpp-python's signatures, shapes and manners over a real model."""

from __future__ import annotations

import ast
import inspect
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tuili.compat import llama_cpp_arguments
from tuili.compat.llama_cpp import _NOT_HERE, Llama
from tuili.compat.llama_cpp_arguments import _NEUTRAL, _REFUSED_SAMPLING, IGNORED, REFUSED
from tuili.errors import ContextLengthError, InvalidRequestError

PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def llama(smollm2_gguf: Path) -> Iterator[Llama]:
    model = Llama(str(smollm2_gguf), n_ctx=256, verbose=False)
    yield model
    model.close()


@pytest.fixture(scope="module")
def theirs(llama_cpp_source: Callable[[str], str]) -> dict[str, ast.FunctionDef]:
    """The methods of llama-cpp-python's Llama, as its sources declare them."""
    tree = ast.parse(llama_cpp_source("llama_cpp/llama.py"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Llama")
    return {node.name: node for node in found.body if isinstance(node, ast.FunctionDef)}


@pytest.fixture(scope="module")
def shapes(llama_cpp_source: Callable[[str], str]) -> dict[str, set[str]]:
    """The keys of llama-cpp-python's answer types."""
    tree = ast.parse(llama_cpp_source("llama_cpp/llama_types.py"))
    return {
        node.name: {item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and _is_name(item.target)}  # type: ignore[union-attr]
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Name)


def _parameters(function: ast.FunctionDef) -> dict[str, ast.expr | None]:
    """Names with their defaults, self left out."""
    positional = function.args.args[1:]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(function.args.defaults))
    defaults += function.args.defaults
    keywords = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return {a.arg: d for a, d in [*zip(positional, defaults, strict=True), *keywords]}


METHODS = ["__init__", "__call__", "create_completion", "create_chat_completion", "generate", "tokenize", "detokenize"]


@pytest.mark.parametrize("method", [*METHODS, "from_pretrained", "set_seed", "set_cache", "reset"])
def test_parameters_have_the_same_names_order_and_defaults(theirs: dict[str, ast.FunctionDef], method: str) -> None:
    ours = inspect.signature(getattr(Llama, method)).parameters
    elsewhere = {*IGNORED, *REFUSED, *_NEUTRAL, *_REFUSED_SAMPLING, "n_gpu_layers", "penalize_nl", "self"}
    parameters = _parameters(theirs[method])
    for name, default in parameters.items():
        if name not in ours:
            assert name in elsewhere, f"{method}: {name} is not known"
        elif isinstance(default, ast.Constant):
            assert ours[name].default == default.value, f"{method}: {name}"
    shared = [name for name in parameters if name in ours and ours[name].kind is ours[name].POSITIONAL_OR_KEYWORD]
    assert shared == [name for name in ours if name in shared]


def test_every_public_method_is_here_or_refused_with_a_reason(theirs: dict[str, ast.FunctionDef]) -> None:
    internal = {"longest_token_prefix", "logits_to_logprobs", "pooling_type", "tokenizer", "eval_tokens"}
    for name in theirs:
        if not name.startswith("_") and name not in internal:
            assert hasattr(Llama, name) or name in _NOT_HERE, name


def test_a_completion_has_the_shape_of_theirs(llama: Llama, shapes: dict[str, set[str]]) -> None:
    answer = llama(PROMPT, max_tokens=6, temperature=0, logprobs=2)
    assert answer.keys() == shapes["CreateCompletionResponse"]
    (choice,) = answer["choices"]
    assert choice.keys() == shapes["CompletionChoice"]
    assert choice["logprobs"].keys() == shapes["CompletionLogprobs"]
    assert answer["usage"].keys() == shapes["CompletionUsage"]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    assert (answer["object"], choice["finish_reason"]) == ("text_completion", "length")
    assert json.loads(json.dumps(answer)) == answer


def test_penalties_look_at_the_last_tokens(llama: Llama) -> None:
    with pytest.raises(InvalidRequestError, match="last_n_tokens_size must be an integer"):
        Llama(llama.model_path, last_n_tokens_size=-1)
    texts = {}
    for last_n in (0, 64):
        llama._last_n = last_n
        texts[last_n] = llama("1 1 1 1 1 1 1 1", max_tokens=8, temperature=0, repeat_penalty=3.0)["choices"][0]["text"]
    llama._last_n = 64
    assert texts[0] == " 1 1 1 1"
    assert "1" not in texts[64]


def test_logprobs_tell_tokens_offsets_and_alternatives(llama: Llama) -> None:
    answer = llama(PROMPT, max_tokens=5, temperature=0, logprobs=2, echo=True)
    text, found = answer["choices"][0]["text"], answer["choices"][0]["logprobs"]
    assert text.startswith(PROMPT)
    assert "".join(found["tokens"]) == text
    assert all(text[o:].startswith(t) for o, t in zip(found["text_offset"], found["tokens"], strict=True))
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    for value, best in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True):
        assert value in best.values()
        assert 2 <= len(best) <= 3
        assert sum(map(math.exp, best.values())) <= 1.001
    alone = llama(PROMPT, max_tokens=5, temperature=0, logprobs=2)["choices"][0]["logprobs"]
    assert alone["text_offset"] == found["text_offset"][5:]


def test_streamed_text_is_the_whole_text(llama: Llama) -> None:
    whole = llama(PROMPT, max_tokens=12, temperature=0, echo=True)["choices"][0]
    chunks = list(llama(PROMPT, max_tokens=12, temperature=0, echo=True, stream=True, logprobs=1))
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "length"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert choices[1]["logprobs"]["text_offset"] == [len(PROMPT)]


def test_stops_and_seeds(llama: Llama) -> None:
    text = llama(PROMPT, max_tokens=12, temperature=0)["choices"][0]["text"]
    cut = llama(PROMPT, max_tokens=12, temperature=0, stop=[text[5:8]])["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (text[:5], "stop")


def test_seeds_go_on_as_theirs_do(llama: Llama) -> None:
    def ask(**arguments: Any) -> str:
        return str(llama(PROMPT, max_tokens=8, temperature=1.0, **arguments)["choices"][0]["text"])

    llama.set_seed(7)
    row = [ask() for _ in range(3)]
    assert len(set(row)) == 3
    llama.set_seed(7)
    assert [ask() for _ in range(3)] == row
    again = ask(seed=9)
    assert ask(seed=9) == again
    after = ask()
    llama.set_seed(9)
    assert ask() == after != again


def test_arguments_go_by_place_as_they_do_in_theirs(llama: Llama) -> None:
    by_name = llama(PROMPT, max_tokens=5, temperature=0.0, top_p=0.9)["choices"][0]["text"]
    assert llama(PROMPT, None, 5, 0.0, 0.9)["choices"][0]["text"] == by_name


@pytest.mark.parametrize("stop", [None, ["🙂"]])
def test_streamed_logprobs_are_those_of_the_whole(llama: Llama, stop: list[str] | None) -> None:
    arguments: dict[str, Any] = {"max_tokens": 18, "temperature": 0, "logprobs": 2, "stop": stop}
    prompt = "🙂🎉🙂🎉🙂🎉🙂"
    whole = llama(prompt, **arguments)["choices"][0]["logprobs"]
    chunks = [chunk["choices"][0]["logprobs"] for chunk in llama(prompt, stream=True, **arguments)]
    assert "" in whole["tokens"]
    for key, values in whole.items():
        assert [value for found in chunks if found is not None for value in found[key]] == values, key
    chat: dict[str, Any] = {**arguments, "logprobs": True, "top_logprobs": 2}
    messages = [{"role": "user", "content": f"Repeat after me: {prompt}"}]
    answer = llama.create_chat_completion(messages, **chat)
    assert isinstance(answer, dict)
    told = [chunk["choices"][0]["logprobs"] for chunk in llama.create_chat_completion(messages, stream=True, **chat)]
    content = [entry for found in told if found is not None for entry in found["content"]]
    assert content == answer["choices"][0]["logprobs"]["content"]


def test_a_chat_answer_and_its_chunks_have_the_shape_of_theirs(llama: Llama, shapes: dict[str, set[str]]) -> None:
    arguments: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    answer = llama.create_chat_completion(MESSAGES, **arguments)
    assert isinstance(answer, dict)
    assert answer.keys() == shapes["CreateChatCompletionResponse"]
    (choice,) = answer["choices"]
    assert choice.keys() == shapes["ChatCompletionResponseChoice"]
    assert choice["message"]["role"] == "assistant"
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == choice["message"]["content"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in choice["logprobs"]["content"])
    chunks = list(llama.create_chat_completion(MESSAGES, stream=True, **arguments))
    for chunk in chunks:
        assert chunk.keys() == shapes["CreateChatCompletionStreamResponse"]
        assert chunk["choices"][0].keys() == shapes["ChatCompletionStreamResponseChoice"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant"}
    assert deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == choice["message"]["content"]


def test_special_tokens_count_in_a_prompt_as_they_do_in_llama_cpp(llama: Llama) -> None:
    by_hand = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert llama.tokenize(b"<|im_end|>", special=True) == [llama.token_eos()]
    assert len(llama.tokenize(b"<|im_end|>")) > 1
    answer = llama(by_hand, max_tokens=16, temperature=0)
    assert answer["usage"]["prompt_tokens"] == len(llama.tokenize(by_hand.encode(), special=True))
    assert llama.tokenize("é, 推理".encode()) == llama.tokenize("é, 推理".encode(), add_bos=False)


def test_tokens_come_back_as_bytes(llama: Llama) -> None:
    text = "Byte pairs: é, 推理, 🙂".encode()
    ids = llama.tokenize(text)
    assert llama.detokenize(ids) == text
    assert b"".join(llama.detokenize([i]) for i in ids) == text
    assert llama.detokenize([llama.token_eos()]) == b""
    assert llama.detokenize([llama.token_eos()], special=True) == b"<|im_end|>"
    assert llama.detokenize([llama.token_nl()]) == b"\n"
    assert (llama.n_ctx(), llama.n_vocab(), llama.n_embd()) == (256, 49152, 576)


def test_generate_yields_ids_until_the_caller_leaves(llama: Llama) -> None:
    ids = llama.tokenize(PROMPT.encode())
    found = []
    for token_id in llama.generate(ids, temp=0.0, top_k=1):
        found.append(token_id)
        if len(found) == 6:
            break
    assert llama.detokenize(found).decode() == llama(PROMPT, max_tokens=6, temperature=0)["choices"][0]["text"]


def test_samplers_and_processors_are_llama_cpps(llama: Llama) -> None:
    greedy = llama(PROMPT, max_tokens=1, temperature=0, logprobs=5)["choices"][0]
    best = llama.tokenize(greedy["text"].encode(), add_bos=False)[0]

    def without_best(input_ids: Any, scores: Any) -> Any:
        assert input_ids.tolist() == llama.tokenize(PROMPT.encode())
        scores[best] = -math.inf
        return scores

    other = llama(PROMPT, max_tokens=1, temperature=0, logits_processor=[without_best])["choices"][0]["text"]
    assert other != greedy["text"]
    assert llama(PROMPT, max_tokens=1, temperature=0, logit_bias={str(best): -100})["choices"][0]["text"] == other
    assert llama(PROMPT, max_tokens=1, temperature=2.0, top_k=1)["choices"][0]["text"] == greedy["text"]
    for arguments in ({"typical_p": 0.5}, {"mirostat_mode": 2, "mirostat_tau": 3.0}, {"mirostat_mode": 1}):
        assert len(llama(PROMPT, max_tokens=4, **arguments)["choices"][0]["text"]) > 0


def test_a_chat_format_by_name(smollm2_gguf: Path) -> None:
    llama = Llama(str(smollm2_gguf), n_ctx=128, chat_format="chatml", type_k=8, type_v=8, n_gpu_layers=-1)
    answer = llama.create_chat_completion(MESSAGES, max_tokens=1)
    assert isinstance(answer, dict)
    prompt = "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n"
    assert answer["usage"]["prompt_tokens"] == len(llama.tokenize(prompt.encode(), special=True))
    llama.reset()
    llama.close()


@pytest.mark.parametrize(
    ("n_gpu_layers", "backend", "gpu_layers"), [(None, None, None), (0, "cpu", None), (-1, None, None), (12, None, 12)]
)
def test_layers_on_a_gpu(
    n_gpu_layers: int | None, backend: str | None, gpu_layers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp_arguments, "expected_backend", lambda *_: "torch")
    options = llama_cpp_arguments.llm_options(64, 64, None, None, (None, None), {"n_gpu_layers": n_gpu_layers})
    assert (options.backend, options.gpu_layers) == (backend, gpu_layers)


def test_layers_on_a_gpu_that_is_not_there_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(llama_cpp_arguments, "expected_backend", lambda *_: "cpu")
    options = llama_cpp_arguments.llm_options(64, 64, None, None, (None, None), {"n_gpu_layers": 5})
    assert (options.backend, options.gpu_layers) == (None, None)
    assert "without effect here: n_gpu_layers, as torch sees no GPU" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_gpu_layers": -2}, "n_gpu_layers must be an integer >= -1"),
        ({"lora_path": "x"}, "lora_path='x' is not implemented: adapters"),
        ({"draft_model": object()}, "draft_model"),
        ({"chat_format": "alpaca"}, r"one of \['chatml'\], got 'alpaca'"),
        ({"type_k": 8}, "type_k and type_v must both be"),
        ({"n_context": 8}, "unknown argument 'n_context'"),
        ({"rope_freq_base": 5.0}, "rope_freq_base=5.0 is not implemented"),
    ],
)
def test_a_refused_load_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Llama("never-looked-for", **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m("x", suffix="y"), "suffix is not implemented"),
        (lambda m: m("x", grammar=object()), "grammar is not implemented: structured output"),
        (lambda m: m("x", temperature=-1.0), "temperature must be"),
        (lambda m: m("x", no_such=1), "no_such"),
        (lambda m: m.create_chat_completion(MESSAGES, response_format={"type": "json_object"}), "response_format"),
        (lambda m: m.create_chat_completion(MESSAGES, functions=[]), "functions is not implemented: give tools"),
        (lambda m: m.create_chat_completion(MESSAGES, tools=[], tool_choice="none"), "tool_choice"),
    ],
)
def test_a_refused_argument_is_named(llama: Llama, call: Callable[[Llama], object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        call(llama)


def test_what_does_not_fit_is_refused(llama: Llama) -> None:
    with pytest.raises(ContextLengthError, match=r"300.*256"):
        llama.create_completion([5] * 300)


@pytest.mark.parametrize("name", sorted(_NOT_HERE))
def test_what_is_not_implemented_says_so(llama: Llama, name: str) -> None:
    with pytest.raises(AttributeError, match=f"Llama.{name} is not implemented: "):
        getattr(llama, name)


def test_a_file_name_chooses_the_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(Llama, "__init__", lambda self, model_path, **_: names.append(model_path))
    for filename in ("*Q4_K_M.gguf", "*q8_0*", "smollm2-135m-instruct-q8_0.gguf", "*.gguf", None):
        Llama.from_pretrained("org/name", filename)
    file = "org/name:smollm2-135m-instruct-q8_0"
    assert names == ["org/name:Q4_K_M", "org/name:q8_0", file, "org/name", "org/name"]
    with pytest.raises(InvalidRequestError, match="filename must be a name, or a pattern"):
        Llama.from_pretrained("org/name", "*q4*k.gguf")
    with pytest.raises(InvalidRequestError, match="local_dir is not implemented: TUILI_HOME"):
        Llama.from_pretrained("org/name", local_dir="/tmp")
