"""Whether two vocabularies are the same, and what is put around a text."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from support.small_model import small_tokenizer
from tuili.text.tokenizer import NamedTokens, Tokenizer


def test_vocabularies_are_the_same_when_every_id_means_the_same() -> None:
    tokenizer = small_tokenizer()
    assert tokenizer.has_vocabulary_of(small_tokenizer())
    for change in (
        lambda backend: backend.add_special_tokens(["a"]),  # the same id, now control
        lambda backend: backend.add_tokens(["aa"]),
    ):
        backend = small_tokenizer()._backend
        change(backend)
        assert not tokenizer.has_vocabulary_of(Tokenizer(backend, tokenizer.names))


@pytest.mark.parametrize("vocabulary", [("a", "b"), ("b", "c"), ("é", "b"), ()])
def test_a_text_is_framed_whatever_letters_the_vocabulary_lacks(vocabulary: tuple[str, ...]) -> None:
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<s>", "</s>"])
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    ours = Tokenizer(backend, NamedTokens())
    for text in ("", "b", "ab", "zz"):
        assert ours.encode(text) == backend.encode(text).ids


@pytest.mark.parametrize(
    "split", [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Metaspace(prepend_scheme="always")]
)
def test_a_word_cut_so_that_it_is_no_control_token_gets_no_space(split: pre_tokenizers.PreTokenizer) -> None:
    """Merging makes the control token of ordinary characters, in the middle of a word."""
    tokens = ["##", "x", "#", "Ġ", "▁"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("#", "#")]))
    backend.pre_tokenizer, backend.decoder = split, decoders.Fuse()
    backend.add_special_tokens(["##"])
    found = [tokens[i] for i in Tokenizer(backend, NamedTokens()).encode("x##x")]
    assert found[0] in "Ġ▁"
    assert found[1:] == ["x", "#", "#", "x"]


@pytest.mark.parametrize("parses", [True, False])
def test_a_long_text_has_the_ids_that_it_would_have_as_a_short_one(
    parses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, text = small_tokenizer(), "hello world, abc " * 400
    ids = tokenizer.encode(text, parse_special=parses)
    rendered = tokenizer.encode_rendered(text)
    monkeypatch.setattr("tuili.text.tokenizer._LONG_CHARS", len(text) + 1)
    assert tokenizer.encode(text, parse_special=parses) == ids
    assert tokenizer.encode_rendered(text) == rendered
