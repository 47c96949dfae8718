"""A model that starts in no time: a real pipeline and engine over the fake backend, with a tokenizer of 61 letters."""

from __future__ import annotations

import string
from types import SimpleNamespace
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from support.fake_backend import VOCAB, FakeBackend
from tuili.config import EngineConfig
from tuili.engine.engine import Engine
from tuili.engine.loop import EngineLoop
from tuili.runtime.front.front import Front
from tuili.runtime.loading.pipeline import Pipeline
from tuili.text.chat_template import ChatTemplate
from tuili.text.tokenizer import NamedTokens, Tokenizer

TEMPLATE = "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"


def small_tokenizer() -> Tokenizer:
    """Letters, spaces (Ġ) and some digits; other characters are dropped."""
    letters = f"{string.ascii_letters}Ġ01234567"
    assert len(letters) == VOCAB
    backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, NamedTokens())


def small_front(*, template: str | None = TEMPLATE, max_model_len: int = 128, **changes: Any) -> Front:
    """The text side; `z` and `Z` end an answer."""
    fields: dict[str, Any] = {
        "name": "small",
        "vocab_size": VOCAB,
        "tokenizer": small_tokenizer(),
        "eos_token_ids": (25, 51),
        "chat_template": None if template is None else ChatTemplate(template),
        "max_model_len": max_model_len,
        "default_sampling": {"temperature": 1.0, "max_tokens": 8},
    }
    return Front(**fields | changes)


def small_model(
    backend: FakeBackend | None = None, *, template: str | None = TEMPLATE, max_model_len: int = 128, **changes: Any
) -> Pipeline:
    """A pipeline over a small front, which `changes` are of."""
    backend = backend or FakeBackend()
    config = EngineConfig(max_model_len=max_model_len, max_num_seqs=4, block_size=16, max_num_batched_tokens=64)
    return Pipeline(
        front=small_front(template=template, max_model_len=max_model_len, **changes),
        spec=SimpleNamespace(vocab_size=VOCAB, family="llama"),  # type: ignore[arg-type]
        backend=backend,
        loop=EngineLoop(Engine(backend, config)),
        max_num_seqs=config.max_num_seqs,
        load_s=0.0,
    )
