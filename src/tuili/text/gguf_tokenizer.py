"""Builds a tokenizer from GGUF metadata. Knows what each `tokenizer.ggml.model` means; opens no file.

Source: the vocabularies llama.cpp publishes with their test vectors, and the tokenizer.json each came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.text.pre_tokenizers import find_recipe
from tuili.text.tokenizer import NamedTokens, Tokenizer
from tuili.text.vocabulary import (
    BYTE,
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Merges,
    Vocabulary,
    read_flag,
    read_name,
    read_vocabulary,
    refuse_merges,
)

WORD_START = "▁"

# GGUF names one end; the chat formats in use end their turns with these.
_ENDINGS = frozenset(
    {
        "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>", "<|call|>",
        "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|EOT|>", "<EOT>", "[EOT]", "<|user_end|>",
        "<|END_OF_TURN_TOKEN|>", "<end_of_utterance>",
    }
)  # fmt: skip


def tokenizer_from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """Builds the tokenizer a GGUF file describes.

    Raises ModelFileError when its arrays contradict each other, UnsupportedModelError naming a tokenizer
    model or pre-tokenizer that is not implemented.
    """
    kind = read_name(metadata, "model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece, "gemma4": _sentencepiece, "bert": _wordpiece}
    if kind not in builders:
        raise UnsupportedModelError(
            f"tokenizer.ggml.model {kind!r} is not supported; supported are {', '.join(sorted(builders))}"
        )
    vocabulary = read_vocabulary(metadata)
    names = _names(vocabulary, kind)
    backend = builders[kind](metadata, vocabulary)
    _add_tokens(backend, vocabulary, names, rstrip=_takes_following_space(metadata, kind))
    _frame(backend, metadata, vocabulary, names, kind)
    return Tokenizer(backend, names)


def _vocab(vocabulary: Vocabulary) -> dict[str, int]:
    return dict(zip(vocabulary.tokens, range(len(vocabulary.tokens)), strict=True))


def _bpe(vocabulary: Vocabulary, merges: Merges, **options: Any) -> models.BPE:
    try:
        return models.BPE(vocab=_vocab(vocabulary), merges=merges, **options)
    except Exception:  # the library looks every merge up and raises nothing more precise
        refuse_merges(vocabulary)


def _byte_level(metadata: Mapping[str, object], vocabulary: Vocabulary) -> Backend:
    recipe = find_recipe(read_name(metadata, "pre", "default"))
    if not vocabulary.merges:
        raise ModelFileError("tokenizer.ggml.merges: missing or empty; a byte-level vocabulary needs merges")
    backend = Backend(_bpe(vocabulary, vocabulary.merges, ignore_merges=recipe.ignore_merges))
    if recipe.nfc:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in recipe.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: Mapping[str, object], vocabulary: Vocabulary) -> Backend:
    """SentencePiece BPE: spaces are word marks, characters outside the vocabulary fall back to byte tokens."""
    merges = vocabulary.merges or _merges_by_score(vocabulary)
    has_bytes = BYTE in vocabulary.types
    unknown = vocabulary.tokens[vocabulary.ids.get("unknown", 0)]
    backend = Backend(_bpe(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes))
    has_prefix = read_flag(metadata, "add_space_prefix", read_name(metadata, "model") == "llama")
    mark = normalizers.Replace(" ", WORD_START)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_START), mark]) if has_prefix else mark
    steps = [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    return backend


def _merges_by_score(vocabulary: Vocabulary) -> Merges:
    """The merges SentencePiece's scores imply: the best-scored union first, from every pair that makes it.

    Control, unknown and byte tokens are never made by merging.
    """
    if not vocabulary.scores:
        raise ModelFileError("tokenizer.ggml.scores: missing; a vocabulary without merges needs scores")
    known = set(vocabulary.tokens)
    closed = {vocabulary.tokens[i] for i in vocabulary.ids_of_type(CONTROL, UNKNOWN, BYTE)}
    by_score = sorted(range(len(vocabulary.tokens)), key=vocabulary.scores.__getitem__, reverse=True)
    return [
        (token[:cut], token[cut:])
        for token in map(vocabulary.tokens.__getitem__, by_score)
        if token not in closed
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in known and token[cut:] in known
    ]


def _wordpiece(metadata: Mapping[str, object], vocabulary: Vocabulary) -> Backend:
    """BERT's WordPiece. GGUF marks the tokens that begin a word, BERT those that do not."""
    control = set(vocabulary.ids_of_type(CONTROL, UNKNOWN))
    vocab = {
        token.removeprefix(WORD_START) if i in control or token.startswith(WORD_START) else f"##{token}": i
        for i, token in enumerate(vocabulary.tokens)
    }
    if len(vocab) != len(vocabulary.tokens):
        raise ModelFileError("tokenizer.ggml.tokens: two tokens differ only in their word mark")
    unknown_id = vocabulary.ids.get("unknown", 100)
    if unknown_id >= len(vocab):
        found = f"missing, and {len(vocab)} tokens have no id {unknown_id}"
        raise ModelFileError(f"tokenizer.ggml.unknown_token_id: {found}; one is needed")
    unknown = list(vocab)[unknown_id]
    lowercase = read_flag(metadata, "normalizer.lowercase", True)
    backend = Backend(models.WordPiece(vocab=vocab, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=read_flag(metadata, "normalizer.strip_accents", lowercase)
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _names(vocabulary: Vocabulary, kind: str) -> NamedTokens:
    ids = dict(vocabulary.ids)
    if kind == "llama":  # what a file that leaves them out means
        defaults = {"bos": 1, "eos": 2, "unknown": 0}
        ids = {name: i for name, i in defaults.items() if i < len(vocabulary.tokens)} | ids
    return NamedTokens(
        bos_token_id=ids.get("bos", ids.get("cls") if kind == "bert" else None),
        eos_token_id=ids.get("eos"),
        pad_token_id=ids.get("padding"),
        unk_token_id=ids.get("unknown"),
        sep_token_id=ids.get("seperator"),
        cls_token_id=ids.get("cls"),
        mask_token_id=ids.get("mask"),
        eos_token_ids=_ending_ids(vocabulary, ids),
    )


def _ending_ids(vocabulary: Vocabulary, ids: Mapping[str, int]) -> tuple[int, ...]:
    written = {vocabulary.tokens[i]: i for i in vocabulary.ids_of_type(CONTROL, USER_DEFINED)}
    endings = {token: i for token, i in written.items() if token in _ENDINGS}
    if {"<|return|>", "<|call|>"} <= endings.keys():
        endings.pop("<|end|>", None)  # ends a message within a turn there
    declared = [ids[name] for name in ("eos", "eot", "eom") if name in ids]
    return tuple(dict.fromkeys([*declared, *sorted(endings.values())]))


def _takes_following_space(metadata: Mapping[str, object], kind: str) -> bool:
    """Phi-3's control tokens swallow the whitespace after them, which GGUF does not record."""
    return kind == "llama" and metadata.get("general.architecture") == "phi3"


def _add_tokens(backend: Backend, vocabulary: Vocabulary, names: NamedTokens, *, rstrip: bool) -> None:
    roles = (names.bos_token_id, names.eos_token_id, names.sep_token_id, names.cls_token_id, names.mask_token_id)
    special = {*vocabulary.ids_of_type(CONTROL, UNKNOWN), *names.eos_token_ids}
    special.update(token_id for token_id in roles if token_id is not None)
    keeps_space = {"<unk>", "<s>", "<|endoftext|>"}
    backend.add_tokens(
        [
            AddedToken(
                vocabulary.tokens[i],
                special=i in special,
                normalized=False,
                rstrip=rstrip and i in special and vocabulary.tokens[i] not in keeps_space,
            )
            for i in sorted({*special, *vocabulary.ids_of_type(USER_DEFINED)})
        ]
    )


def _frame(
    backend: Backend, metadata: Mapping[str, object], vocabulary: Vocabulary, names: NamedTokens, kind: str
) -> None:
    """What is put around a text: bos before, eos or sep after."""
    is_bert = kind == "bert"
    starts = {"llama": True, "gemma4": True, "bert": True}
    add_bos = starts.get(kind) or find_recipe(read_name(metadata, "pre", "default")).add_bos
    before = names.bos_token_id if read_flag(metadata, "add_bos_token", add_bos) else None
    after = names.eos_token_id if read_flag(metadata, "add_eos_token", False) else None
    if is_bert:
        after = names.sep_token_id
    around = {name: i for name, i in (("BEFORE", before), ("AFTER", after)) if i is not None}
    if not around:
        return
    backend.post_processor = processors.TemplateProcessing(
        single=[part for part in ("BEFORE", "$A", "AFTER") if part in around or part == "$A"],
        special_tokens=[{"id": name, "ids": [i], "tokens": [vocabulary.tokens[i]]} for name, i in around.items()],
    )
