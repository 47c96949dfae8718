"""Text to token ids and back. Knows ids and marks of trust; knows neither files nor chat templates.

A special token is control: text from outside never becomes one. Inside such text its characters are
encoded as the ordinary characters they are.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import tokenizers

from tuili.errors import InvalidRequestError, ModelFileError
from tuili.text.prompt_text import PromptText
from tuili.text.token_pieces import read_piece_rules

FORMAT_VERSION = 1
_LONG_CHARS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedTokens:
    """The ids a model's files give a role. eos_token_ids ends a turn or a text: generation stops at any of them."""

    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    unk_token_id: int | None = None
    sep_token_id: int | None = None
    cls_token_id: int | None = None
    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()


class Tokenizer:
    """A vocabulary with its rules. Immutable once built; may be used from any thread.

    `backend` is a configured `tokenizers.Tokenizer`; it is not changed.
    Raises UnsupportedModelError for a decoder that is not supported.
    """

    def __init__(self, backend: tokenizers.Tokenizer, names: NamedTokens) -> None:
        self._backend = backend
        self._text_backend = _without_special(backend, backend.pre_tokenizer)
        self._inner_backend = _without_word_start(backend) or self._text_backend
        self.names = names
        added = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._special = {token_id: token for token_id, token in added.items() if token.special}
        self._special_ids = frozenset(self._special)
        self._size = backend.get_vocab_size(with_added_tokens=True)
        self._rules = read_piece_rules(backend.decoder.__getstate__() if backend.decoder else None)
        self._pieces: dict[int, bytes] = {}
        self._texts: dict[int, str | None] = {}

    def __len__(self) -> int:
        return self._size

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._size

    def has_vocabulary_of(self, other: Tokenizer) -> bool:
        """Whether every id means the same token to both."""
        return self._backend.get_vocab() == other._backend.get_vocab() and self._special_ids == other._special_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens."""
        return self._special_ids

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generation."""
        return self.names.eos_token_ids

    @property
    def leading_spaces_dropped(self) -> int:
        """How many spaces decoding drops from the start of a text (SentencePiece's word marker)."""
        return self._rules.leading_spaces_dropped

    def is_special(self, token_id: int) -> bool:
        """Whether the token is control."""
        return token_id in self._special_ids

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        """Ids of a text. Special tokens written in it are text unless parse_special.

        Raises InvalidRequestError when the text is not Unicode (lone surrogates).
        """
        text = _checked(text)
        if parse_special:
            return _ids(self._backend, text, add_special_tokens=add_special_tokens)
        ids = self._encode_text(self._text_backend, text)
        if not add_special_tokens:
            return ids
        prefix, suffix = self._frame
        return [*prefix, *ids, *suffix]

    def encode_rendered(self, prompt: str) -> list[int]:
        """Ids of a rendered chat template.

        Special tokens count only where the template itself wrote every character of them. Nothing is added
        at either end. Without special tokens in untrusted spans these are the ids Hugging Face gives.
        """
        prompt = PromptText.of(_checked(prompt))
        encoding = _encoded(self._backend, prompt.plain())
        if prompt.untrusted and _any_overlap(self._special_spans(encoding, prompt), prompt.untrusted):
            return self._encode_guarded(prompt)
        ids: list[int] = encoding.ids
        return ids

    def _special_spans(self, encoding: tokenizers.Encoding, text: str) -> list[tuple[int, int]]:
        """Where the text spells a special token and the encoding has that token."""
        ids = encoding.ids
        if self._special_ids.isdisjoint(ids):
            return []
        return [
            (start, stop)
            for token_id, (start, stop) in zip(ids, encoding.offsets, strict=True)
            if token_id in self._special and self._special[token_id].content in text[start:stop]
        ]

    def _encode_guarded(self, prompt: PromptText) -> list[int]:
        """Special tokens are looked for in the trusted stretches alone; the text between them is encoded whole."""
        ids: list[int] = []
        position, text = 0, prompt.plain()
        for start, stop, token_id in self._trusted_special(prompt):
            ids += self._encode_between(text, position, start)
            ids.append(token_id)
            position = stop
        return ids + self._encode_between(text, position, len(text))

    def _encode_between(self, text: str, start: int, stop: int) -> list[int]:
        backend = self._inner_backend if start else self._text_backend
        return self._encode_text(backend, text[start:stop]) if start < stop else []

    def _encode_text(self, backend: tokenizers.Tokenizer, text: str) -> list[int]:
        """Encodes text and takes apart any special token that merging made of ordinary characters."""
        ids = _ids(backend, text)
        made = [] if self._special_ids.isdisjoint(ids) else self._special_spans(_encoded(backend, text), text)
        if not made:
            return ids
        start, stop = made[0]
        cut = start + 1
        if stop - start == 1:
            raise ModelFileError(f"tokenizer: the character {text[start:stop]!r} is itself a special token")
        return self._encode_text(backend, text[:cut]) + self._encode_text(self._cut_backend, text[cut:])

    @cached_property
    def _cut_backend(self) -> tokenizers.Tokenizer:
        """For what stands behind a cut through a word."""
        return _without_word_start(self._backend, ("first", "always")) or self._inner_backend

    def _trusted_special(self, prompt: PromptText) -> Iterable[tuple[int, int, int]]:
        """Special tokens in trusted stretches: start and stop with the whitespace they take, and id."""
        if self._special_pattern is None:
            return
        text = prompt.plain()
        for first, last in prompt.trusted():
            for match in self._special_pattern.finditer(text, first, last):
                token_id = self._special_by_content[match[0]]
                start, stop = match.span()
                if self._special[token_id].lstrip:
                    start = len(text[:start].rstrip())
                if self._special[token_id].rstrip:
                    stop = len(text) - len(text[stop:].lstrip())
                yield start, stop, token_id

    @cached_property
    def _special_by_content(self) -> dict[str, int]:
        return {token.content: token_id for token_id, token in self._special.items()}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        contents = sorted(self._special_by_content, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, contents))) if contents else None

    def spelled_special(self, text: str) -> str | None:
        """The first special token whose characters stand in a text."""
        found = None if self._special_pattern is None else self._special_pattern.search(text)
        return None if found is None else found[0]

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids the model's files put around a text."""
        probes = itertools.chain(("a",), (self.decode([token_id]) for token_id in range(self._size)))
        for probe in probes:
            marker = self._backend.encode(probe, add_special_tokens=False).ids
            if marker and self._special_ids.isdisjoint(marker):
                break
        else:  # no text has a token
            return self._backend.encode("").ids, []
        framed = self._backend.encode(probe).ids
        start = next((i for i in range(len(framed)) if framed[i : i + len(marker)] == marker), None)
        if start is None:
            raise ModelFileError(f"tokenizer: the tokens of {probe!a:.40} are others with those around a text")
        return framed[:start], framed[start + len(marker) :]

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text; empty for an id beyond the vocabulary (padding of the model's head)."""
        piece = self._pieces.get(token_id)
        if piece is None:
            token = self._added.get(token_id) or self._id_to_token(token_id)
            piece = b"" if token is None else self._rules.piece(token, is_added=token_id in self._added)
            self._pieces[token_id] = piece
        return piece

    def token_text(self, token_id: int) -> str | None:
        """The token's bytes as text, if they are whole characters; else None: its neighbours decide."""
        try:
            return self._texts[token_id]
        except KeyError:
            text = self._texts[token_id] = _utf8_or_none(self.token_bytes(token_id))
            return text

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids. Bytes that are not UTF-8 become U+FFFD."""
        special = self._special_ids if skip_special_tokens else frozenset()
        data = b"".join([self.token_bytes(token_id) for token_id in ids if token_id not in special])
        for _ in range(self._rules.leading_spaces_dropped):
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")

    def _id_to_token(self, token_id: int) -> str | None:
        if token_id < 0:
            raise InvalidRequestError(f"token id must be >= 0, got {token_id}", param="token_ids")
        return self._backend.id_to_token(token_id) if token_id < 1 << 32 else None

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """The vocabulary's own strings; None beyond the vocabulary."""
        return [self._id_to_token(token_id) for token_id in ids]

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary string, None for a string that is no token."""
        return self._backend.token_to_id(token)

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int | None]:
        """Ids of vocabulary strings; the unknown token's id, or None without one, for other strings."""
        return [self._or_unknown(self._backend.token_to_id(token)) for token in tokens]

    def _or_unknown(self, token_id: int | None) -> int | None:
        return self.names.unk_token_id if token_id is None else token_id

    def to_json(self) -> str:
        """The tokenizer as a tokenizer.json."""
        return self._backend.to_str()

    def save(self, path: Path) -> None:
        """Writes one file that `load` reads: a line with the named ids, then a tokenizer.json."""
        header = json.dumps({"format": FORMAT_VERSION, **asdict(self.names)})
        path.write_text(f"{header}\n{self.to_json()}", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads what `save` wrote. Raises ModelFileError for any other content or format version."""
        header, _, body = path.read_text(encoding="utf-8").partition("\n")
        try:
            fields = json.loads(header)
            version = fields.pop("format")
            if version != FORMAT_VERSION:
                raise ModelFileError(f"{path.name}: found format {version!r}; {FORMAT_VERSION} is allowed")
            names = NamedTokens(**{**fields, "eos_token_ids": tuple(fields["eos_token_ids"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ModelFileError):
                raise
            raise ModelFileError(f"{path.name}: not a saved tokenizer: {error}") from error
        return cls(parse_tokenizer_json(body, path.name), names)


def _encoded(backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool = False) -> tokenizers.Encoding:
    """Of a long text as a batch of one: only then does the library let other threads run meanwhile."""
    if len(text) < _LONG_CHARS:
        return backend.encode(text, add_special_tokens=add_special_tokens)
    return backend.encode_batch([text], add_special_tokens=add_special_tokens)[0]


def _ids(backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Of a long text without remembering where each token stands, which takes time and hundreds of bytes a token."""
    if len(text) < _LONG_CHARS:
        encoding = backend.encode(text, add_special_tokens=add_special_tokens)
    else:
        encoding = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
    ids: list[int] = encoding.ids
    return ids


def parse_tokenizer_json(text: str, file: str) -> tokenizers.Tokenizer:
    """Raises ModelFileError naming the file and what the reader found wrong."""
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more precise
        raise ModelFileError(f"{file}: not a valid tokenizer.json: {error}") from error


def _utf8_or_none(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise InvalidRequestError(f"text must be a string, got {type(text).__name__}", param="prompt")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"{text[error.start]!r} at {error.start}"
            raise InvalidRequestError(f"text must be Unicode, found a lone surrogate {found}", param="prompt") from None
    return text


def _any_overlap(spans: Iterable[tuple[int, int]], others: Sequence[tuple[int, int]]) -> bool:
    """Whether any of `spans` meets any of `others`; both ascend."""
    i = 0
    for start, stop in spans:
        while i < len(others) and others[i][1] <= start:
            i += 1
        if i < len(others) and others[i][0] < stop:
            return True
    return False


def _without_special(
    backend: tokenizers.Tokenizer, pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer | None
) -> tokenizers.Tokenizer:
    """The same tokenizer, sharing its model, for which special tokens are ordinary text."""
    other = tokenizers.Tokenizer(backend.model)
    other.normalizer, other.pre_tokenizer = backend.normalizer, pre_tokenizer
    added = backend.get_added_tokens_decoder()
    other.add_tokens([added[token_id] for token_id in sorted(added)])
    if other.get_added_tokens_decoder().keys() != added.keys():
        raise ModelFileError("tokenizer.json: the ids of added_tokens leave gaps")
    other.encode_special_tokens = True
    return other


def _without_word_start(
    backend: tokenizers.Tokenizer, schemes: Sequence[str] = ("first",)
) -> tokenizers.Tokenizer | None:
    """As `_without_special`, for text that does not begin a prompt, where the split marks that place; else None.

    With the scheme "always" text goes on in the middle of a word: no split marks a word's start there.
    """
    if backend.pre_tokenizer is None:
        return None
    state = json.loads(backend.pre_tokenizer.__getstate__())
    is_changed = False
    for step in state["pretokenizers"] if state["type"] == "Sequence" else [state]:
        if step["type"] == "Metaspace" and step["prepend_scheme"] in schemes:
            step["prepend_scheme"], is_changed = "never", True
        if step["type"] == "ByteLevel" and step["add_prefix_space"] and "always" in schemes:
            step["add_prefix_space"], is_changed = False, True
    if not is_changed:
        return None
    shell = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": state}
    return _without_special(backend, tokenizers.Tokenizer.from_str(json.dumps(shell)).pre_tokenizer)
