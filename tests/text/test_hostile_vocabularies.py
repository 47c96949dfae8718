"""Tiny tokenizers trained at random, of every kind: the library's ids, its text, and the text back."""

from __future__ import annotations

import json
import os
import random

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tuili.text.tokenizer import NamedTokens, Tokenizer

from .test_hostile_text import odd_text

pytestmark = pytest.mark.no_cover  # the same lines thousands of times: to count them doubles the time

NUM_TOKENIZERS = int(os.environ.get("TUILI_HOSTILE_VOCABULARIES", "6"))
NUM_TEXTS = 40
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_end|>", "[CLS]", "##")
WORDS = (
    "the",
    "there",
    "hell",
    "hello",
    "größe",
    "東京",
    "東",
    "\u0301e",
    "🙂",
    "12",
    "123",
    "'s",
    "\n\n",
    "  ",
    "▁",
    "Ġ",
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
Chooser = random.Random


def corpus(chooser: Chooser) -> list[str]:
    lines = []
    for _ in range(30):
        words = [chooser.choice((chooser.choice(WORDS), odd_text(chooser)[:4])) for _ in range(chooser.randrange(1, 9))]
        lines.append(chooser.choice(("", " ")).join(words))
    return lines


def _trained(backend: tokenizers.Tokenizer, trainer: object, chooser: Chooser) -> tokenizers.Tokenizer:
    backend.train_from_iterator(corpus(chooser), trainer)
    return backend


def _size(chooser: Chooser) -> int:
    return chooser.choice((20, 60, 300, 600))


def byte_level_bpe(chooser: Chooser) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=chooser.random() < 0.3))
    has_pattern = chooser.random() < 0.7
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=chooser.random() < 0.3, use_regex=has_pattern)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + _size(chooser), initial_alphabet=alphabet, special_tokens=list(SPECIAL), show_progress=False
    )
    return _trained(backend, trainer, chooser)


def sentencepiece_bpe(chooser: Chooser) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=chooser.random() < 0.5, byte_fallback=True))
    trainer = trainers.BpeTrainer(vocab_size=1 + _size(chooser), special_tokens=["<unk>"], show_progress=False)
    state = json.loads(_trained(_metaspace(backend, chooser), trainer, chooser).to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {byte: len(vocabulary) + i for i, byte in enumerate(BYTES)}
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def unigram(chooser: Chooser) -> tokenizers.Tokenizer:
    """Pieces of a text with scores by chance, ties among them."""
    text = "▁".join(corpus(chooser)).replace(" ", "▁")
    starts = [chooser.randrange(len(text)) for _ in range(_size(chooser))]
    pieces = dict.fromkeys(text[start : start + chooser.randrange(1, 7)] for start in starts)
    scored = [(piece, -float(chooser.randrange(1, 9))) for piece in pieces]
    vocabulary = [("<unk>", 0.0), ("▁", -5.0), *((byte, -20.0) for byte in BYTES), *scored]
    return _metaspace(tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True)), chooser)


def _metaspace(backend: tokenizers.Tokenizer, chooser: Chooser) -> tokenizers.Tokenizer:
    """A word's start as a character, and bytes for what no piece has."""
    scheme = chooser.choice(("always", "never"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=chooser.random() < 0.5)
    strip = [decoders.Strip(" ", 1, 0)] if scheme == "always" else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def wordpiece(chooser: Chooser) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=chooser.random() < 0.5)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=_size(chooser), special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    return _trained(backend, trainer, chooser)


KINDS = {kind.__name__: kind for kind in (byte_level_bpe, sentencepiece_bpe, unigram, wordpiece)}


@pytest.mark.parametrize("kind", KINDS)
def test_random_vocabularies_have_the_librarys_ids_and_texts(kind: str) -> None:
    """As the library does with control tokens written out as text; every kind with bytes gives the text back."""
    chooser = random.Random(f"{kind} {os.environ.get('TUILI_HOSTILE_SEED', '1')}")
    for _ in range(NUM_TOKENIZERS):
        theirs = KINDS[kind](chooser)
        ours = Tokenizer(theirs, NamedTokens())
        theirs.encode_special_tokens = True
        control = {id for id in ours.special_ids if theirs.id_to_token(id) not in ("<unk>", "[UNK]")}
        for _ in range(NUM_TEXTS):
            text = odd_text(chooser) if chooser.random() < 0.7 else chooser.choice(corpus(chooser))
            ids = ours.encode(text, add_special_tokens=False)
            expected = theirs.encode(text, add_special_tokens=False).ids
            if ours.special_ids.isdisjoint(expected):  # whole words are looked up: for the library, control ones too
                assert ids == expected, (text, theirs.to_str())
            assert control.isdisjoint(ids), (text, theirs.to_str())
            decoded = ours.decode(ids, skip_special_tokens=False)
            assert decoded == theirs.decode(ids, skip_special_tokens=False), (text, theirs.to_str())
            if kind != "wordpiece" and "▁" not in text and "<0x" not in text:
                assert decoded.lstrip(" ") == text.lstrip(" "), (text, theirs.to_str())
