"""The tokenizer arrays of GGUF metadata, checked: they come from a file and are hostile until shown otherwise.

Knows the keys `tokenizer.ggml.*` and what they may hold; builds no tokenizer.
Source: the GGUF specification (ggml, docs/gguf.md), section "Tokenizer".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, cast

from tuili.errors import ModelFileError

MAX_TOKENS = 1 << 21
MAX_TOKEN_CHARS = 16384
MAX_MERGES = 1 << 23

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
Merges = list[tuple[str, str]]

_SPECIAL_IDS = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id with their types (empty: all normal) and scores (empty: none), and the named ids."""

    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: Merges
    ids: Mapping[str, int]

    def ids_of_type(self, *types: int) -> list[int]:
        """Ids whose type is one of these, ascending. Types are 1 to 6, and looked through as bytes."""
        return [found.start() for found in re.finditer(b"[%b]" % bytes(types), bytes(self.types))]


def _fail(key: str, found: str, allowed: str) -> NoReturn:
    raise ModelFileError(f"tokenizer.ggml.{key}: {found}; {allowed}")


def _array(metadata: Mapping[str, object], key: str, limit: int) -> list[object] | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        _fail(key, f"found {type(value).__name__}", "must be an array")
    if len(value) > limit:
        _fail(key, f"found {len(value)} entries", f"at most {limit} are allowed")
    return list(value)


def _only(key: str, values: list[object], kinds: set[type], allowed: str) -> None:
    if stray := set(map(type, values)) - kinds:
        _fail(key, f"found {sorted(kind.__name__ for kind in stray)[0]}", allowed)


def _tokens(metadata: Mapping[str, object]) -> list[str]:
    values = _array(metadata, "tokens", MAX_TOKENS)
    if not values:
        _fail("tokens", "missing or empty", "a vocabulary is needed")
    _only("tokens", values, {str}, "every token must be a string")
    tokens = cast(list[str], values)
    longest = max(map(len, tokens))
    if longest > MAX_TOKEN_CHARS:
        _fail("tokens", f"found a token of {longest} characters", f"at most {MAX_TOKEN_CHARS} are allowed")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        _fail("tokens", f"found {twice[:80]!r} twice", "tokens must differ")
    return tokens


def _per_token(metadata: Mapping[str, object], key: str, kinds: set[type], num_tokens: int) -> list[object]:
    values = _array(metadata, key, MAX_TOKENS)
    if values is None:
        return []
    if len(values) != num_tokens:
        _fail(key, f"found {len(values)} entries", f"one per token is needed, {num_tokens}")
    _only(key, values, kinds, "every entry must be a number")
    return values


def _types(metadata: Mapping[str, object], num_tokens: int) -> list[int]:
    types = cast(list[int], _per_token(metadata, "token_type", {int}, num_tokens))
    if stray := set(types) - {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
        _fail("token_type", f"found {min(stray)}", "must be in [1, 6]")
    return types


def _merges(metadata: Mapping[str, object]) -> Merges:
    values = _array(metadata, "merges", MAX_MERGES) or []
    _only("merges", values, {str}, "every merge must be a string")
    merges = [tuple(merge.split(" ")) for merge in cast(list[str], values)]
    if set(map(len, merges)) - {2}:
        found = next(merge for merge in merges if len(merge) != 2)
        _fail("merges", f"found {' '.join(found)[:80]!r}", "a merge is two tokens with one space between")
    return cast(Merges, merges)


def refuse_merges(vocabulary: Vocabulary) -> NoReturn:
    """Names the merge that the vocabulary does not allow, as a ModelFileError."""
    known = set(vocabulary.tokens)
    strange = [(a, b) for a, b in vocabulary.merges if a not in known or b not in known or a + b not in known]
    found = f"found {' '.join(strange[0])[:80]!r}" if strange else "found no merges that can be used"
    _fail("merges", found, "both parts and their union must be tokens")


def _ids(metadata: Mapping[str, object], num_tokens: int) -> dict[str, int]:
    ids: dict[str, int] = {}
    for name in _SPECIAL_IDS:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < num_tokens:
            _fail(f"{name}_token_id", f"found {value!r:.80}", f"must be in [0, {num_tokens - 1}]")
        ids[name] = value
    return ids


def read_flag(metadata: Mapping[str, object], key: str, default: bool) -> bool:
    """A true-or-false entry `tokenizer.ggml.<key>`. Raises ModelFileError for any other type."""
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        _fail(key, f"found {value!r:.80}", "must be true or false")
    return value


def read_name(metadata: Mapping[str, object], key: str, default: str | None = None) -> str:
    """A string entry `tokenizer.ggml.<key>`. Raises ModelFileError when it is missing or no string."""
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, str):
        _fail(key, "missing" if value is None else f"found {type(value).__name__}", "a string is needed")
    return value


def read_vocabulary(metadata: Mapping[str, object]) -> Vocabulary:
    """Reads and checks every array.

    Raises ModelFileError naming the key, what was found and what is allowed.
    """
    tokens = _tokens(metadata)
    return Vocabulary(
        tokens=tokens,
        types=_types(metadata, len(tokens)),
        scores=cast(list[float], _per_token(metadata, "scores", {float, int}, len(tokens))),
        merges=_merges(metadata),
        ids=_ids(metadata, len(tokens)),
    )
