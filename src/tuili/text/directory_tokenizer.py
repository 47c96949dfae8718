"""Builds a tokenizer from a Hugging Face model directory. Knows its files; runs no code they name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.text.tokenizer import NamedTokens, Tokenizer, parse_tokenizer_json

MAX_FILE_BYTES = 256 << 20
_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


def tokenizer_from_directory(path: Path) -> Tokenizer:
    """Reads tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json,
    generation_config.json and config.json.

    Raises UnsupportedModelError when there is no tokenizer.json, ModelFileError naming a damaged file.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        raise UnsupportedModelError(f"{path.name}: no tokenizer.json; other tokenizer files are not supported")
    backend = parse_tokenizer_json(read_text(file), file.name)
    config = read_json(path / "tokenizer_config.json")
    roles = _role_contents(config, read_json(path / "special_tokens_map.json"))
    _add_missing(backend, config)
    ids = {role: _id(backend, role, content) for role, content in roles.items()}
    ends = _ending_ids(path, backend, ids.get("eos"))
    _mark_special(backend, {*ids.values(), *ends})
    return Tokenizer(backend, NamedTokens(**{f"{role}_token_id": i for role, i in ids.items()}, eos_token_ids=ends))


def read_json(file: Path) -> dict[str, Any]:
    """The object a JSON file holds; empty when there is no such file. Raises ModelFileError naming the file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file.name}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{file.name}: found {type(value).__name__}, an object is needed")
    return value


def read_text(file: Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """What a text file holds. Raises ModelFileError naming a file that is larger, or not UTF-8."""
    size = file.stat().st_size
    if size > max_bytes:
        raise ModelFileError(f"{file.name}: found {size} bytes, at most {max_bytes} are allowed")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{file.name}: not UTF-8: {error.reason} at byte {error.start}") from error


def _role_contents(*configs: Mapping[str, Any]) -> dict[str, str]:
    """The text of each named special token; the first file that names it counts."""
    contents: dict[str, str] = {}
    for config in configs:
        for role in _ROLES:
            value = config.get(f"{role}_token")
            content = value.get("content") if isinstance(value, dict) else value
            if content is not None and role not in contents:
                if not isinstance(content, str):
                    raise ModelFileError(f"{role}_token: found {type(content).__name__}, a string is needed")
                contents[role] = content
    return contents


def _id(backend: Backend, role: str, content: str) -> int:
    token_id: int | None = backend.token_to_id(content)
    if token_id is None:
        raise ModelFileError(f"{role}_token: found {content!r:.80}, which is not in the vocabulary")
    return token_id


def _add_missing(backend: Backend, config: Mapping[str, Any]) -> None:
    """Adds tokens that only tokenizer_config.json lists; their ids must be the ones it gives."""
    listed = config.get("added_tokens_decoder", {})
    if not isinstance(listed, dict) or not all(key.isdecimal() and isinstance(v, dict) for key, v in listed.items()):
        raise ModelFileError("tokenizer_config.json: added_tokens_decoder must map ids to objects")
    for key in sorted(listed, key=int):
        content = listed[key].get("content")
        if not isinstance(content, str):
            raise ModelFileError(f"tokenizer_config.json: added_tokens_decoder.{key}.content must be a string")
        if backend.token_to_id(content) is None:
            flags = {
                name: bool(listed[key].get(name, False))
                for name in ("lstrip", "rstrip", "single_word", "normalized", "special")
            }
            backend.add_tokens([AddedToken(content, **flags)])
        found = backend.token_to_id(content)
        if found != int(key):
            raise ModelFileError(
                f"tokenizer_config.json: token {content!r:.80} has id {key}, tokenizer.json has {found}"
            )


def _ending_ids(path: Path, backend: Backend, eos_id: int | None) -> tuple[int, ...]:
    """Every id that ends a generation: the tokenizer's, generation_config.json's, or config.json's."""
    declared = read_json(path / "generation_config.json").get("eos_token_id")
    if declared is None:
        config = read_json(path / "config.json")
        declared = config.get("eos_token_id", _nested(config, "text_config").get("eos_token_id"))
    values = declared if isinstance(declared, list) else [] if declared is None else [declared]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ModelFileError(f"eos_token_id: found {value!r:.80}, ids are needed")
    known = [value for value in values if value < 1 << 32 and backend.id_to_token(value) is not None]
    return tuple(dict.fromkeys([*([] if eos_id is None else [eos_id]), *known]))


def _nested(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _mark_special(backend: Backend, ids: Iterable[int]) -> None:
    """Makes the named tokens control tokens, where tokenizer.json left them ordinary."""
    added = backend.get_added_tokens_decoder()
    contents = [backend.id_to_token(i) for i in sorted(ids) if i not in added or not added[i].special]
    backend.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in contents])
