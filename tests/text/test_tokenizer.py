"""Whether two vocabularies are the same, and what is put around a text."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models, processors

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
