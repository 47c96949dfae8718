"""Finds a model's chat template in its files. Knows where templates are kept; runs none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuili.errors import ModelFileError
from tuili.text.chat_template import MAX_TEMPLATE_BYTES
from tuili.text.directory_tokenizer import read_json, read_text

DEFAULT = "default"


def templates_from_gguf(metadata: Mapping[str, object]) -> dict[str, str]:
    """Chat templates by name; the usual one is named "default". Empty for a model without any.

    Raises ModelFileError when an entry is no string.
    """
    found = {
        DEFAULT if key == "tokenizer.chat_template" else key.removeprefix("tokenizer.chat_template."): value
        for key, value in metadata.items()
        if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template.")
    }
    return {name: _checked(value, f"tokenizer.chat_template {name!r:.40}") for name, value in found.items()}


def templates_from_directory(path: Path) -> dict[str, str]:
    """As `templates_from_gguf`, from chat_template.jinja, additional_chat_templates/, chat_template.json or
    tokenizer_config.json, in this order.
    """
    if (file := path / "chat_template.jinja").is_file():
        others = sorted((path / "additional_chat_templates").glob("*.jinja"))
        return {DEFAULT: read_text(file, MAX_TEMPLATE_BYTES)} | {
            other.stem: read_text(other, MAX_TEMPLATE_BYTES) for other in others
        }
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (value := read_json(path / name).get("chat_template")) is not None:
            return _named(value, name)
    return {}


def _named(value: Any, file: str) -> dict[str, str]:
    """A template, or a list of {name, template}."""
    if not isinstance(value, list):
        return {DEFAULT: _checked(value, f"{file}: chat_template")}
    if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in value):
        raise ModelFileError(f"{file}: chat_template must be a string or a list of objects with name and template")
    return {entry["name"]: _checked(entry.get("template"), f"{file}: chat_template") for entry in value}


def _checked(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ModelFileError(f"{where}: found {type(value).__name__}, a string is needed")
    return value
