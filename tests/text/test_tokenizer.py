"""Whether two vocabularies are the same."""

from __future__ import annotations

from support.small_model import small_tokenizer
from tuili.text.tokenizer import Tokenizer


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
