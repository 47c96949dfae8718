"""What each token contributes to text, as bytes: the decoder of a tokenizer.json, read as data.

Every decoder read here gives a token its bytes whatever stands beside it, except at the very start of the
text. That is what makes incremental detokenization exact. Knows no ids and does no encoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tuili.errors import UnsupportedModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORDPIECE_CLEANUP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where printable, else 256 + its rank among the rest."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(hidden)}


@dataclass(frozen=True, slots=True)
class PieceRules:
    """How the strings of a vocabulary become text."""

    byte_alphabet: Mapping[str, int] | None = None  # byte-level: each character stands for a byte
    byte_fallback: bool = False  # <0x0A> is a byte
    replacements: tuple[tuple[str, str], ...] = ()
    leading_spaces_dropped: int = 0  # at the start of the whole text
    continuation_prefix: str | None = None  # WordPiece: other tokens begin with a space

    def piece(self, token: str, *, is_added: bool) -> bytes:
        """The bytes of a token. Added tokens of a byte-level vocabulary are written as they are."""
        if self.byte_alphabet is not None:
            if not is_added:
                alphabet = self.byte_alphabet
                try:
                    return bytes([alphabet[char] for char in token])
                except KeyError:  # not byte-level after all: padding such as [PAD151936]
                    return token.encode()
            return token.encode()
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if self.continuation_prefix is not None:
            is_continuation = token.startswith(self.continuation_prefix)
            token = token.removeprefix(self.continuation_prefix) if is_continuation else f" {token}"
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode()


def read_piece_rules(decoder_state: bytes | None) -> PieceRules:
    """Reads the JSON of a tokenizer.json's decoder.

    Raises UnsupportedModelError naming the decoder.
    """
    decoder: dict[str, Any] = json.loads(decoder_state) if decoder_state else {"type": "missing"}
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    rules = PieceRules()
    for step in steps:
        rules = _with_step(rules, step)
    return rules


def _with_step(rules: PieceRules, step: Mapping[str, Any]) -> PieceRules:
    kind = step["type"]
    if kind == "ByteLevel":
        return replace(rules, byte_alphabet=_byte_alphabet())
    if kind == "ByteFallback":
        return replace(rules, byte_fallback=True)
    if kind == "Fuse":
        return rules
    if kind == "Replace" and "String" in step["pattern"]:
        return replace(rules, replacements=(*rules.replacements, (step["pattern"]["String"], step["content"])))
    if kind == "Strip" and step["content"] == " " and step["stop"] == 0:
        return replace(rules, leading_spaces_dropped=step["start"])
    if kind == "Metaspace":
        dropped = 0 if step.get("prepend_scheme") == "never" else 1
        replacement = (step["replacement"], " ")
        return replace(rules, replacements=(*rules.replacements, replacement), leading_spaces_dropped=dropped)
    if kind == "WordPiece":
        cleanup = _WORDPIECE_CLEANUP if step["cleanup"] else ()
        return replace(rules, continuation_prefix=step["prefix"], replacements=cleanup, leading_spaces_dropped=1)
    raise UnsupportedModelError(f"tokenizer decoder {kind!r} is not supported")
