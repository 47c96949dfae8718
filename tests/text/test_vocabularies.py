"""Every published vocabulary: ids as its test vectors say, and text that survives the way there and back."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from tuili.errors import UnsupportedModelError
from tuili.text.detokenizer import Detokenizer
from tuili.text.gguf_tokenizer import tokenizer_from_gguf
from tuili.text.tokenizer import Tokenizer
from tuili.weights.gguf import GgufFile

WITH_VECTORS = [
    "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm",
    "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip
WITHOUT_VECTORS = ["aquila", "baichuan", "gpt-neox"]
NORMALIZING = {"command-r", "mpt", "qwen2"}


def _vectors(models: Path, name: str) -> list[tuple[str, list[int]]]:
    texts = (models / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = (models / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    return [(text, [int(token_id) for token_id in line.split()]) for text, line in zip(texts, ids, strict=False)]


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_ids_equal_the_published_vectors(
    name: str, vocabulary: Callable[[str], Tokenizer], llama_cpp_models: Path
) -> None:
    tokenizer = vocabulary(name)
    vectors = _vectors(llama_cpp_models, name)
    assert len(vectors) >= 46
    for text, ids in vectors:
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text


@pytest.mark.parametrize("name", WITH_VECTORS + WITHOUT_VECTORS)
def test_text_survives_and_arrives_in_whole_characters(
    name: str, vocabulary: Callable[[str], Tokenizer], llama_cpp_models: Path
) -> None:
    tokenizer = vocabulary(name)
    for text, _ in _vectors(llama_cpp_models, "gpt-2"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        decoded = tokenizer.decode(ids)
        if name != "bert-bge":
            assert decoded == (unicodedata.normalize("NFC", text) if name in NORMALIZING else text)
        detokenizer = Detokenizer(tokenizer)
        pieces = [detokenizer.push(token_id) for token_id in ids] + [detokenizer.flush()]
        assert "".join(pieces) == decoded


@pytest.mark.parametrize("name", WITH_VECTORS + WITHOUT_VECTORS)
def test_special_tokens_in_a_text_are_text(name: str, vocabulary: Callable[[str], Tokenizer]) -> None:
    tokenizer = vocabulary(name)
    special = sorted(tokenizer.special_ids - {tokenizer.names.unk_token_id})
    assert special
    for token_id, token in zip(special[:200], tokenizer.convert_ids_to_tokens(special[:200]), strict=True):
        for text in (f"{token}", f"a{token}b", f" {token} "):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.special_ids.isdisjoint(set(ids) - {tokenizer.names.unk_token_id}), text
        assert token_id in tokenizer.encode(f"{token}", add_special_tokens=False, parse_special=True)


@pytest.mark.parametrize("name", WITH_VECTORS + WITHOUT_VECTORS)
def test_every_end_of_a_generation_is_special(name: str, vocabulary: Callable[[str], Tokenizer]) -> None:
    tokenizer = vocabulary(name)
    assert all(tokenizer.is_special(token_id) for token_id in tokenizer.eos_token_ids)
    if name != "bert-bge":
        assert tokenizer.names.eos_token_id in tokenizer.eos_token_ids


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("llama-bpe", "hi", [128000, 6151]),
        ("llama-spm", "hi", [1, 7251]),
        ("bert-bge", "hi", [101, 7632, 102]),
        ("gemma-4", "hi", [2, 2202]),
        ("qwen2", "hi", [6023]),
        ("command-r", "hi", [5, 5649]),
    ],
)
def test_what_is_put_around_a_text(
    name: str, text: str, ids: list[int], vocabulary: Callable[[str], Tokenizer]
) -> None:
    tokenizer = vocabulary(name)
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode(text, parse_special=True) == ids


def test_turn_ends_are_found(vocabulary: Callable[[str], Tokenizer], smollm2: Tokenizer) -> None:
    assert vocabulary("llama-bpe").convert_ids_to_tokens(vocabulary("llama-bpe").eos_token_ids) == [
        "<|end_of_text|>",
        "<|eot_id|>",
    ]
    assert smollm2.convert_ids_to_tokens(smollm2.eos_token_ids) == ["<|im_end|>", "<|endoftext|>"]
    assert vocabulary("phi-3").convert_ids_to_tokens(vocabulary("phi-3").eos_token_ids) == ["<|endoftext|>", "<|end|>"]


@pytest.mark.no_cover
def test_gemma3_merges_by_score_as_gemma4_merges_by_list(
    vocabulary: Callable[[str], Tokenizer], gemma3_gguf: Path, llama_cpp_models: Path
) -> None:
    by_score = tokenizer_from_gguf(GgufFile(gemma3_gguf).metadata)
    by_list = vocabulary("gemma-4")
    for text, _ in _vectors(llama_cpp_models, "gpt-2"):
        tokens = by_list.convert_ids_to_tokens(by_list.encode(text, add_special_tokens=False))
        ours = by_score.convert_ids_to_tokens(by_score.encode(text, add_special_tokens=False))
        assert [f"{token}".replace(" ", "▁") for token in ours] == tokens


def test_unigram_vocabularies_are_refused_by_name(llama_cpp_models: Path) -> None:
    metadata = GgufFile(llama_cpp_models / "ggml-vocab-nomic-bert-moe.gguf").metadata
    with pytest.raises(UnsupportedModelError, match=r"model 't5' is not supported; supported are bert"):
        tokenizer_from_gguf(metadata)
