"""Hugging Face's names: calls, padding, files on disk; what is not supported is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuili.errors import InvalidRequestError, ModelFileError, ModelNotFoundError, UnsupportedModelError
from tuili.text.directory_tokenizer import tokenizer_from_directory
from tuili.text.pretrained import PretrainedTokenizer
from tuili.text.template_source import templates_from_directory, templates_from_gguf


@pytest.fixture(scope="module")
def smol(smollm2_gguf: Path) -> PretrainedTokenizer:
    return PretrainedTokenizer.from_pretrained(smollm2_gguf)


@pytest.fixture
def folder(smol: PretrainedTokenizer, tmp_path: Path) -> Path:
    smol.save_pretrained(tmp_path)
    return tmp_path


def test_names(smol: PretrainedTokenizer) -> None:
    assert (smol.bos_token, smol.bos_token_id) == ("<|im_start|>", 1)
    assert (smol.eos_token, smol.eos_token_id) == ("<|im_end|>", 2)
    assert (smol.pad_token, smol.pad_token_id) == ("<|im_end|>", 2)
    assert len(smol) == smol.vocab_size == 49152
    assert smol.chat_template is not None
    assert smol.convert_tokens_to_ids("<|im_end|>") == 2
    assert smol.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"]) == [2, 1]
    assert smol.convert_ids_to_tokens([2]) == ["<|im_end|>"]
    assert smol.convert_ids_to_tokens(2) == "<|im_end|>"


def test_calls(smol: PretrainedTokenizer) -> None:
    one, two = smol.encode("Hello"), smol.encode("Hello there, you")
    assert smol("Hello") == {"input_ids": one, "attention_mask": [1] * len(one)}
    assert smol(["Hello", "Hello there, you"])["input_ids"] == [one, two]
    missing = len(two) - len(one)
    padded = smol(["Hello", "Hello there, you"], padding=True)
    assert padded["input_ids"][0] == one + [2] * missing
    assert padded["attention_mask"][0] == [1] * len(one) + [0] * missing
    assert smol(["Hello", "Hello there, you"], padding=True, padding_side="left")["input_ids"][0] == [2] * missing + one
    arrays = smol(["Hello", "Hello there, you"], padding=True, return_tensors="np")
    assert arrays["input_ids"].dtype == np.int64
    assert arrays["input_ids"].shape == arrays["attention_mask"].shape == (2, len(two))
    assert smol("Hello there, you", truncation=True, max_length=2)["input_ids"] == two[:2]
    assert smol("Hello", padding="max_length", max_length=4)["attention_mask"] == [1] * len(one) + [0] * (4 - len(one))
    assert smol.batch_decode([one, two]) == ["Hello", "Hello there, you"]
    assert smol.decode([1, *one]) == "<|im_start|>Hello"
    assert smol.decode([1, *one], skip_special_tokens=True) == "Hello"
    assert smol.decode(one[0]) == "Hello"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"return_tensors": "pt"}, "return_tensors must be 'np' or None, got 'pt'"),
        ({"padding": "both"}, "padding must be true, false, 'longest' or 'max_length'"),
        ({"padding": "max_length"}, "padding='max_length' needs max_length"),
        ({"truncation": True}, "truncation needs max_length"),
        ({"truncation": True, "max_length": 0}, "max_length must be an integer >= 1, got 0"),
        ({"return_tensors": "np"}, "rows of one length"),
    ],
)
def test_bad_calls(smol: PretrainedTokenizer, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        smol(["Hello", "Hello there, you"], **arguments)


def test_lone_surrogates_are_refused(smol: PretrainedTokenizer) -> None:
    with pytest.raises(InvalidRequestError, match=r"found a lone surrogate '\\ud800' at 1"):
        smol.encode("a\ud800")


def test_negative_ids_are_refused(smol: PretrainedTokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="token id must be >= 0, got -1"):
        smol.decode([-1])


def test_directory_equals_gguf(smol: PretrainedTokenizer, folder: Path) -> None:
    loaded = PretrainedTokenizer.from_pretrained(folder)
    assert loaded.tokenizer.names == smol.tokenizer.names
    assert loaded.chat_template == smol.chat_template
    messages = [{"role": "user", "content": "Hi <|im_end|>"}]
    assert loaded.apply_chat_template(messages) == smol.apply_chat_template(messages)
    assert loaded.encode("Hello <|im_end|> 12") == smol.encode("Hello <|im_end|> 12")


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nothing: neither a model directory nor a GGUF file"):
        PretrainedTokenizer.from_pretrained(tmp_path / "nothing")


def test_a_model_without_a_template(smol: PretrainedTokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="no chat template"):
        PretrainedTokenizer(smol.tokenizer).apply_chat_template([])


def _change(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def test_tokens_only_the_config_lists_are_added(folder: Path) -> None:
    added = {"49152": {"content": "<think>", "special": False}, "49153": {"content": "<|tool|>", "special": True}}
    _change(folder, "tokenizer_config.json", added_tokens_decoder=added)
    tokenizer = tokenizer_from_directory(folder)
    assert 49152 in tokenizer.encode("a<think>b")
    assert 49153 not in tokenizer.encode("a<|tool|>b")
    assert 49153 in tokenizer.encode("a<|tool|>b", parse_special=True)
    assert len(tokenizer) == 49154


def test_generation_config_names_the_ends(folder: Path) -> None:
    _change(folder, "generation_config.json", eos_token_id=[0, 2])
    assert tokenizer_from_directory(folder).eos_token_ids == (2, 0)
    (folder / "generation_config.json").unlink()
    _change(folder, "config.json", eos_token_id=0)
    assert tokenizer_from_directory(folder).eos_token_ids == (2, 0)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("tokenizer_config.json", {"bos_token": 5}, "bos_token: found int, a string is needed"),
        (
            "tokenizer_config.json",
            {"bos_token": "nowhere"},
            "bos_token: found 'nowhere', which is not in the vocabulary",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder must map ids to objects"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9": {}}}, "added_tokens_decoder.9.content must be"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9": {"content": "<|im_end|>"}}},
            "has id 9, tokenizer.json has 2",
        ),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id: found 'x', ids are needed"),
        ("tokenizer.json", {"model": 5}, "tokenizer.json: not a valid tokenizer.json"),
    ],
)
def test_damaged_directories(folder: Path, file: str, changes: dict[str, Any], message: str) -> None:
    _change(folder, file, **changes)
    with pytest.raises(ModelFileError, match=message):
        tokenizer_from_directory(folder)


def test_files_that_are_no_json(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"generation_config.json: not JSON"):
        tokenizer_from_directory(folder)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(ModelFileError, match=r"generation_config.json: found list, an object is needed"):
        tokenizer_from_directory(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no tokenizer.json"):
        tokenizer_from_directory(folder)


def test_where_templates_are_found(tmp_path: Path) -> None:
    assert templates_from_directory(tmp_path) == {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "one"}))
    assert templates_from_directory(tmp_path) == {"default": "one"}
    named = [{"name": "default", "template": "two"}, {"name": "rag", "template": "three"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert templates_from_directory(tmp_path) == {"default": "two", "rag": "three"}
    (tmp_path / "chat_template.jinja").write_text("four")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("five")
    assert templates_from_directory(tmp_path) == {"default": "four", "tool_use": "five"}
    metadata = {"tokenizer.chat_template": "a", "tokenizer.chat_template.rag": "b", "tokenizer.chat_templates": ["rag"]}
    assert templates_from_gguf(metadata) == {"default": "a", "rag": "b"}


@pytest.mark.parametrize("value", [5, [5], [{"name": "x"}], [{"template": "x"}]])
def test_damaged_templates(tmp_path: Path, value: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(ModelFileError, match=r"tokenizer_config.json: chat_template"):
        templates_from_directory(tmp_path)
