"""Model names: what is one, and the one place where a name becomes a path.

`model`, `model:tag`, `org/model` or `org/model:tag`; before an organization the host of its page is no part of the
name, as other programs write it there. Knows no catalogue, no store, no source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from tuili.errors import InvalidRequestError

MAX_NAME_LEN = 200
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_HOST = rf"(?:hf\.co|huggingface\.co)/(?={_PART}/)"
_NAME = re.compile(rf"(?:{_HOST})?(?:(?P<organization>{_PART})/)?(?P<model>{_PART})(?::(?P<tag>{_PART}))?")
_ABSENT = "_"  # no part of a name starts with an underscore


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed name; str() gives it back as it was written, without a host."""

    organization: str | None
    model: str
    tag: str | None

    def __str__(self) -> str:
        organization = f"{self.organization}/" if self.organization else ""
        tag = f":{self.tag}" if self.tag else ""
        return f"{organization}{self.model}{tag}"

    @property
    def repository(self) -> str:
        """The name without its tag."""
        return f"{self.organization}/{self.model}" if self.organization else self.model


def parse_model_name(text: str) -> ModelName:
    """Parses a model name. Raises InvalidRequestError (param "model") saying what a name may be."""
    if len(text) > MAX_NAME_LEN:
        raise InvalidRequestError(
            f"model name must have at most {MAX_NAME_LEN} characters, got {len(text)}", param="model"
        )
    match = _NAME.fullmatch(text)
    if match is None or ".." in text:
        raise InvalidRequestError(
            f"model name {text!a} must be model, model:tag, org/model or org/model:tag, each part of ASCII letters, "
            "digits, '.', '_' and '-', starting with a letter or digit, without '..'",
            param="model",
        )
    return ModelName(match["organization"], match["model"], match["tag"])


def is_path_like(text: str) -> bool:
    """Whether a text can only mean a path, whether or not anything is there."""
    return text.startswith(("/", "./", "../", "~")) or text.endswith(".gguf")


def name_path(name: ModelName) -> PurePosixPath:
    """Where a name lives below any of the store's folders: always three parts, never outside."""
    return PurePosixPath(name.organization or _ABSENT, name.model, name.tag or _ABSENT)
