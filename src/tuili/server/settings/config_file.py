"""Reads `--config`: a TOML or JSON file whose keys are settings' names. Knows no setting."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuili.errors import InvalidRequestError

MAX_BYTES = 1 << 20
_YAML = (".yaml", ".yml")


def read_config(path: str) -> Mapping[str, Any]:
    """The file's keys, with `_` where they have `-`.

    Raises InvalidRequestError naming the file when it cannot be read, is neither TOML nor JSON, or names a key twice.
    """
    text = _text(path)
    if path.endswith(_YAML):
        raise InvalidRequestError(f"{path}: must be TOML or JSON, not YAML: write `key = value` into a .toml")
    try:
        values = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both libraries' errors are ValueErrors
        raise InvalidRequestError(f"{path}: not {'JSON' if path.endswith('.json') else 'TOML'}: {error}") from None
    if not isinstance(values, dict):
        raise InvalidRequestError(f"{path}: must be a JSON object, it is a value of type {type(values).__name__}")
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in named:
            raise InvalidRequestError(f"{path}: {key!a:.80} is there twice, with - and with _")
        named[name] = value
    return named


def _text(path: str) -> str:
    try:
        file = Path(path).expanduser()
        if not file.is_file() and file.exists():  # a device or a pipe would be read without end
            raise InvalidRequestError(f"{path}: cannot be read: not a regular file")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InvalidRequestError(f"{path}: more than {MAX_BYTES} bytes")
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{path}: not UTF-8") from None
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidRequestError(f"{path!a:.200}: cannot be read: {reason}") from None
