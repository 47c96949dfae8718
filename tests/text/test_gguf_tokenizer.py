"""Tokenizers from arrays: equal to the trainers' own encoders; damaged arrays are refused by name."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.text.gguf_tokenizer import tokenizer_from_gguf
from tuili.text.tokenizer import Tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "größe naïve café 東京 東京都",
    "  x = 12345; // don't",
    "aaa bbb",
] * 9


def _metadata(**changes: Any) -> dict[str, object]:
    """A small byte-level vocabulary."""
    tokens = ["a", "b", "Ġ", "ab", "Ġab", "<s>", "</s>"]
    entries: dict[str, object] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [1, 1, 1, 1, 1, 3, 3],
        "merges": ["a b", "Ġ ab"],
        "bos_token_id": 5,
        "eos_token_id": 6,
    }
    entries |= changes
    return {f"tokenizer.ggml.{key}": value for key, value in entries.items() if value is not None}


def test_small_vocabulary() -> None:
    tokenizer = tokenizer_from_gguf(_metadata())
    assert tokenizer.encode("ab abb<s>") == [3, 4, 1]
    assert tokenizer.encode("ab<s>", parse_special=True) == [3, 5]
    assert tokenizer.decode([5, 3, 4, 6]) == "ab ab"
    assert tokenizer.decode([5, 3, 4, 6], skip_special_tokens=False) == "<s>ab ab</s>"
    assert len(tokenizer) == tokenizer.vocab_size == 7
    assert tokenizer.convert_tokens_to_ids(["ab", "nothing"]) == [3, None]
    assert tokenizer.convert_ids_to_tokens([3, 700]) == ["ab", None]
    assert tokenizer.token_bytes(700) == b""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, r"tokenizer\.ggml\.model: missing"),
        ({"model": 7}, r"tokenizer\.ggml\.model: found int; a string"),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens: missing"),
        ({"tokens": []}, r"tokenizer\.ggml\.tokens: missing or empty"),
        ({"tokens": "abc"}, r"tokenizer\.ggml\.tokens: found str; must be an array"),
        ({"tokens": ["a", 3]}, r"tokenizer\.ggml\.tokens: found int; every token must be a string"),
        ({"tokens": ["a", b"b"]}, r"tokenizer\.ggml\.tokens: found bytes; every token"),
        ({"tokens": ["a", "b", "a"]}, r"tokenizer\.ggml\.tokens: found 'a' twice"),
        ({"tokens": ["a" * 20000]}, r"tokenizer\.ggml\.tokens: found a token of 20000 characters; at most 16384"),
        ({"token_type": [1]}, r"tokenizer\.ggml\.token_type: found 1 entries; one per token is needed, 7"),
        ({"token_type": [1] * 8}, r"tokenizer\.ggml\.token_type: found 8 entries"),
        ({"token_type": ["x"] * 7}, r"tokenizer\.ggml\.token_type: found str; every entry must be a number"),
        ({"token_type": [9] * 7}, r"tokenizer\.ggml\.token_type: found 9; must be in \[1, 6\]"),
        ({"scores": [0.0]}, r"tokenizer\.ggml\.scores: found 1 entries"),
        ({"scores": [None] * 7}, r"tokenizer\.ggml\.scores: found NoneType"),
        ({"merges": None}, r"tokenizer\.ggml\.merges: missing or empty"),
        ({"merges": ["ab"]}, r"tokenizer\.ggml\.merges: found 'ab'; a merge is two tokens"),
        ({"merges": ["a "]}, r"tokenizer\.ggml\.merges: found 'a '; both parts"),
        ({"merges": ["a b ab"]}, r"tokenizer\.ggml\.merges: found 'a b ab'; a merge is two tokens"),
        ({"merges": ["b a"]}, r"tokenizer\.ggml\.merges: found 'b a'; both parts and their union must be tokens"),
        ({"merges": [5]}, r"tokenizer\.ggml\.merges: found int"),
        ({"bos_token_id": 7}, r"tokenizer\.ggml\.bos_token_id: found 7; must be in \[0, 6\]"),
        ({"eos_token_id": -1}, r"tokenizer\.ggml\.eos_token_id: found -1"),
        ({"eos_token_id": "x"}, r"tokenizer\.ggml\.eos_token_id: found 'x'"),
        ({"add_bos_token": 1}, r"tokenizer\.ggml\.add_bos_token: found 1; must be true or false"),
        ({"model": "llama"} | {"merges": None}, r"tokenizer\.ggml\.scores: missing"),
    ],
)
def test_damaged_arrays_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        tokenizer_from_gguf(_metadata(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "rwkv"}, r"tokenizer\.ggml\.model 'rwkv' is not supported; supported are bert, gemma4, gpt2, llama"),
        ({"pre": "brand-new"}, r"tokenizer\.ggml\.pre 'brand-new' is not supported; supported are .*qwen2"),
    ],
)
def test_unknown_names_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        tokenizer_from_gguf(_metadata(**changes))


def _words(**changes: Any) -> dict[str, object]:
    """A small WordPiece vocabulary."""
    tokens = ["[CLS]", "[SEP]", "\u2581a", "b", "[UNK]"]
    kinds = [3, 3, 1, 1, 2]
    fields = {"model": "bert", "tokens": tokens, "token_type": kinds, "merges": None, "bos_token_id": None}
    return _metadata(**fields | {"eos_token_id": None, "cls_token_id": 0, "seperator_token_id": 1} | changes)


def test_unknown_words_have_their_token_whatever_its_type() -> None:
    for changes in ({}, {"token_type": None}, {"token_type": [3, 3, 1, 1, 1]}):
        tokenizer = tokenizer_from_gguf(_words(unknown_token_id=4, **changes))
        assert tokenizer.encode("ab zz", add_special_tokens=False)[-1] == 4


@pytest.mark.parametrize("changes", [{}, {"tokens": ["[CLS]", "[SEP]"], "token_type": [3, 3]}])
def test_word_pieces_need_an_unknown_token(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match=r"unknown_token_id: missing, and \d tokens have no id 100"):
        tokenizer_from_gguf(_words(**changes))


@pytest.fixture(scope="module")
def sentencepiece_pair() -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    """A SentencePiece BPE model trained here, and ours from its pieces and scores."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=420, byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["<think>"], minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(theirs.get_piece_size())
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i)
        else 4 if theirs.id_to_piece(i) == "<think>" else 1
        for i in ids
    ]  # fmt: skip
    metadata = _metadata(
        model="llama", pre="default", merges=None, token_type=kinds, bos_token_id=1, eos_token_id=2,
        unknown_token_id=0, tokens=[theirs.id_to_piece(i) for i in ids], scores=[theirs.get_score(i) for i in ids],
    )  # fmt: skip
    return theirs, tokenizer_from_gguf(metadata)


@given(st.text(alphabet="theqickbrown  größ東京都é\n'5x=;🙂", max_size=60))
@settings(max_examples=300, deadline=None)
def test_ids_equal_sentencepiece(
    sentencepiece_pair: tuple[sentencepiece.SentencePieceProcessor, Tokenizer], text: str
) -> None:
    theirs, ours = sentencepiece_pair
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text)
    assert ours.decode(theirs.encode(text)) == text


def test_sentencepiece_control_is_text_and_user_symbols_are_not(
    sentencepiece_pair: tuple[sentencepiece.SentencePieceProcessor, Tokenizer],
) -> None:
    theirs, ours = sentencepiece_pair
    assert ours.encode("a")[0] == 1
    assert {1, 2}.isdisjoint(ours.encode("<s>a</s>", add_special_tokens=False))
    assert theirs.piece_to_id("<think>") in ours.encode("the<think>quick", add_special_tokens=False)


@pytest.fixture(scope="module")
def byte_level_pair() -> tuple[tokenizers.Tokenizer, Tokenizer]:
    """A byte-level tokenizer trained here, and ours from its vocabulary and merges."""
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator(CORPUS, vocab_size=400, min_frequency=2, show_progress=False)
    state = json.loads(theirs.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    merges = [" ".join(pair) for pair in state["merges"]]
    kinds = [1] * len(tokens)
    ours = tokenizer_from_gguf(
        _metadata(tokens=tokens, token_type=kinds, merges=merges, bos_token_id=None, eos_token_id=None)
    )
    return theirs, ours


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_ids_equal_the_byte_level_trainer(byte_level_pair: tuple[tokenizers.Tokenizer, Tokenizer], text: str) -> None:
    theirs, ours = byte_level_pair
    ids = ours.encode(text, add_special_tokens=False)
    assert ids == theirs.encode(text).ids
    assert ours.decode(ids) == text
    assert b"".join(map(ours.token_bytes, ids)) == text.encode()


def test_saved_tokenizer_is_the_same(tmp_path: Path, smollm2: Tokenizer) -> None:
    smollm2.save(tmp_path / "built")
    loaded = Tokenizer.load(tmp_path / "built")
    assert loaded.names == smollm2.names
    text = "Hello <|im_start|> wörld 123\n\n"
    for parse_special in (False, True):
        assert loaded.encode(text, parse_special=parse_special) == smollm2.encode(text, parse_special=parse_special)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 99}\n{}', "found format 99; 1 is allowed"),
        ("no json", "not a saved tokenizer"),
        ('{"format": 1}\n{}', "not a saved tokenizer"),
        ('{"format": 1, "eos_token_ids": []}\n{}', "not a valid tokenizer.json"),
    ],
)
def test_other_files_are_no_saved_tokenizers(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "built").write_text(content)
    with pytest.raises(ModelFileError, match=message):
        Tokenizer.load(tmp_path / "built")


def test_a_split_marked_only_at_the_start(vocabulary: Callable[[str], Tokenizer]) -> None:
    """Metaspace with prepend_scheme "first": text after a special token gets no word mark."""
    backend = tokenizers.Tokenizer.from_str(vocabulary("llama-spm").to_json())
    backend.normalizer = None
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer = Tokenizer(backend, vocabulary("llama-spm").names)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode_rendered("a</s>a")) == ["▁a", "</s>", "a"]
