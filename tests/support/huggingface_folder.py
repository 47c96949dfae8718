"""A folder as transformers writes one: a tiny random model, and a byte-level tokenizer trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from support import tiny_models

CORPUS = ["the quick brown fox jumps over the lazy dog", "größe naïve café 東京", "one two three four five six"] * 8
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def save(path: Path, model_type: str, **config: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Writes the folder; config are changes to tiny_models.SIZES."""
    tokenizer = _tokenizer()
    model = tiny_models.build(model_type, vocab_size=len(tokenizer), **config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model, tokenizer


def _tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast
